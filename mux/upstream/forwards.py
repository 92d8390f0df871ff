"""Local, dynamic and remote forwardings: what is open, for whoever asks, until it is closed or the connection ends.

One rule: a forwarding is its own name. The same one asked for again is there already, whoever asked first, and it stays
when that client goes: it is the connection's. Words and cases are those of OpenSSH's mux.c and channels.c.

A local one listens here and opens a channel for each connection; a remote one has the server listen, *claims* what the
server then opens (`incoming.py`), and connects to its target here. In both directions a dynamic one asks whoever comes,
by SOCKS, where to; the answer tells what became of it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mux.errors import ConnectionLost, SharingError, printable
from mux.protocol import harmless
from mux.protocol.connection import OpenFailure
from mux.protocol.messages import UNIX_SOCKET_PORT, Forward, ForwardKind
from mux.protocol.socks import Outcome, SocksServer
from mux.protocol.wire import Reader, string, u32

from . import targets
from .channels import OpenRefused
from .incoming import FORWARDED_STREAMLOCAL, FORWARDED_TCPIP, Incoming, Key, accept
from .listeners import Gate, Listener, bind_names, listen_tcp, listen_unix
from .passages import Passage, converse, converse_on, open_direct, permitted, tell
from .preamble import Preamble
from .pumps import Stream
from .tasks import Tasks

if TYPE_CHECKING:
    from .engine import Engine, IncomingOpen
    from .settings import Settings

MAX_FORWARDS: Final = 256  # two sockets each, of the descriptors the clients need
LONGEST_PLACE_BYTES: Final = 4096  # a path of Linux; names of hosts have less (ssh's own parser takes 1024)
REPLY_DEADLINE_S: Final = 30.0  # of the server to a global request, which makes it bind a socket and no more
SOCKS_DEADLINE_S: Final = 10.0  # a program sends its SOCKS request at once

_NAMES: Final[Mapping[int, str]] = {
    ForwardKind.LOCAL: "local",
    ForwardKind.REMOTE: "remote",
    ForwardKind.DYNAMIC: "dynamic",
}
_OUTCOMES: Final[Mapping[int, Outcome]] = {
    OpenFailure.ADMINISTRATIVELY_PROHIBITED: Outcome.FORBIDDEN,
    OpenFailure.CONNECT_FAILED: Outcome.REFUSED,
}

log = logging.getLogger(__name__)


class ForwardRefused(SharingError):
    """A forwarding that cannot be opened or closed; the message is what OpenSSH's clients expect to print."""


@dataclass(eq=False, slots=True)
class Standing:
    """A forwarding that is open.

    port          where it listens, chosen if it was asked for with 0; 0 for a path
    connections   how many there are through it now
    taken         how many there have been
    """

    forward: Forward
    port: int = 0
    connections: int = 0
    taken: int = 0
    close: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def chosen_port(self) -> int | None:
        """The port, when it was left to be chosen."""
        return self.port if self.forward.listen_port == 0 else None

    @property
    def dynamic(self) -> bool:
        return self.forward.kind == ForwardKind.DYNAMIC or (
            self.forward.kind == ForwardKind.REMOTE and self.forward.connect_port == 0
        )


class Forwards:
    """All forwardings of the connection; `standing` are those that are open, in the order they were opened."""

    def __init__(self, engine: Engine, settings: Settings, incoming: Incoming) -> None:
        self.standing: dict[Forward, Standing] = {}
        self.gate = Gate()
        self._engine = engine
        self._settings = settings
        self._incoming = incoming
        self._pending: dict[Forward, asyncio.Task[Standing]] = {}
        self._tasks = Tasks("a forwarded connection")
        self.streams: set[Stream] = set()
        self._closed = False

    def is_open(self, forward: Forward) -> bool:
        """Whether asking for this one changes nothing."""
        return forward in self.standing

    async def open(self, forward: Forward) -> int | None:
        """Open a forwarding, unless it is open; returns the port if it was to be chosen.

        It goes on opening when the caller is cancelled: it is not the caller's. Raises `ForwardRefused`.
        """
        if forward in self.standing:
            return self.standing[forward].chosen_port
        if forward not in self._pending:
            check(forward)
            if len(self.standing) + len(self._pending) >= MAX_FORWARDS:
                raise ForwardRefused(f"there are {MAX_FORWARDS} forwardings already")
            task = asyncio.ensure_future(self._open(forward))
            self._pending[forward] = task
            task.add_done_callback(functools.partial(self._opened, forward))
        return (await asyncio.shield(self._pending[forward])).chosen_port

    async def close(self, forward: Forward) -> None:
        """Close a forwarding that was opened with exactly these values; its connections stay.

        Raises `ForwardRefused` when there is none such.
        """
        standing = self.standing.pop(forward, None)
        if standing is None:
            raise ForwardRefused("port not forwarded")
        standing.close()

    async def open_configured(self) -> list[str]:
        """Open those of the configuration, all at once; returns what failed, in words.

        Raises `ForwardRefused` for the first of these when ExitOnForwardFailure says so.
        """
        results = await asyncio.gather(*map(self.open, self._settings.forwards), return_exceptions=True)
        failures = []
        for forward, result in zip(self._settings.forwards, results, strict=True):
            if isinstance(result, SharingError):
                failures.append(f"The {describe(forward)} could not be opened: {result}.")
            elif isinstance(result, BaseException):
                raise result
        if failures and self._settings.exit_on_forward_failure:
            raise ForwardRefused(failures[0])
        return failures

    def open_forwards(self) -> list[Forward]:
        """What is open, with the ports that were chosen, for lists."""
        return [
            forward._replace(listen_port=standing.port) if forward.listen_port == 0 else forward
            for forward, standing in self.standing.items()
        ]

    def close_all(self) -> None:
        """The end: no listener and no connection stays. The server is not told, since it is gone or will be."""
        self._closed = True
        for task in self._pending.values():
            task.cancel()
        self._tasks.cancel()
        for standing in self.standing.values():
            standing.close()
        self.standing.clear()
        for stream in tuple(self.streams):
            stream.close()

    def _opened(self, forward: Forward, task: asyncio.Task[Standing]) -> None:
        del self._pending[forward]
        if task.cancelled() or task.exception() is not None:
            return
        if self._closed:  # the end came in the step in which it was open
            task.result().close()
        else:
            self.standing[forward] = task.result()

    async def _open(self, forward: Forward) -> Standing:
        if forward.kind == ForwardKind.REMOTE:
            return await self._open_remote(forward)
        return await self._open_local(forward)

    # Local and dynamic

    async def _open_local(self, forward: Forward) -> Standing:
        standing = Standing(forward)
        path = forward.listen_host if forward.listen_port == UNIX_SOCKET_PORT else None
        options = self._settings
        try:
            if path is not None:
                sockets = [listen_unix(path, mask=options.stream_local_mask, unlink_first=options.stream_local_unlink)]
            else:
                names = bind_names(forward.listen_host, gateway_ports=options.gateway_ports)
                sockets = await listen_tcp(names, forward.listen_port, options.address_family)
            listener = Listener(sockets, self.gate, functools.partial(self._taken, standing), path)
        except (OSError, ValueError) as error:
            log.info("%s: %s", describe(forward), error)
            raise ForwardRefused("Port forwarding failed")
        standing.port = listener.port
        standing.close = listener.close
        return standing

    def _taken(self, standing: Standing, connection: socket.socket, origin: tuple[str, int]) -> None:
        passage = Passage(self._engine, self, standing)

        def turn_away() -> None:
            connection.close()
            passage.over()

        self._tasks.run(self._serve_local(passage, connection, origin), turn_away)

    async def _serve_local(self, passage: Passage, connection: socket.socket, origin: tuple[str, int]) -> None:
        """Connect one that came to a listener here, by a channel, to where the server is to connect."""
        stream: Stream | None = None
        core: SocksServer | None = None
        try:
            forward = passage.standing.forward
            host, port = forward.connect_host, forward.connect_port
            if passage.standing.dynamic:
                core = SocksServer()
                async with asyncio.timeout(SOCKS_DEADLINE_S):
                    wish = await converse(core, connection)
                host, port = wish.host, wish.port
            stream = passage.stream(connection, core)
            await open_direct(self._engine, stream, host, port, origin, passage.window_bytes)
        except BaseException as error:
            if core is not None and isinstance(error, OpenRefused):
                core.answer(_OUTCOMES.get(error.code, Outcome.FAILED))
                tell(connection, core)
            (connection if stream is None else stream).close()
            passage.over()
            if not isinstance(error, SharingError | TimeoutError | OSError):
                raise
            log.info("a connection through the %s failed: %s", describe(passage.standing.forward), error)

    # Remote

    async def _open_remote(self, forward: Forward) -> Standing:
        standing = Standing(forward)
        path = forward.listen_port == UNIX_SOCKET_PORT
        host = forward.listen_host if path else remote_bind_host(forward.listen_host)
        where = f"path {printable(host)}" if path else f"port {forward.listen_port}"
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_reply(ok: bool, body: bytes) -> None:
            # In the step in which the answer is read: what the server opens next may be in the same packet.
            if ok:
                self._stands(standing, host, body)
            if not answered.done():
                answered.set_result(ok)
            elif ok:
                standing.close()

        if path:
            self._engine.request(b"streamlocal-forward@openssh.com", string(host), on_reply)
        else:
            self._engine.request(b"tcpip-forward", string(host) + u32(forward.listen_port), on_reply)
        try:
            async with asyncio.timeout(REPLY_DEADLINE_S):
                if await answered:
                    return standing
        except TimeoutError:
            pass
        raise ForwardRefused(f"remote port forwarding failed for listen {where}")

    def _stands(self, standing: Standing, host: bytes, body: bytes) -> None:
        """The server listens: claim what it opens from now on."""
        forward = standing.forward
        key: Key
        if forward.listen_port == UNIX_SOCKET_PORT:
            kind, key = FORWARDED_STREAMLOCAL, host
            cancel, ended = b"cancel-streamlocal-forward@openssh.com", string(host)
        else:
            standing.port = forward.listen_port
            if standing.port == 0 and len(body) >= 4:
                standing.port = Reader(body).u32()
            kind, key = FORWARDED_TCPIP, (host, standing.port)
            cancel, ended = b"cancel-tcpip-forward", string(host) + u32(standing.port)
        give_up = self._incoming.claim(kind, key, functools.partial(self._came, standing))

        def close() -> None:
            give_up()
            if not self._closed:
                self._engine.request(cancel, ended, lambda ok, body: None)

        standing.close = close

    def _came(self, standing: Standing, incoming: IncomingOpen) -> None:
        """The server opens a channel for somebody who came to its listener."""
        if self.gate.full:
            text = f"there are {self.gate.limit} forwarded connections already"
            self._incoming.refuse(incoming, OpenFailure.RESOURCE_SHORTAGE, text)
        elif standing.dynamic:
            passage = Passage(self._engine, self, standing)
            self._tasks.run(self._serve_remote_dynamic(passage, incoming), passage.over)
        else:
            self._incoming.answer(incoming, self._serve_remote(standing, incoming))

    async def _serve_remote(self, standing: Standing, incoming: IncomingOpen) -> None:
        passage = Passage(self._engine, self, standing)
        try:
            connection = await targets.connect(standing.forward.connect_host, standing.forward.connect_port)
            channel = accept(self._engine, incoming, passage.stream(connection), passage.window_bytes)
            channel.description = describe(standing.forward)
        except BaseException:
            passage.over()
            raise

    async def _serve_remote_dynamic(self, passage: Passage, incoming: IncomingOpen) -> None:
        """The channel is confirmed first, since it has to say where it wants to go."""
        core = SocksServer()
        try:
            preamble = Preamble(self._engine, incoming, window_bytes=passage.window_bytes)
        except SharingError as error:
            passage.over()
            return self._incoming.refuse(incoming, OpenFailure.CONNECT_FAILED, str(error))
        try:
            preamble.channel.description = describe(passage.standing.forward)
            async with asyncio.timeout(SOCKS_DEADLINE_S):
                wish = await converse_on(core, preamble)
            if not permitted(wish, self._settings.permit_remote_open):
                core.answer(Outcome.FORBIDDEN)
                raise ConnectionLost(f"PermitRemoteOpen does not let it reach {printable(wish.host)} port {wish.port}")
            try:
                connection = await targets.connect(wish.host, wish.port)
            except ConnectionLost:
                core.answer(Outcome.REFUSED)
                raise
            core.answer(Outcome.CONNECTED)
            preamble.say(core.data_to_send())
            preamble.go_on(passage.stream(connection), core.take_rest())
        except (SharingError, TimeoutError) as error:
            log.info("a connection through the %s failed: %s", describe(passage.standing.forward), error)
            preamble.say(core.data_to_send())
            preamble.give_up()
            passage.over()
        except BaseException:
            preamble.give_up()
            passage.over()
            raise


def check(forward: Forward) -> None:
    """Raise `ForwardRefused` for what makes no sense, by the rules of mux.c, process_open_fwd, and for a place that a
    server might hang up over.
    """
    listens_on_path = forward.listen_port == UNIX_SOCKET_PORT
    places = (forward.listen_host, forward.connect_host)
    told = forward.listen_host if forward.kind == ForwardKind.REMOTE else forward.connect_host
    ports = (forward.listen_port, forward.connect_port)
    if (
        forward.kind not in _NAMES
        or any(port > 65535 and port != UNIX_SOCKET_PORT for port in ports)
        or (listens_on_path and (not forward.listen_host or forward.kind == ForwardKind.DYNAMIC))
        or (forward.kind == ForwardKind.LOCAL and forward.connect_port == 0)
        or (forward.kind != ForwardKind.DYNAMIC and not forward.connect_host)
        or any(b"\0" in place or len(place) > LONGEST_PLACE_BYTES for place in places)
        or not harmless.is_name(told)
    ):
        raise ForwardRefused("Invalid forwarding request")


def describe(forward: Forward) -> str:
    """A forwarding in words, as questions and lists have it."""
    listens = _place(forward.listen_host, forward.listen_port, "LOCALHOST")
    dynamic = forward.kind == ForwardKind.DYNAMIC or forward.connect_port == 0
    target = "*" if dynamic else _place(forward.connect_host, forward.connect_port, "")
    return f"{_NAMES.get(forward.kind, 'unknown')} forward {listens} -> {target}"


def remote_bind_host(host: bytes) -> bytes:
    """What the server is told to bind to (RFC 4254 section 7.1), for what the client sent."""
    return b"" if host == b"*" else host or b"localhost"


def _place(host: bytes, port: int, nowhere: str) -> str:
    return printable(host) if port == UNIX_SOCKET_PORT else f"{printable(host) or nowhere}:{port}"
