"""Questions to a person: on the terminal, through askpass, from `password_stdin`, or not at all.

The one rule: one question at a time, and whatever ends one (an answer, Ctrl-C, a signal, a cancelled login) the
terminal is left as it was found. After `detach` the terminal is somebody else's, and only askpass is left. Where a
question goes is decided as OpenSSH decides it (readpass.c; ssh(1), SSH_ASKPASS and SSH_ASKPASS_REQUIRE). What a server
wants said or asked goes through `shown` before it comes near a terminal. Imported by `login.py`, `auth.py`, `keys.py`
and `daemon.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import termios
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Final

from mux.errors import ExitCode, SharingError

from .ports import CLOSED_BEFORE_EXEC

# Longer answers are cut, as in ssh (readpass.c).
MAX_ANSWER_BYTES: Final = 1024
# What a server may want shown at once, as its banner: a screen or two.
MAX_SHOWN: Final = 8192
TERMINAL: Final = "/dev/tty"
DEFAULT_ASKPASS: Final = "/usr/bin/ssh-askpass"

# Signals that would end us with the echo off. Only those that nobody handles yet are taken over, for the question.
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Interrupted(SharingError):
    """The person ended it with Ctrl-C, or with a signal."""

    usual_exit_code = ExitCode.INTERRUPTED


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Text of a server as a terminal can show it: lines and tabs kept, every other control character escaped.

    Trailing blanks stay, since prompts end with one.
    """
    result = ""
    for character in text.replace("\r\n", "\n"):
        plain = character.isprintable() or character in "\n\t"
        result += character if plain else character.encode("unicode_escape").decode("ascii")
        if len(result) > limit:
            return result[: limit - 3] + "..."
    return result


class Prompts:
    """Who asks. `password` answers the first question for a password, and is forgotten then."""

    def __init__(
        self,
        *,
        batch: bool = False,
        password: str | None = None,
        environment: Mapping[str, str] | None = None,
        terminal: str = TERMINAL,
    ) -> None:
        """`batch`: nobody is asked anything. `environment` None is that of the process."""
        self.batch = batch
        self.watch: Callable[[bool], None] | None = None  # told when a person is waited for, and when no longer
        self._password = password
        self._environment = os.environ if environment is None else environment
        self._terminal = terminal
        self._detached = False
        self._lock = asyncio.Lock()

    @property
    def has_password(self) -> bool:
        """Whether a password was handed in that nobody asked for yet."""
        return self._password is not None

    def can_ask(self) -> bool:
        """Whether a question would reach a person, as far as can be told without asking."""
        if self.batch:
            return False
        return self._wants_askpass() or self._has_terminal() or self._may_askpass()

    def detach(self) -> None:
        """From now on the terminal belongs to others. A question on it that waits for an answer is given up."""
        self._detached = True

    async def password(self, text: str) -> str | None:
        """`ask` without echo, answered by the handed-in password the first time."""
        if self._password is not None:
            password, self._password = self._password, None
            return password
        return await self.ask(text, echo=False)

    async def ask(self, text: str, *, echo: bool) -> str | None:
        """Return the answer, without its line end; None when nobody can be asked or the question was dismissed.

        Raises Interrupted for Ctrl-C. No deadline: a person may take as long as the server lets him.
        """
        if self.batch:
            return None
        async with self._turn():
            if not self._wants_askpass():
                terminal = self._open_terminal()
                if terminal is not None:
                    try:
                        return await _Question(terminal, text, echo=echo).answer()
                    except termios.error:  # it has been hung up
                        return None
            return await self._askpass(text, "") if self._may_askpass() else None

    async def confirm(self, text: str) -> bool:
        """A question for yes or no; no when nobody can be asked.

        Through askpass it is a confirmation: its button is enough, and so is an empty answer (readpass.c,
        ask_permission). On the terminal it takes the word.
        """
        if self.batch:
            return False
        if not self._wants_askpass() and self._has_terminal():
            answer = await self.ask(f"{text.rstrip()} (yes/no) ", echo=True)
            return answer is not None and answer.strip().lower() == "yes"
        async with self._turn():
            answer = await self._askpass(text, "confirm") if self._may_askpass() else None
        return answer is not None and answer.lower() in ("", "yes")

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._lock:
            if self.watch is not None:
                self.watch(True)
            try:
                yield
            finally:
                if self.watch is not None:
                    self.watch(False)

    def _require(self) -> str:
        return self._environment.get("SSH_ASKPASS_REQUIRE", "").lower()

    def _may_askpass(self) -> bool:
        if self._require() == "never":
            return False
        display = self._environment.get("DISPLAY") or self._environment.get("WAYLAND_DISPLAY")
        return self._require() == "force" or bool(display)

    def _wants_askpass(self) -> bool:
        return self._require() in ("force", "prefer") and self._may_askpass()

    def _has_terminal(self) -> bool:
        terminal = self._open_terminal()
        if terminal is None:
            return False
        os.close(terminal)
        return True

    def _open_terminal(self) -> int | None:
        if self._detached:
            return None
        try:
            # Its own description: O_NONBLOCK on it is nobody else's.
            return os.open(self._terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None

    async def _askpass(self, text: str, hint: str) -> str | None:
        """Run askpass: the question is its argument, the answer its first line; None when it says no."""
        program = self._environment.get("SSH_ASKPASS") or DEFAULT_ASKPASS
        environment = dict(self._environment)
        if hint:
            environment["SSH_ASKPASS_PROMPT"] = hint
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                text,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                close_fds=CLOSED_BEFORE_EXEC,
            )
        except OSError:
            return None
        assert process.stdout is not None
        try:
            answer = b""
            # What it writes beyond that is of no interest, and must not stop it.
            while piece := await process.stdout.read(MAX_ANSWER_BYTES):
                answer = (answer + piece)[:MAX_ANSWER_BYTES]
            status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        return _decoded(answer.partition(b"\n")[0].rstrip(b"\r")) if status == 0 else None


class _Question:
    """One question on the terminal, whose descriptor it owns."""

    def __init__(self, terminal: int, text: str, *, echo: bool) -> None:
        self._terminal = terminal
        self._text = text
        self._echo = echo
        try:
            self._before = termios.tcgetattr(terminal)
        except termios.error:
            os.close(terminal)
            raise
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[str | None] = self._loop.create_future()
        self._received = b""

    async def answer(self) -> str | None:
        try:
            with self._signals():
                self._begin()
                self._loop.add_reader(self._terminal, self._readable)
                return await self._answer
        finally:
            self._loop.remove_reader(self._terminal)
            self._restore()
            os.close(self._terminal)

    def _begin(self) -> None:
        if not self._echo:
            quiet = termios.tcgetattr(self._terminal)
            quiet[3] &= ~(termios.ECHO | termios.ECHONL)
            termios.tcsetattr(self._terminal, termios.TCSAFLUSH, quiet)
        # At the beginning of the line, as ssh.
        self._write(b"\r" + self._text.encode(errors="backslashreplace"))

    def _restore(self) -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._before)

    def _write(self, data: bytes) -> None:
        # A terminal that takes nothing now shows less of the question; it must not hold up the login.
        with contextlib.suppress(OSError):
            os.write(self._terminal, data)

    def _readable(self) -> None:
        try:
            piece = os.read(self._terminal, MAX_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""  # the terminal was hung up
        self._received += piece
        line, end, _ = self._received.partition(b"\n")
        if self._answer.done() or (piece and not end and len(self._received) < MAX_ANSWER_BYTES):
            return
        if not self._echo:
            self._write(b"\n")
        self._answer.set_result(_decoded(line[:MAX_ANSWER_BYTES]) if line or end else None)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Take over signals that would end or stop us with the echo off, where that is possible at all."""
        taken: list[tuple[signal.Signals, _Handler]] = []
        try:
            for number in (*_ENDING, signal.SIGTSTP):
                before = signal.getsignal(number)
                if _is_ours_to_take(number, before):
                    try:
                        self._loop.add_signal_handler(number, self._signalled, number)
                    except (ValueError, RuntimeError):
                        break  # not the main thread: signals are somebody else's
                    taken.append((number, before))
            yield
        finally:
            for number, before in taken:
                self._loop.remove_signal_handler(number)
                signal.signal(number, before)

    def _signalled(self, number: signal.Signals) -> None:
        if number == signal.SIGTSTP:
            self._stop()
        elif not self._answer.done():
            self._write(b"\n")
            self._answer.set_exception(Interrupted(f"interrupted at a question ({number.name})"))

    def _stop(self) -> None:
        """Ctrl-Z: hand the terminal back as it was, stop, and ask again once continued."""
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._begin()


def _is_ours_to_take(number: signal.Signals, handler: _Handler) -> bool:
    """Nobody handles it; for SIGINT that may look like Python's default, or the loop runner's own."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    if number != signal.SIGINT or not isinstance(handler, functools.partial):
        return False
    return isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)


def _decoded(line: bytes) -> str:
    """An answer as text. What is not UTF-8 was typed under a one-byte charset: the wire wants UTF-8 (RFC 4252)."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")
