"""The whole ladder, for who blocks: join what is there, or have an upstream process started, and say where it is.

The one rule: the upstream is another process and nothing else of it is known here. It is told an `Order` through one
pipe and answers by `Report`s through another; the pipe's closing takes an order back. It lets go of the terminal and of
us by itself. So this file imports neither an event loop nor anything of `mux.upstream`, and serves a command that has
no loop as well as a mount that runs it in a thread.

A path's lock is held from before the second look until the connection is published: of many who start at once one logs
in, and the others join that connection. `Search.cancel` ends a search from another thread, and Ctrl-C the one in the
main thread; what was started for it then ends.

Imported by `mux.downstream.join` and the commands.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import mux
from mux.errors import ExitCode, JoinError, printable
from mux.rendezvous import publish, putty
from mux.rendezvous.order import LONGEST_LINE_BYTES, Kind, Order, Report
from mux.rendezvous.roles import Become, Join, Private, Wish, candidates, decide, nothing_to_join
from mux.rendezvous.sockets import Found, Probe, look, shown
from mux.rendezvous.target import Target

from . import openssh_master
from .waiting import LockWait, make_event, wait_readable

LOOK_DEADLINE_S: Final = 5.0
# A person who is asked takes a while; sshd itself hangs up on a login after two minutes (LoginGraceTime), and a host
# key's question comes before that.
LOGIN_DEADLINE_S: Final = 600.0
BATCH_DEADLINE_S: Final = 120.0
# What was taken back ends within milliseconds, unless it is loading its modules.
END_DEADLINE_S: Final = 5.0
# A PuTTY that is found while its user types a password is worth waiting for; one that was stopped is not.
PUTTY_LOGIN_DEADLINE_S: Final = 20.0
# Each walk anew means that somebody else changed what is at the path between two looks.
_WALKS: Final = 20
_MAIN: Final = Path(mux.__file__).parent / "upstream" / "__main__.py"
_READ_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an upstream is started, if one is; see `Order`."""

    foreground: bool = False
    batch: bool = False
    persist: str | None = None
    explicit_start: bool = False
    password: str | None = field(default=None, repr=False)
    log_file: str | None = None
    debug: bool = False
    putty: bool = True
    ssh_command: tuple[str, ...] = ()  # the other engine, by name


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection that was alive a moment ago."""

    path: str
    pid: int | None  # of the process that holds it
    started: bool = False  # by this search, so with the options of this command line
    private: bool = False
    leash: Leash | None = None  # of an upstream in the foreground
    putty: bool = False  # whether a PuTTY holds it


class Leash:
    """A foreground upstream on its starter's side: it stays in front until it is let off, and then for its riders.

    Started by itself (`Terms.explicit_start`) it ends then, as it does when its starter ends, in whatever way.
    """

    def __init__(self, process: subprocess.Popen[bytes], order: int) -> None:
        self._process = process
        self._order = order

    def let_off(self) -> None:
        """Need it no more. Idempotent."""
        if self._order >= 0:
            os.close(self._order)
            self._order = -1

    def wait(self) -> None:
        """Let it off, and wait for its end; it says whom it waits for, and ends on Ctrl-C."""
        self.let_off()
        self._process.wait()

    def hold(self) -> None:
        """Keep it until it ends."""
        self._process.wait()
        self.let_off()


class Search:
    """One walk of the ladder. `say` takes lines for the user, from the thread in which `run` runs."""

    def __init__(
        self,
        target: Target,
        wish: Wish,
        terms: Terms | None = None,
        say: Callable[[str], None] = lambda line: None,
        *,
        look_s: float = LOOK_DEADLINE_S,
    ) -> None:
        """`look_s`: the deadline of each look at all the paths. Raises JoinError when there is no descriptor left."""
        self._look_s = look_s
        self._target = target
        self._wish = wish
        self._terms = terms or Terms()
        self._say = say
        self._cancelled = make_event()
        self._guard = threading.Lock()

    def cancel(self) -> None:
        """Let `run`, in another thread, end with JoinError (INTERRUPTED), and what it started with it. Idempotent."""
        with self._guard:
            if self._cancelled >= 0:
                os.eventfd_write(self._cancelled, 1)

    def run(self) -> Reached:
        """Walk, once. Raises JoinError: what was found instead, or why the login failed, and what to do."""
        try:
            return self._walk()
        finally:
            with self._guard:
                os.close(self._cancelled)
                self._cancelled = -1

    def _walk(self) -> Reached:
        for walk in range(_WALKS):
            probes = self._look(putty_login_s=putty.GREETING_DEADLINE_S if walk else PUTTY_LOGIN_DEADLINE_S)
            match decide(self._wish, probes):
                case Join(path, pid, is_putty):
                    return Reached(path, pid, putty=is_putty)
                case Private(passed_by):
                    self._tell_passed_by(passed_by, "a private connection")
                    return self._go_alone()
                case Become(path, passed_by):
                    reached = self._become(path, passed_by)
                    if reached is not None:
                        return reached
                case _:
                    raise nothing_to_join(self._wish, self._target, probes)
        path = candidates(self._wish, self._target)[0]
        raise JoinError(f"{shown(path)} changes all the time while it is looked at", ExitCode.NO_ANSWER)

    def _look(self, *, putty_login_s: float) -> list[Probe]:
        """At the control paths, and if none is alive at PuTTY's names."""
        probes = look(candidates(self._wish, self._target), deadline_s=self._look_s)
        if not self._wish.asks_putty or any(probe.found is Found.LIVE for probe in probes):
            return probes
        if any(probe.found is Found.FROZEN for probe in probes):  # an upstream of ours listens at both
            putty_login_s = putty.GREETING_DEADLINE_S
        patience = putty.Patience(putty_login_s, self._say, cancelled=self._cancelled)
        return probes + putty.look(putty.candidates(self._target), patience)

    def _tell_passed_by(self, passed_by: str, instead: str) -> None:
        if passed_by:
            self._say(f"{passed_by} Using {instead}.")

    def _go_alone(self) -> Reached:
        path = publish.private_path()
        try:
            publish.rehearse(path)
            return self._start(path, None)
        except BaseException:
            publish.remove_private_directory(path)
            raise

    def _become(self, path: str, passed_by: str) -> Reached | None:
        """Start an upstream at `path`; None when it has to be looked at again."""
        publish.check_length(path)
        publish.make_directory(path)
        lock = self._lock(path)
        try:
            probes = self._look(putty_login_s=putty.GREETING_DEADLINE_S)
            decision = decide(self._wish, probes)
            if isinstance(decision, Join):
                return Reached(decision.path, decision.pid, putty=decision.putty)
            if not isinstance(decision, Become) or decision.path != path:
                return None
            if any(probe.path == path and probe.found is Found.STALE for probe in probes):
                publish.remove_stale(path)
            publish.rehearse(path)
            self._tell_passed_by(passed_by, f"a connection at {shown(path)}")
            return self._start(path, lock)
        finally:
            lock.release()

    def _lock(self, path: str) -> publish.Lock:
        lock = publish.Lock.take(path, wait=False)
        return lock or LockWait(path).result(self._deadline_s(), self._cancelled, lambda: self._say_waiting(path))

    def _say_waiting(self, path: str) -> None:
        holder = publish.lock_holder(path)
        who = "another command" if holder is None else f"process {holder}"
        self._say(f"waiting for {who}, which is logging in to {printable(self._target.typed)}")

    def _deadline_s(self) -> float:
        return BATCH_DEADLINE_S if self._terms.batch else LOGIN_DEADLINE_S

    def _start(self, path: str, lock: publish.Lock | None) -> Reached:
        terms = self._terms
        order = Order(
            target=self._target,
            path=path,
            private=lock is None,
            foreground=terms.foreground,
            batch=terms.batch,
            persist=terms.persist,
            explicit_start=terms.explicit_start,
            password=terms.password,
            log_file=terms.log_file,
            debug=terms.debug,
            putty=terms.putty,
        )
        if terms.ssh_command:
            return self._start_ssh(order, terms.ssh_command)
        upstream = _Process(order, lock)
        try:
            report = upstream.report(self._deadline_s(), self._cancelled)
            if report.kind is not Kind.OTHER_ENGINE:
                return self._reached(report, order, upstream.leash(report))
        finally:
            upstream.close()
        self._say(f"ssh itself holds this connection: {report.message}")
        return self._start_ssh(order, ("ssh",))

    def _start_ssh(self, order: Order, command: tuple[str, ...]) -> Reached:
        report = openssh_master.start(order, command, self._deadline_s(), self._cancelled)
        return self._reached(report, order, None)

    def _reached(self, report: Report, order: Order, leash: Leash | None) -> Reached:
        if report.kind is Kind.FAILED:
            raise JoinError(report.message, report.exit_code, hint=report.hint)
        return Reached(order.path, report.pid, report.kind is Kind.READY, order.private, leash)


class Running:
    """A search in a thread of its own, from the moment this is made."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._outcome: Reached | BaseException | None = None
        self._ended = threading.Event()
        # A daemon: what it waits for ends with the process as well, since all of it hangs on pipes.
        threading.Thread(target=self._run, name="search", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it has come."""
        return self._ended.wait(timeout_s)

    def cancel(self) -> None:
        """As `Search.cancel`; the end still has to be waited for."""
        self._search.cancel()

    def result(self) -> Reached:
        """What `Search.run` returned or raised, once it has ended."""
        assert self._outcome is not None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = self._search.run()
        except BaseException as error:
            self._outcome = error
        self._ended.set()


class _Process:
    """An upstream process, from its start to its last report."""

    def __init__(self, order: Order, lock: publish.Lock | None) -> None:
        """Raises JoinError when none can be started."""
        orders, self._order = _pipe()
        try:
            self._reports, reports = _pipe()
        except JoinError:
            os.close(orders)
            os.close(self._order)
            raise
        command = [sys.executable, "-P", str(_MAIN), str(orders), str(reports)]
        inherited = [orders, reports]
        if lock is not None:
            command.append(str(lock.descriptor))
            inherited.append(lock.descriptor)
        # Ctrl-C reaches it as well. It takes notice when it can say so in a line, which Python cannot while it starts.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=inherited
            )
        except OSError as error:
            os.close(self._order)
            os.close(self._reports)
            raise _not_started(error) from error
        finally:
            os.close(orders)
            os.close(reports)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._foreground = order.foreground
        self._leashed = False
        try:
            _write_all(self._order, order.to_json().encode())
        except BrokenPipeError:
            pass  # it has ended: there will be no report
        except BaseException:
            self.close()
            raise

    def report(self, deadline_s: float, cancelled: int) -> Report:
        """Wait for the report. Raises JoinError (INTERRUPTED, NO_ANSWER), and when it ended without one."""
        line = b""
        until = time.monotonic() + deadline_s
        while not line.endswith(b"\n"):
            wait_readable(self._reports, until, cancelled, "the login")
            more = os.read(self._reports, _READ_BYTES)
            line += more
            if not more or len(line) > LONGEST_LINE_BYTES:
                hint = "`sshmux start -f` and `sshmuxfs -d` tell more"
                raise JoinError("the upstream process ended without a word", hint=hint)
        return Report.from_json(line)

    def leash(self, report: Report) -> Leash | None:
        """What holds an upstream in the foreground, if it became one."""
        if not self._foreground or report.kind is not Kind.READY:
            return None
        self._leashed = True
        return Leash(self._process, self._order)

    def close(self) -> None:
        """Leave it alone if it is ready; otherwise take the order back, and see it end."""
        if not self._leashed:
            os.close(self._order)
            # The pipe of reports ends when it has reported, or has ended. It has forked: its first process is gone.
            _wait_end(self._reports)
            try:
                self._process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        os.close(self._reports)


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise _not_started(error) from error


def _not_started(error: OSError) -> JoinError:
    return JoinError(f"no upstream process can be started: {error.strerror}")


def _wait_end(descriptor: int) -> None:
    until = time.monotonic() + END_DEADLINE_S
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        if not os.read(descriptor, _READ_BYTES):
            return


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
