"""One control client: what it asks, and what it is told.

One rule: nothing here waits but the task of a request, and that waits for the server or a person, never for a client.
Input is read in small pieces, one per turn of the loop, and what is not read is not held; output goes out as far as the
socket takes it, and a client that does not read its answers is not read from. What a client may make us hold is bounded
by the constants below, each wait for it by a deadline.

The bytes are `mux.protocol.control`'s business, what is asked for that of `requests.py`. Imported by `upstream.py`.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mux.errors import LocalProtocolError, RemoteProtocolError, SharingError, printable
from mux.protocol.control import ControlServer, NeedDescriptors, Requested, Signal, State
from mux.protocol.messages import (
    ExitMessage,
    Failure,
    Hello,
    InfoRequest,
    NewSession,
    OpenForward,
    PermissionDenied,
    Proxy,
    ProxyReady,
    Reply,
    Request,
    SessionMessage,
    StdioForward,
    StopListening,
    Terminate,
    TtyAllocFail,
)

from . import commandlines, status
from .relay import Relay
from .requests import AT_ONCE, DENIED, IN_A_TASK, Denied, Descriptors, RequestRefused
from .unsent import Unsent
from .watching import Watch

if TYPE_CHECKING:
    from .sessions import Session
    from .stdio import StdioForwarding
    from .upstream import Upstream

READ_BYTES: Final = 2048  # more than an ordinary client says in all; a flood of requests is served in small portions
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(16 * array.array("i").itemsize)  # of descriptors; nobody needs more than 3
REQUESTS_PER_PORTION: Final = 32  # ssh makes 2 or 3; `ssh -L ... -L ...` one more for each
PORTION_S: Final = 0.02  # a flood of requests is slowed to 1600 a second, which cost some 2 % of a core
TELLING_SHARE: Final = 0.05  # of the loop's time for the texts a client asks for: 0.3 ms each, of 300 riders 9 ms
MAX_UNSENT_BYTES: Final = 64 << 10  # answers it has not read; then it is not read from until it has
HELLO_DEADLINE_S: Final = 30.0  # a silent connection holds the persist timer; a client greets before it looks
REST_DEADLINE_S: Final = 10.0  # for the rest of a request, or its descriptors, which a client sends without a gap
SURPLUS_DEADLINE_S: Final = 10.0  # for all that a client without a place may ask for: that we live, that we end
FLUSH_DEADLINE_S: Final = 10.0  # for the last bytes to a client, which then is closed

RIDES: Final = NewSession | StdioForward | OpenForward | Proxy  # what takes a place on the connection
FULL: Final = "too many clients share this connection"  # to one that has none

log = logging.getLogger(__name__)


class _Core(ControlServer):
    """The protocol's machine, which also tells how much it holds."""

    @property
    def held_bytes(self) -> int:
        return len(self._input)


class Client:
    """A control connection. Alive from `start` until `gone` is set; the upstream forgets it then.

    pid, uid     of the process behind it, by the kernel's word
    command      its command line, for lists; empty for the first moments
    since_s      when it came, by the monotonic clock
    purpose      what it does here, for lists: "control", "session", "stdio forward", "proxy"
    session      the session it opened, or None
    stream       its stdio forwarding, or None
    relay        its proxy mode, or None
    software     what it calls itself: OpenSSH's do not
    opening      a session is being opened: what it says waits until its number is told
    surplus      there are too many already: it is answered for a moment, and rides on nothing
    """

    software = ""

    def __init__(
        self, upstream: Upstream, connection: socket.socket, *, pid: int, uid: int, surplus: bool = False
    ) -> None:
        self.upstream = upstream
        self.pid = pid
        self.uid = uid
        self.surplus = surplus
        self.command = ""
        self.since_s = self._asked_s = time.monotonic()
        self.session: Session | None = None
        self.stream: StdioForwarding | None = None
        self.relay: Relay | None = None
        self.held_bytes = 0
        self.gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._core = _Core()
        self._unsent = Unsent()
        self._watch = Watch(connection.fileno(), self._readable, self._flush)
        self._task: asyncio.Task[None] | None = None
        self._early: list[Callable[[int], SessionMessage]] = []  # said before the client knew its session's number
        self.opening = False
        self._ended = False
        self._finishing = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def purpose(self) -> str:
        if self.relay is not None:
            return "proxy"
        if self.stream is not None:
            return "stdio forward"
        return "control" if self.session is None else "session"

    @property
    def idle_since_s(self) -> float | None:
        """Since when it has not asked for anything, by the monotonic clock; None while it rides or waits."""
        return self._asked_s if self.purpose == "control" and self._task is None else None

    def start(self) -> None:
        """Greet, and begin to listen."""
        self.upstream.tally.clients += 1
        self._socket.setblocking(False)
        self._set_timer("greeting", HELLO_DEADLINE_S, self.drop, "it did not greet in time")
        if self.surplus:
            self._set_timer("surplus", SURPLUS_DEADLINE_S, self.drop, "there is no place for it")
        self._timers["command"] = commandlines.look_up(self.pid, self._command_known)
        self._watch.read(True)
        self._flush()

    def close(self) -> None:
        """Hang up at once, and let go of everything. Idempotent."""
        if self.gone.is_set():
            return
        self.gone.set()
        self._watch.stop()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._task is not None:
            self._task.cancel()
        self._core.receive(b"")
        self._close_surplus()
        self._hold(0)
        if self.relay is None:
            self._socket.close()
        for rider in (self.session, self.stream, self.relay):
            if rider is not None:
                rider.hang_up()
        self.upstream.left(self)

    def dismiss(self, reason: str) -> None:
        """Hang up, since the connection ends for `reason`: which OpenSSH's clients cannot be told."""
        self.close()

    def drop(self, reason: str) -> None:
        """Hang up on a client that broke a rule."""
        if not self.gone.is_set():
            log.info("the client of process %d is dropped: %s", self.pid, reason)
            self.upstream.tally.dropped += 1
            self.close()

    def finish(self) -> None:
        """Hang up once everything is sent."""
        if not self.gone.is_set():
            self._finishing = True
            self._listen_no_more()
            self._set_timer("flush", FLUSH_DEADLINE_S, self.close)
            self._flush()

    def exit(self, value: int) -> None:
        """The remote command has ended. What it wrote may still be under way, and so the connection stays."""
        self._say(lambda number: ExitMessage(number, value))

    def tty_failed(self) -> None:
        """The server gave no terminal; the client leaves raw mode."""
        self._say(TtyAllocFail)

    def ended(self) -> None:
        """The channel is closed, and all output written: a client takes the end of the connection for that."""
        self._ended = True
        if not self.opening:
            self.finish()

    def info(self, name: bytes) -> bytes:
        """The text of an `InfoRequest`, which a session shows for an escape; empty if there is none."""
        return status.info_text(self.upstream, name) or b""

    def _say(self, message: Callable[[int], SessionMessage]) -> None:
        if self.opening:
            self._early.append(message)
        elif not self.gone.is_set() and self._core.session_id is not None:
            try:
                self._core.send(message(self._core.session_id))
            except LocalProtocolError as error:  # a server that tells two exit statuses; the client would die of it
                log.info("not told to process %d: %s", self.pid, error)
            self._flush()

    # What comes in

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                READ_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            return self.close()
        self._core.receive(data, _descriptors(ancillary))
        if flags & socket.MSG_CTRUNC:
            return self.drop("more descriptors came with its bytes than there is room for")
        self._advance()

    def _advance(self) -> None:
        """Serve what has come, as far as it goes: of the texts, which cost much, one at a time."""
        started_s = self._loop.time()
        told = False
        try:
            while not told:
                event = self._core.next_event()
                if isinstance(event, Requested):
                    self._clear_timer("rest")
                    if not self._begin(event):
                        break
                    told = isinstance(event.message, InfoRequest)
                elif isinstance(event, Hello):
                    self._clear_timer("greeting")
                else:
                    break
        except RemoteProtocolError as error:
            return self.drop(str(error))
        if self.gone.is_set():
            return
        self._close_surplus()
        if event is Signal.ENDED:
            return self.close()
        self._hold(self._core.held_bytes)
        if self.gone.is_set():
            return
        if not isinstance(event, NeedDescriptors) and not (event is Signal.NEED_DATA and self.held_bytes):
            self._clear_timer("rest")
        elif "rest" not in self._timers:
            self._set_timer("rest", REST_DEADLINE_S, self.drop, "the rest of its request did not come in time")
        self._flush()
        if told and not self.gone.is_set():
            self._pause(max(PORTION_S, (self._loop.time() - started_s) / TELLING_SHARE))

    def _close_surplus(self) -> None:
        Descriptors(self._core.descriptors_to_close()).close()

    def _begin(self, event: Requested) -> bool:
        """Serve a request; True when it is answered, False when that takes a task."""
        self._asked_s = time.monotonic()
        handler = AT_ONCE.get(type(event.message))
        if handler is not None:
            try:
                self._core.send(handler(self, event.message))
            except Exception:
                self._fault()
                return False
            return True
        if not isinstance(event.message, StopListening | Terminate):
            self.upstream.lifetime.rode()
        descriptors = Descriptors(event.descriptors)
        self._task = self._loop.create_task(self._serve(event.message, descriptors))
        # Not in the task, which never begins if the client is found to have gone in this turn of the loop.
        self._task.add_done_callback(lambda _: descriptors.close())
        return False

    async def _serve(self, request: Request, descriptors: Descriptors) -> None:
        """Answer a request that may have to wait. Whatever goes wrong in it is this client's."""
        number = request.request_id
        reply: Reply
        last = False
        try:
            if self.surplus and isinstance(request, RIDES):
                raise RequestRefused(FULL.encode(), last=True)
            reply = await IN_A_TASK[type(request)](self, request, descriptors)
        except Denied:
            reply = PermissionDenied(number, DENIED)
        except RequestRefused as refusal:
            reply, last = Failure(number, refusal.reason), refusal.last
        except SharingError as error:
            reply = Failure(number, printable(str(error)).encode())
        except Exception:
            return self._fault()
        if self.gone.is_set():
            return
        self._task = None
        self._answer(reply)
        if last:
            self.finish()

    def _fault(self) -> None:
        """In an exception that nobody expected: it costs this client, and nobody else."""
        log.exception("a request of process %d could not be served", self.pid)
        self.drop("its request met with a fault of ours")

    def _answer(self, reply: Reply) -> None:
        self._core.send(reply)
        self.opening = False
        early, self._early = self._early, []
        for message in early:
            self._say(message)
        if isinstance(reply, ProxyReady):
            self._listen_no_more()
            self._flush()
        elif self._ended:
            self.finish()
        else:
            self._advance()

    # What goes out

    def _flush(self) -> None:
        """Send what the socket takes now, and the rest when it takes more."""
        if self.gone.is_set():
            return
        pieces = self._core.data_to_send()
        for data, _ in pieces:
            self._unsent.put(data)
        try:
            self._unsent.send(self._socket)
        except OSError:
            return self.close()
        waiting = self._unsent.queued_bytes
        self._watch.write(waiting > 0)
        if not waiting and self._finishing:
            self.close()
        elif not waiting and self._core.state is State.PROXY:
            self._hand_over()
        elif self._core.state is not State.PROXY and not self._finishing:
            self._pace(len(pieces))

    def _pace(self, answered: int) -> None:
        """Read on, unless the client asks faster than is fair to others, or does not read the answers."""
        if answered >= REQUESTS_PER_PORTION:
            self._pause(PORTION_S * answered / REQUESTS_PER_PORTION)
        elif "pace" not in self._timers:
            self._watch.read(self._unsent.queued_bytes <= MAX_UNSENT_BYTES)

    def _pause(self, pause_s: float) -> None:
        self._watch.read(False)
        self._set_timer("pace", pause_s, self._advance)

    def _listen_no_more(self) -> None:
        self._clear_timer("pace")  # at whose end it would be read from again
        self._watch.read(False)

    def _hand_over(self) -> None:
        """From here on the socket carries packets of the connection protocol, and is the relay's."""
        self._watch.write(False)
        self.relay = Relay(self.upstream, self._socket, self._core.take_rest(), self.close)
        self._close_surplus()

    # Timers, limits

    def _set_timer(self, name: str, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        def fire() -> None:
            self._timers.pop(name, None)
            action(*arguments)

        self._clear_timer(name)
        self._timers[name] = self._loop.call_later(delay_s, fire)

    def _clear_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _hold(self, count: int) -> None:
        more, self.held_bytes = count - self.held_bytes, count
        if more:
            self.upstream.hold(self, more)

    def _command_known(self, command: str) -> None:
        self.command = command


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)
