"""A passenger's session: what a client asked for with NEW_SESSION, served on descriptors of its own.

What is asked of the server, in which order, and what the client is told is OpenSSH's (mux.c, clientloop.c). One rule:
the client is told of the end last, when the channel is closed and all its output is written, since it takes that for
the end of the session; what came of the command was told before.

Better than there: the modes of a terminal that is none are left to the server, an escape counts at the beginning of
this session's lines only, and a request that failed is said in words. Imported by `clients.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from mux.errors import WireError, printable
from mux.protocol import escapes, harmless
from mux.protocol.connection import LARGEST_PACKET_BYTES, STDERR
from mux.protocol.escapes import Action, Escapes, Unavailable
from mux.protocol.messages import NewSession
from mux.protocol.wire import Reader, string, u32

from . import terminal
from .asking import Options, kind_of, requests
from .channels import LiveChannel
from .ports import give_back, never_waits
from .pumps import Stream
from .sinks import Sink
from .sources import Translation
from .windows import WindowBudget, shared_bytes
from .workers import in_thread

if TYPE_CHECKING:
    from .engine import Engine
    from .incoming import Incoming

# A server that lives answers in a round trip; one that does not is found out by the keepalive, later.
OPEN_DEADLINE_S: Final = 30.0
BREAK_MS: Final = 1000  # as ssh's ~B (RFC 4335 leaves the length to the server when it is 0)
LEAVE_S: Final = 1.0  # what stderr may take to show `~.` before the client is let go
LOOK_S: Final = 5.0  # for a file on a mount that hangs to say that it is no terminal
NO_MODES: Final = b"\0"  # of what is no terminal: nothing but their end
MAX_OWN_BYTES: Final = 256 * 1024  # of texts of ours that wait for a stderr nobody reads
ESCAPES_PER_S: Final = 8  # more than anybody types; a file or a program may hold a hundred thousand

log = logging.getLogger(__name__)


class SessionTalk(Protocol):
    """Who is told how a session fares: its client."""

    def exit(self, value: int) -> None:
        """The remote command has ended with this value. Called at most once."""

    def tty_failed(self) -> None:
        """The server gave no terminal."""

    def ended(self) -> None:
        """It is over, and everything is written. Called last, and not after `Session.hang_up`."""

    def info(self, name: bytes) -> bytes:
        """The text for `~#` (b"channels") and `~I` (b"connection"), its lines ended by CR LF."""


class Session(Stream):
    """A session, open; made by `open`.

    number     what the client calls it
    command    of the remote; b"" for a shell
    tty        whether it asked for a terminal
    kind       "shell", "exec" or "subsystem"
    """

    def __init__(
        self,
        engine: Engine,
        settings: Options,
        message: NewSession,
        descriptors: tuple[int, ...],
        said: SessionTalk,
        incoming: Incoming | None,
    ) -> None:
        """For `open`."""
        stdin, stdout, stderr = descriptors
        super().__init__(stdin, stdout, said.ended)
        self.command = message.command
        self.tty = message.tty
        self.kind = kind_of(message)
        self._engine = engine
        self._settings = settings
        self._message = message
        self._said = said
        self._incoming = incoming
        self._stderr: int | None = stderr
        self._errors: Sink | None = None
        self._own_bytes = 0  # of texts of ours that stderr has still to take
        self._exited = self._leaving = self._hung_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._x11: bytes | None = None
        self._asked: list[tuple[bytes, bytes]] = []
        self._large = message.subsystem and message.command == b"sftp"
        self._window_bytes = 0
        self._escapes: Escapes | None = None
        self._escapes_left, self._escapes_until_s = 0, 0.0
        self._terminal: int | None = None
        self._size = terminal.Size()
        self._modes = NO_MODES
        if message.tty and message.escape_character < 256:
            self._escapes = Escapes(message.escape_character)

    @classmethod
    async def open(
        cls,
        engine: Engine,
        settings: Options,
        message: NewSession,
        descriptors: tuple[int, ...],
        said: SessionTalk,
        incoming: Incoming | None = None,
    ) -> Session:
        """Open a session on the server, and ask it for what `message` says.

        The descriptors (stdin, stdout, stderr) are the session's own from the call on, whatever comes of it. -A and -X
        are asked for as far as `incoming` has it. Raises `channels.OpenRefused`, and RemoteProtocolError, with nothing
        asked, for what the server might hang up over.
        """
        self = cls(engine, settings, message, descriptors, said, incoming)
        try:
            if message.tty:
                await self._look(descriptors[0])
            fields = self._size.encode() + string(self._modes)
            self._asked = requests(message, fields, settings, engine.facts().server_version)
            if message.x11 and incoming is not None:
                self._x11 = await incoming.x11.request()
            budget, nearest_s = WindowBudget.of(engine), engine.shortest_round_trip_s
            self._window_bytes = window_bytes = budget.take(large=self._large, round_trip_s=nearest_s)
            shared_window_bytes = None if self._large else shared_bytes(nearest_s)
            halved = 1
            if message.tty:
                # Its output is thrown away at ^C by whoever reads it: half as much of it (mux.c), and never more.
                window_bytes, shared_window_bytes, halved = shared_bytes(nearest_s), None, 2
            await LiveChannel.open(
                engine,
                b"session",
                b"",
                self,
                window_bytes=window_bytes // halved,
                packet_bytes=LARGEST_PACKET_BYTES // halved,
                shared_bytes=shared_window_bytes,
                deadline_s=OPEN_DEADLINE_S,
            )
        except BaseException:
            self.hang_up()
            raise
        return self

    @property
    def number(self) -> int:
        """The number of its channel."""
        assert self.channel is not None
        return self.channel.number

    def resize(self) -> None:
        """Tell the server of the terminal's size if it has changed (SIGWINCH)."""
        if self._terminal is not None and self.channel is not None:
            now = terminal.size(self._terminal)
            if now != self._size:
                self._size = now
                self.channel.request(b"window-change", now.encode())

    def hang_up(self) -> None:
        """The client has gone: the server is told, and every descriptor released. Idempotent."""
        self._hung_up = True
        if self.channel is not None:
            self.channel.eof()
        self.close()

    # channels.ChannelEnd

    def opened(self, channel: LiveChannel) -> None:
        """Ask for everything at once: answers come in order."""
        if self._stderr is not None:
            stderr, self._stderr = self._stderr, None
            self._errors = Sink(stderr, self._errors_consumed, failed=_nothing, done=self._end_when_done)
        self._ask(channel)
        super().opened(channel)

    def data(self, stream: int, data: memoryview) -> None:
        """Write to stdout or stderr."""
        if stream == STDERR and self._errors is not None:
            self._errors.write(data)
        else:
            super().data(stream, data)

    def closed(self) -> None:
        """What came before is still written, on both."""
        if self._errors is not None:
            self._errors.finish()
        super().closed()

    def request(self, name: bytes, want_reply: bool, body: bytes) -> bool:
        """What servers ask of a session (RFC 4254 section 6.10), and OpenSSH's "I read no more"."""
        match name:
            case b"exit-status":
                return self._exit_status(body)
            case b"exit-signal":
                # ssh has no message for it: its client ends with 255 because nothing was said.
                log.info("session %d ended by a signal: %s", self.number, _signal_name(body))
                return True
            case b"eow@openssh.com":
                if self._source is not None:
                    self._source.close()
                self._close_when_done()
                return True
        return False

    # What is asked of the server

    async def _look(self, stdin: int) -> None:
        """At the terminal, if it is one, now: the client makes it raw as soon as it hears of the session."""

        def look() -> tuple[bytes, terminal.Size]:
            return terminal.modes(stdin), terminal.size(stdin)

        try:
            async with asyncio.timeout(LOOK_S):
                self._modes, self._size = look() if never_waits(stdin) else await in_thread(look)
        except TimeoutError:
            return
        if self._modes != NO_MODES:
            with suppress(OSError):  # out of descriptors: this terminal stays as large as it is
                self._terminal = os.dup(stdin)

    def _ask(self, channel: LiveChannel) -> None:
        if self._x11 is not None:
            channel.ask_then(harmless.X11, self._x11, self._x11_answered)
        if self._message.agent and self._incoming is not None and self._incoming.agent():
            channel.request(harmless.AGENT[0])
        heard = {harmless.PTY: self._tty_answered, self.kind.encode(): self._started}
        for name, body in self._asked:
            if name in heard:
                channel.ask_then(name, body, heard[name])
            else:
                channel.request(name, body)
        self._asked.clear()

    def _x11_answered(self, ok: bool) -> None:
        if not ok:
            self._tell("X11 forwarding request failed on channel 0")

    def _tty_answered(self, ok: bool) -> None:
        if ok or self.channel is None or self.channel.over or self._ended:
            return
        self._tell("PTY allocation request failed on channel 0")
        self._said.tty_failed()
        if self._settings.request_tty in ("yes", "force"):
            self._give_up()

    def _started(self, ok: bool) -> None:
        if not ok and self.channel is not None and not self.channel.over and not self._ended:
            self._tell(f"{self.kind} request failed on channel 0")
            self._give_up()

    def _give_up(self) -> None:
        """There will be no command. The client hears nothing but the end."""
        if self._source is not None:
            self._source.close()
        if self.channel is not None:
            self.channel.close()

    def _exit_status(self, body: bytes) -> bool:
        try:
            value = Reader(body).u32()
        except WireError:
            return False
        if not self._exited and not self._ended:
            self._exited = True
            self._said.exit(value)
        return True

    # Ends

    def _write_failed(self) -> None:
        """As OpenSSH: a command that writes on, as `yes`, is to find out that nobody reads."""
        channel = self.channel
        if channel is not None and not channel.eof_received and "OpenSSH" in self._engine.facts().server_version:
            channel.request(b"eow@openssh.com")

    def _end_when_done(self) -> None:
        if self._errors is None or self._errors.done:
            if self._leaving:
                self._end()
            else:
                super()._end_when_done()

    def _end(self) -> None:
        if self._window_bytes:
            WindowBudget.of(self._engine).give_back(self._window_bytes, large=self._large)
            self._window_bytes = 0
        if self._hung_up and not self._ended:
            self._ended = True
            self._release()
        super()._end()

    def _release(self) -> None:
        super()._release()
        if self._timer is not None:
            self._timer.cancel()
        if self._errors is not None:
            self._errors.close()
        for descriptor in (self._stderr, self._terminal):
            if descriptor is not None:
                give_back(descriptor)
        self._stderr = self._terminal = None

    # What the user types, and is told

    def _translation(self) -> Translation | None:
        return None if self._escapes is None else self._translate

    def _translate(self, typed: memoryview) -> bytes:
        """Of more escapes than are obeyed in a second, and of those of whose text nobody reads any, nothing is left."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._escapes_until_s:
            self._escapes_left, self._escapes_until_s = ESCAPES_PER_S, now_s + 1
        sent = bytearray()
        for piece in self._escapes.feed(typed) if self._escapes is not None else ():
            if isinstance(piece, bytes):
                sent += piece
            elif piece is Action.CLOSE:
                self._obey(piece)
                break
            elif self._escapes_left and self._own_bytes < MAX_OWN_BYTES:
                self._escapes_left -= 1
                self._obey(piece)
        return bytes(sent)

    def _obey(self, action: Action | Unavailable) -> None:
        character = self._message.escape_character
        if isinstance(action, Unavailable):
            self._show(escapes.unavailable(character, action))
            return
        if action in (Action.BREAK, Action.REKEY) and self._engine.paused:
            return  # no window bounds a break, and new keys hold everybody up who has to send
        self._show(escapes.echo(character, action))
        match action:
            case Action.CLOSE:
                self._leave()
            case Action.BREAK if self.channel is not None:
                self.channel.request(b"break", u32(BREAK_MS))
            case Action.REKEY:
                self._escapes_left = 0  # meanwhile everybody's packets are held back
                self._engine.rekey()
            case Action.LIST:
                self._show(self._said.info(b"channels"))
            case Action.INFO:
                self._show(self._said.info(b"connection"))
            case Action.HELP:
                self._show(escapes.help_text(character))

    def _leave(self) -> None:
        """`~.`: the user wants to go, and waits neither for the server nor for what stdout has still to take."""
        self._leaving = True
        self._give_up()
        if self._sink is not None:
            self._sink.close()
        self._timer = asyncio.get_running_loop().call_later(LEAVE_S, self._end)
        if self._errors is not None:
            self._errors.finish()

    def _tell(self, words: str) -> None:
        """A line of ours on the client's stderr; its terminal may be raw."""
        self._show(words.encode() + b"\r\n")

    def _show(self, text: bytes) -> None:
        if text and self._errors is not None and self._own_bytes < MAX_OWN_BYTES:
            self._own_bytes += len(text)
            self._errors.write(memoryview(text))

    def _errors_consumed(self, count: int) -> None:
        """Texts of ours took nothing of the channel's window."""
        own = min(count, self._own_bytes)
        self._own_bytes -= own
        if self.channel is not None:
            self.channel.consumed(count - own)


def _nothing() -> None:
    """stderr takes no more: what comes is dropped, and stdout goes on."""


def _signal_name(body: bytes) -> str:
    """Of an exit-signal (RFC 4254 section 6.10), safe to show."""
    try:
        return printable(Reader(body).string(), 80)
    except WireError:
        return "?"
