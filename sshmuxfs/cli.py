"""The command `sshmuxfs`: read the command line, go to the background, tell what came of it.

The rule of this file: the command returns when the mount works, with 0, or when it cannot, with a line that says why
and an exit code that says of what kind (`mux.errors.ExitCode`). The background half keeps the terminal until the mount
works, so that it is one Ctrl-C that ends both; then it lets go of everything.

Imports are late: a wrong option is told before anything heavy is loaded, and a connection is looked for meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from mux import signals, streams
from mux.errors import ExitCode, SharingError
from sshmuxfs.options import Help, Options, UsageError, Version, parse

PROGRAM = "sshmuxfs"
_READY = b"ready"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    streams.open_closed()
    try:
        signals.interrupt()
        asked = parse(sys.argv[1:] if argv is None else argv)
        if isinstance(asked, Help | Version):
            return _tell(asked.text)
        return _mount(asked, lambda: None) if asked.foreground else _in_background(asked)
    except UsageError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    _say("interrupted")
    return ExitCode.INTERRUPTED


def _tell(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read it has had enough
        streams.give_up()
        return ExitCode.FAILURE
    return ExitCode.OK


def _say(line: str) -> None:
    try:
        print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads any more
        streams.give_up()
        logging.getLogger(PROGRAM).warning(line)


def _mount(options: Options, announce: Callable[[], None]) -> int:
    from sshmuxfs import mountpoint
    from sshmuxfs.approach import Approach

    try:
        mountpoint.refuse_inside(mountpoint.located(options.mountpoint), {"the log file": options.log_file})
        _log_to(options)
        place = mountpoint.prepare(options.mountpoint, allow_nonempty=options.nonempty)
        approach = Approach.begin(options, place, _say)
        try:
            from sshmuxfs import mount

            mount.run(options, place, approach, announce, _say)
        finally:
            approach.abandon()
    except SharingError as error:
        return _refuse(error)
    return ExitCode.OK


def _refuse(error: SharingError) -> int:
    _say(str(error))
    if error.hint:
        _say(error.hint)
    return error.exit_code


def _in_background(options: Options) -> int:
    """Mount in a child; return when it says that the mount works, or when it has ended."""
    # Both ends must hold: the child ends with its own code, and we pass that on.
    readable, writable = os.pipe()
    # Until each of the two has said what is to be done with them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
    child = os.fork()
    if child == 0:
        _close_inherited(keep=writable)
        code = int(ExitCode.FAILURE)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = _mount(options, lambda: _let_go(writable))
        except KeyboardInterrupt:
            code = _interrupted()
        except BaseException:
            logging.exception("the mount failed in a way it should not")
            _say("the mount failed in a way it should not; the log tells more")
        finally:
            logging.shutdown()
            os._exit(code)
    os.close(writable)
    # Ctrl-C reaches the child as well, which tidies up; what is left for us is to wait for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.pass_on(os.pidfd_open(child))
    with os.fdopen(readable, "rb") as pipe:
        if pipe.read() == _READY:
            return ExitCode.OK
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code  # killed: as a shell tells it


def _close_inherited(*, keep: int) -> None:
    """Close what the command was started with, but for the three streams: a daemon holds nobody's lock or pipe."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != keep:
            try:
                os.close(descriptor)
            except OSError:  # that of the listing itself
                pass


def _let_go(writable: int) -> None:
    """Tell the waiting parent that the mount works, and leave its terminal. Raises SharingError when nobody waits."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    try:
        os.write(writable, _READY)
    except BrokenPipeError:
        # Whoever killed the command takes the mount for failed, and may be removing the place where it was to be.
        message = "ending: the command was killed before it could tell that the mount works"
        logging.getLogger(PROGRAM).error(message)
        raise SharingError(message, ExitCode.INTERRUPTED) from None
    os.close(writable)


def _log_to(options: Options) -> None:
    from mux import logs

    handler = logs.handler(PROGRAM, file=options.log_file, foreground=options.foreground)
    level = logging.DEBUG if options.debug else options.log_level.upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
