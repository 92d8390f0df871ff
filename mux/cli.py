"""`sshmux`: what can be known and done about shared connections from a command line.

The one rule: it starts fast, because scripts call it in loops. Only the parser is here; what a subcommand needs is
imported when it is run, and neither an event loop nor anything of the file system ever is. Messages go to stderr, each
led by `sshmux:`; stdout has the answer only. Where `ssh -O` has the same request, words and exit status are its.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from . import signals, streams
from .errors import ExitCode, SharingError

_SSH_FAILED: Final = 255  # what ssh ends with when it cannot do what it was asked
_UNREAD: Final = (errno.EPIPE, errno.EIO)  # whoever read us has had enough, or was a terminal that is gone


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    streams.open_closed()
    try:
        signals.interrupt()
        try:
            return _answer(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNREAD:
            raise
        streams.give_up()
        return _SSH_FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _answer(words: Sequence[str]) -> int:
    parser, commands = _parsers()
    if words and not words[0].startswith("-") and words[0] not in commands:
        return _unknown(words[0], commands)
    arguments = parser.parse_args(words)
    try:
        return _run(arguments)
    except SharingError as error:
        _complain(error)
        if error.exit_code is ExitCode.USAGE or arguments.failure is None:
            return error.exit_code
        return int(arguments.failure)


def _run(arguments: argparse.Namespace) -> int:
    from importlib import import_module

    module, _, name = arguments.run.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(f"mux.commands.{module}"), name)
    return command(arguments)


def _complain(error: SharingError) -> None:
    print(f"sshmux: {error}", file=sys.stderr)
    if error.hint:
        print(f"sshmux: {error.hint}", file=sys.stderr)


def _unknown(word: str, commands: Sequence[str]) -> int:
    from difflib import get_close_matches

    from .errors import printable

    nearest = get_close_matches(word, commands, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(commands)}"
    print(f"sshmux: no command {printable(word)!r}: {advice}", file=sys.stderr)
    return ExitCode.USAGE


class _Parser(argparse.ArgumentParser):
    """argparse, with our way of complaining."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"sshmux: {message}", file=sys.stderr)
        raise SystemExit(int(ExitCode.USAGE))


class _Version(argparse.Action):
    """`-V`. importlib.metadata is slow to import, and nothing else needs it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("sshmuxfs")
        except PackageNotFoundError:
            number = "unknown"
        print(f"sshmux {number}")
        parser.exit()


class _Forward(argparse.Action):
    """`-L`, `-R` and `-D`, in the order of the command line."""

    def __call__(
        self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        assert option is not None
        namespace.forwards = [*(namespace.forwards or ()), (option[1], values)]


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _time(text: str) -> str:
    import re

    if text.lower() in ("yes", "no", "true", "false") or re.fullmatch("([0-9]{1,9}[smhdw]?)+", text.lower()):
        return text.lower()
    raise argparse.ArgumentTypeError(f"{text!r} is not yes, no, or a time as 90, 10m or 1h30m")


def _parsers() -> tuple[argparse.ArgumentParser, Sequence[str]]:
    parser = _Parser(prog="sshmux", description="Share one SSH connection between shells, transfers and mounts.")
    parser.add_argument("-V", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_check, _start, _list, _status, _top, _forward, _cancel, _stop, _exit, _config):
        add(commands)
    return parser, tuple(commands.choices)


def _check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        "checking:check",
        "tell whether a connection to a host can be shared now",
        "Exit status 0 when a connection to HOST can be shared now, with a line on stdout for a master's and one for a "
        "PuTTY's; 1 when none can, with the reason on stderr; 2 for a mistake in the command line.",
    )
    # An answer, and no failure: as `plink -shareexists` has it.
    parser.set_defaults(failure=int(ExitCode.FAILURE))


def _start(commands: Any) -> None:
    parser = _command(
        commands,
        "start",
        "starting:start",
        "log in to a host, and hold the connection for others to share",
        "Log in here and now, then hold the connection in the background. With one there already, nothing is done.",
    )
    parser.set_defaults(failure=None)
    parser.add_argument("-A", dest="forward_agent", action="store_true", help="let sessions forward the ssh agent")
    parser.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground, and log to stderr")
    parser.add_argument(
        "--persist",
        type=_time,
        metavar="TIME",
        help="how long it stays when nobody rides any more: yes, no, or a time as 10m (ControlPersist; else for ever)",
    )
    parser.add_argument("--json", action="store_true", help="tell on stdout, as JSON, what came of it")


def _list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="list every connection that is shared now",
        description="One line for each connection of yours that others can share now.",
    )
    parser.add_argument(
        "-F", dest="config_file", metavar="FILE", help="ssh's configuration file, to know hosts by their names"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run="listing:list_", failure=_SSH_FAILED)


def _status(commands: Any) -> None:
    parser = _command(
        commands,
        "status",
        "status:status",
        "tell all that is known of a connection and who rides on it",
        "The connection, its channels, forwardings, clients and mounts. A master of OpenSSH tells less than ours do.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def _top(commands: Any) -> None:
    parser = _command(
        commands,
        "top",
        "top:top",
        "watch the traffic of a connection, or of all",
        "Live, until q or Ctrl-C; without a terminal it prints once. Without HOST all connections are shown.",
        host_needed=False,
    )
    parser.add_argument("--once", action="store_true", help="print once, on a terminal too")


def _forward(commands: Any) -> None:
    parser = _command(
        commands,
        "forward",
        "forwards:forward",
        "open forwardings on a connection that is open",
        "As ssh -O forward. The port that a server chose for -R 0:... is printed on stdout.",
    )
    _add_forwards(parser)


def _cancel(commands: Any) -> None:
    parser = _command(
        commands,
        "cancel",
        "forwards:cancel",
        "close forwardings, written as they were opened",
        "As ssh -O cancel: a forwarding that is not open is told of, and is no failure.",
    )
    _add_forwards(parser)


def _stop(commands: Any) -> None:
    _command(
        commands,
        "stop",
        "ending:stop",
        "let a connection take no more clients",
        "As ssh -O stop: those who ride go on, and the connection ends with the last of them.",
    )


def _exit(commands: Any) -> None:
    parser = _command(
        commands,
        "exit",
        "ending:exit_",
        "end a connection",
        "As ssh -O exit. While others ride on it they are named, and it is ended only when you confirm that, "
        "or with --now; exit status 1 when it was not.",
    )
    parser.add_argument("--now", action="store_true", help="whoever rides on it")


def _config(commands: Any) -> None:
    _command(
        commands,
        "config",
        "configuring:config",
        "print the lines of ssh_config that let plain ssh share it",
        "Prints lines for ~/.ssh/config; changes nothing.",
    )


def _command(
    commands: Any, name: str, run: str, brief: str, description: str, *, host_needed: bool = True
) -> argparse.ArgumentParser:
    """A subcommand about a host. `run` is its module in `mux.commands` and the function there."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=brief, description=description)
    parser.set_defaults(run=run, failure=_SSH_FAILED)
    parser.add_argument("-F", dest="config_file", metavar="FILE", help="ssh's configuration file")
    parser.add_argument("-p", dest="port", type=_port, metavar="PORT", help="port on the host")
    parser.add_argument("-l", dest="user", metavar="USER", help="user on the host")
    parser.add_argument("-S", dest="control_path", metavar="PATH", help="control path, in place of the configured one")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="NAME=VALUE", help="an option of ssh_config"
    )
    text = "as for ssh; an IPv6 address may stand in brackets"
    if host_needed:
        parser.add_argument("host", metavar="[USER@]HOST", help=text)
    else:
        parser.add_argument("host", metavar="[USER@]HOST", nargs="?", help=text)
    return parser


def _add_forwards(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(forwards=None)
    for letter, what in (
        ("L", "[BIND:]PORT:HOST:HOSTPORT"),
        ("R", "[BIND:]PORT[:HOST:HOSTPORT]"),
        ("D", "[BIND:]PORT"),
    ):
        parser.add_argument(f"-{letter}", dest="forwards", action=_Forward, metavar=what, help="as for ssh")
