"""What a control client can ask for, and how it is answered.

One rule: a handler returns the answer, or raises the refusal; nothing is sent here. Those that have to wait for the
server or a person run in a task of their client, which is cancelled when that goes; what it held is given back then.
Words and order are those of OpenSSH's mux.c, whose clients print them. Imported by `clients.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mux.errors import SharingError, printable
from mux.protocol.messages import (
    UNIX_SOCKET_PORT,
    Alive,
    AliveCheck,
    CloseForward,
    Forward,
    Info,
    InfoRequest,
    NewSession,
    Ok,
    OpenForward,
    Proxy,
    ProxyReady,
    RemotePort,
    Reply,
    Request,
    SessionOpened,
    StdioForward,
    StopListening,
    Terminate,
)

from . import status
from .channels import OpenRefused
from .forwards import check, describe
from .ports import give_back
from .sessions import Session
from .stdio import StdioForwarding

if TYPE_CHECKING:
    from .clients import Client

MAX_INFO_BYTES: Final = 200 << 10  # of a text: our own clients take no message above 256 KiB

REFUSED: Final = b"Session open refused by peer"
ONE_SESSION: Final = b"Multiple sessions not supported"
DENIED: Final = b"Permission denied"

log = logging.getLogger(__name__)


class RequestRefused(SharingError):
    """A request is answered with FAILURE and these words; with `last` the connection then closes, as OpenSSH's does."""

    def __init__(self, reason: bytes, *, last: bool = False) -> None:
        super().__init__(printable(reason))
        self.reason = reason
        self.last = last


class Denied(SharingError):
    """The owner said no."""


class Descriptors:
    """Descriptors of a request, closed unless they were taken."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self._numbers = numbers

    def take(self) -> tuple[int, ...]:
        """All of them; they are the caller's from now on."""
        numbers, self._numbers = self._numbers, ()
        return numbers

    def close(self) -> None:
        for number in self.take():
            give_back(number)


def _alive(client: Client, message: AliveCheck) -> Reply:
    return Alive(message.request_id, os.getpid())


def _info(client: Client, message: InfoRequest) -> Reply:
    text = status.info_text(client.upstream, message.name)
    if text is None:
        return Info(message.request_id, False, b"info request type not supported")
    return Info(message.request_id, True, text[:MAX_INFO_BYTES])


async def _allow(client: Client, question: str) -> None:
    if not await client.upstream.allow(question):
        raise Denied(question)


async def _new_session(client: Client, message: NewSession, descriptors: Descriptors) -> Reply:
    if client.session is not None or client.stream is not None:
        raise RequestRefused(ONE_SESSION)
    await _allow(client, f"Allow shared connection to {client.upstream.settings.hostname}? ")
    client.opening = True
    try:
        client.session = await Session.open(
            client.upstream.engine,
            client.upstream.settings,
            message,
            descriptors.take(),
            client,
            client.upstream.incoming,
        )
    except OpenRefused as refusal:
        client.upstream.note_refusal()
        log.info("session of process %d: %s", client.pid, refusal)
        raise RequestRefused(REFUSED, last=True)
    client.upstream.note_session()
    return SessionOpened(message.request_id, client.session.number)


async def _stdio_forward(client: Client, message: StdioForward, descriptors: Descriptors) -> Reply:
    if client.session is not None or client.stream is not None:
        raise RequestRefused(ONE_SESSION)
    host = printable(message.connect_host)
    port = -2 if message.connect_port == UNIX_SOCKET_PORT else message.connect_port
    await _allow(client, f"Allow forward to [{host}]:{port}? ")
    client.opening = True
    try:
        client.stream = await StdioForwarding.open(
            client.upstream.engine,
            client.upstream.forwards.gate,
            message.connect_host,
            message.connect_port,
            descriptors.take(),
            client.ended,
        )
    except OpenRefused as refusal:
        log.info("stdio forward of process %d: %s", client.pid, refusal)
        raise RequestRefused(REFUSED, last=True)
    return SessionOpened(message.request_id, client.stream.number)


async def _open_forward(client: Client, message: OpenForward, _: Descriptors) -> Reply:
    forward = _forward_of(message)
    check(forward)
    if not client.upstream.forwards.is_open(forward):
        await _allow(client, f"Open {describe(forward)} on {client.upstream.settings.hostname}?")
    port = await client.upstream.forwards.open(forward)
    return Ok(message.request_id) if port is None else RemotePort(message.request_id, port)


async def _close_forward(client: Client, message: CloseForward, _: Descriptors) -> Reply:
    await client.upstream.forwards.close(_forward_of(message))
    return Ok(message.request_id)


async def _stop_listening(client: Client, message: StopListening, _: Descriptors) -> Reply:
    question = "Disable further multiplexing on shared connection to"
    await _allow(client, f"{question} {client.upstream.settings.hostname}? ")
    client.upstream.stop_listening()
    return Ok(message.request_id)


async def _terminate(client: Client, message: Terminate, _: Descriptors) -> Reply:
    await _allow(client, f"Terminate shared connection to {client.upstream.settings.hostname}? ")
    # The answer goes out in this turn of the loop, and the end begins in the next.
    asyncio.get_running_loop().call_soon(client.upstream.end, "disconnected by user")
    return Ok(message.request_id)


async def _proxy(client: Client, message: Proxy, _: Descriptors) -> Reply:
    if client.session is not None or client.stream is not None:
        raise RequestRefused(ONE_SESSION)
    await _allow(client, "Allow multiplex proxy connection? ")
    return ProxyReady(message.request_id)


def _forward_of(message: OpenForward | CloseForward) -> Forward:
    return Forward(message.kind, message.listen_host, message.listen_port, message.connect_host, message.connect_port)


AT_ONCE: Final[Mapping[type[Request], Callable[[Client, Any], Reply]]] = {
    AliveCheck: _alive,
    InfoRequest: _info,
}
IN_A_TASK: Final[Mapping[type[Request], Callable[[Client, Any, Descriptors], Awaitable[Reply]]]] = {
    NewSession: _new_session,
    StdioForward: _stdio_forward,
    OpenForward: _open_forward,
    CloseForward: _close_forward,
    StopListening: _stop_listening,
    Terminate: _terminate,
    Proxy: _proxy,
}
