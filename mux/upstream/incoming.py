"""Channels that the server opens: whose they are, and the owner's agent.

One rule: nothing the server opens reaches anything on this side unless somebody here asked for it before, by a
forwarding, or by a session with -A or -X that the owner's options allow. Whoever asked has a *claim*: it is looked up
by what the server names (listen address and port, path), in one synchronous step with the packet. Whatever fails is
refused to the server with the reason; a channel of a kind nobody claims is refused by the engine.

Claims are for `forwards.py`, and for `relay.py` on behalf of a proxy client. Sessions ask `agent` and `x11`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from mux.errors import RemoteProtocolError, SharingError, WireError
from mux.protocol.connection import Message, OpenFailure
from mux.protocol.messages import UNIX_SOCKET_PORT
from mux.protocol.wire import Reader, string, u32

from . import targets
from .channels import LiveChannel
from .pumps import Stream
from .tasks import Tasks
from .x11 import X11

if TYPE_CHECKING:
    from .engine import Engine, IncomingOpen
    from .settings import Settings

FORWARDED_TCPIP: Final = b"forwarded-tcpip"
FORWARDED_STREAMLOCAL: Final = b"forwarded-streamlocal@openssh.com"
AGENT: Final = b"auth-agent@openssh.com"
X11_KIND: Final = b"x11"

AGENT_WINDOW_BYTES: Final = 64 << 10  # OpenSSH's (CHAN_X11_WINDOW_DEFAULT); an answer of an agent has a few KiB
MAX_CONNECTING: Final = 64  # targets that are being connected to; a server that opens more is refused more
MAX_AGENTS: Final = 64  # connections to the owner's agent at once; one `ssh` on the server has one

Key = tuple[bytes, int] | bytes | None  # (listen host, port), a path, or None where the server names nothing
Taker = Callable[["IncomingOpen"], None]  # answers by `engine.send`: 91 or 92

log = logging.getLogger(__name__)


class Incoming:
    """Who gets what the server opens."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._claims: dict[tuple[bytes, Key], list[Taker]] = {}
        self._tasks = Tasks("a channel of the server")
        self._agents: set[Stream] = set()
        self._agent_asked = False
        self.x11 = X11(engine, settings, self.refuse)
        for kind in (FORWARDED_TCPIP, FORWARDED_STREAMLOCAL, AGENT, X11_KIND):
            engine.openers[kind] = self._opened

    def claim(self, kind: bytes, key: Key, taker: Taker) -> Callable[[], None]:
        """Have channels of this kind and key handed to `taker`; of several claims the latest has it.

        What is returned gives the claim up; it may be called more than once.
        """
        takers = self._claims.setdefault((kind, key), [])
        takers.append(taker)

        def give_up() -> None:
            if taker in takers:
                takers.remove(taker)
            if not takers and self._claims.get((kind, key)) is takers:
                del self._claims[kind, key]

        return give_up

    def agent(self) -> bool:
        """Whether a session may ask for the agent: the owner has ForwardAgent, and an agent. It is then expected."""
        if self._settings.forwarded_agent is not None:
            self._agent_asked = True
        return self._settings.forwarded_agent is not None

    def answer(self, incoming: IncomingOpen, taking: Coroutine[Any, Any, None]) -> None:
        """Await what answers an open; an error of it is the refusal. Of too many at a time the latest is refused.

        At the end of the connection it may be closed without having begun.
        """
        if len(self._tasks) >= MAX_CONNECTING:
            taking.close()
            return self.refuse(incoming, OpenFailure.RESOURCE_SHORTAGE, "too many connections are being opened")
        self._tasks.run(self._answer(incoming, taking), taking.close)

    def refuse(self, incoming: IncomingOpen, code: OpenFailure, text: str) -> None:
        """Answer an open with a refusal."""
        log.info("a channel of the server was refused: %s", text)
        failure = (u32(incoming.sender), u32(code), string(text.encode()), string(b""))
        self._engine.send(Message.CHANNEL_OPEN_FAILURE, *failure)

    def close(self) -> None:
        """The end: what is being connected is given up, what is connected is closed."""
        self._tasks.cancel()
        for agent in tuple(self._agents):
            agent.close()
        self.x11.close()

    async def _answer(self, incoming: IncomingOpen, taking: Coroutine[Any, Any, None]) -> None:
        try:
            await taking
        except RemoteProtocolError as error:
            self.refuse(incoming, OpenFailure.ADMINISTRATIVELY_PROHIBITED, str(error))
        except SharingError as error:
            self.refuse(incoming, OpenFailure.CONNECT_FAILED, str(error))
        except Exception:
            log.exception("a channel of the server could not be served")
            self.refuse(incoming, OpenFailure.CONNECT_FAILED, "it met with a fault")

    def _opened(self, incoming: IncomingOpen) -> bool:
        try:
            key = _key(incoming)
        except WireError as error:
            self.refuse(incoming, OpenFailure.CONNECT_FAILED, f"malformed request: {error}")
            return True
        takers = self._claims.get((incoming.kind, key)) or self._by_port_alone(incoming.kind, key)
        if takers:
            takers[-1](incoming)
        elif incoming.kind == AGENT and self._agent_asked:
            self._open_agent(incoming)
        elif incoming.kind == X11_KIND and self.x11.expected:
            self.x11.opened(incoming)
        else:
            self.refuse(incoming, OpenFailure.ADMINISTRATIVELY_PROHIBITED, "nobody here asked for it")
        return True

    def _by_port_alone(self, kind: bytes, key: Key) -> list[Taker] | None:
        """Some servers name the address they bound where they were told a name: then the port has to do."""
        if kind != FORWARDED_TCPIP or not isinstance(key, tuple):
            return None
        found = [takers for (kind_, key_), takers in self._claims.items() if kind_ == kind and _port(key_) == key[1]]
        return found[0] if len(found) == 1 else None

    def _open_agent(self, incoming: IncomingOpen) -> None:
        path = self._settings.forwarded_agent
        if path is None or len(self._agents) >= MAX_AGENTS:
            return self.refuse(incoming, OpenFailure.CONNECT_FAILED, "there is no agent")
        self.answer(incoming, self._join_agent(incoming, path))

    async def _join_agent(self, incoming: IncomingOpen, path: str) -> None:
        agent = await targets.connect(os.fsencode(path), UNIX_SOCKET_PORT)
        stream = Stream(agent, None, lambda: self._agents.discard(stream))
        self._agents.add(stream)
        accept(self._engine, incoming, stream, AGENT_WINDOW_BYTES).description = "agent"


def accept(engine: Engine, incoming: IncomingOpen, stream: Stream, window_bytes: int) -> LiveChannel:
    """Confirm a channel that ends in `stream`, which is closed if that fails."""
    try:
        return LiveChannel.accept(engine, incoming, stream, window_bytes=window_bytes)
    except BaseException:
        stream.close()
        raise


def _key(incoming: IncomingOpen) -> Key:
    reader = Reader(incoming.rest)
    if incoming.kind == FORWARDED_TCPIP:
        return reader.string(), reader.u32()
    return reader.string() if incoming.kind == FORWARDED_STREAMLOCAL else None


def _port(key: Key) -> int | None:
    return key[1] if isinstance(key, tuple) else None
