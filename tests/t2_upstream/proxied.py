"""Proxy clients of an upstream: the real `ssh -O proxy`, and one that says what it is told, as a PuTTY if need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mux.protocol.messages import Proxy, ProxyReady
from mux.protocol.packets import PROXY, Framing
from mux.protocol.wire import string, u32
from mux.upstream.relay import Relay
from tests.support.sshd import HOST, program

from .riding import DEADLINE_S, Done, Raw, Ride

WINDOW_BYTES = 2 << 20
PACKET_BYTES = 32768


async def proxy(ride: Ride, *arguments: str, data: bytes | None = None) -> Done:
    """`ssh -O proxy ARGUMENTS`, the host among them."""
    return await ride.ssh("-O", "proxy", *arguments, data=data)


async def start(ride: Ride, *arguments: str) -> asyncio.subprocess.Process:
    """`ssh -O proxy ARGUMENTS`, started, with pipes; it is the caller's to wait for."""
    return await asyncio.create_subprocess_exec(
        program("ssh"),
        *("-F", str(ride.sshd.ssh_config), "-S", ride.path, "-O", "proxy", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ride.sshd.environment(),
    )


async def works(ride: Ride) -> bool:
    """Whether the connection serves everybody else."""
    done = await ride.ssh(HOST, "echo still here")
    return (done.code, done.out) == (0, b"still here\n") and ride.upstream.engine.lost is None


def relays(ride: Ride) -> list[Relay]:
    """Those that serve somebody."""
    return [client.relay for client in ride.upstream.clients if client.relay is not None]


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet to the client."""

    kind: int
    body: bytes

    def number(self, index: int = 0) -> int:
        """The uint32 at this place."""
        return int.from_bytes(self.body[4 * index : 4 * index + 4], "big")


class Proxied:
    """A raw client that speaks the connection protocol."""

    def __init__(self, raw: Raw, framing: Framing = PROXY) -> None:
        self._raw = raw
        self._framing = framing
        self._rest = b""
        self.hung_up = False

    async def write(self, data: bytes) -> None:
        """Bytes, as they are; it is no matter whether they are still wanted."""
        try:
            await self._raw.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.hung_up = True

    async def say(self, kind: int, *parts: bytes) -> None:
        """A packet."""
        await self.write(self._framing.pack(kind, b"".join(parts)))

    async def hear(self) -> Packet | None:
        """The next packet; None when the upstream has hung up."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE_S):
            while (frame := self._framing.next(memoryview(self._rest), 0)) is None:
                try:
                    data = await loop.sock_recv(self._raw.socket, 1 << 20)
                except ConnectionResetError:
                    data = b""
                if not data:
                    self.hung_up = True
                    return None
                self._rest += data
        self._rest = self._rest[frame.end :]
        return Packet(frame.kind, bytes(frame.payload))

    async def hear_kind(self, kind: int) -> Packet:
        """The next packet of this kind, others dropped."""
        while (packet := await self.hear()) is not None:
            if packet.kind == kind:
                return packet
        raise AssertionError(f"hung up before a packet {kind}")

    async def last_words(self) -> str:
        """Why it hung up, by its DISCONNECT; empty when it did not say."""
        text = b""
        while (packet := await self.hear()) is not None:
            if packet.kind == 1:
                length = packet.number(1)
                text = packet.body[8 : 8 + length]
        return text.decode()

    async def open_session(self, number: int = 0, window: int = WINDOW_BYTES) -> bytes:
        """Open a session; returns its number, as this client has to write it."""
        await self.say(90, string(b"session"), u32(number), u32(window), u32(PACKET_BYTES))
        return u32((await self.hear_kind(91)).number(1))

    async def execute(self, command: bytes, number: int = 0, window: int = WINDOW_BYTES) -> bytes:
        """Open a session and run something in it."""
        session = await self.open_session(number, window)
        await self.say(98, session, string(b"exec"), b"\1", string(command))
        await self.hear_kind(99)
        return session


@asynccontextmanager
async def proxied(ride: Ride) -> AsyncIterator[Proxied]:
    """A raw client in proxy mode; it hangs up at the end."""
    with await ride.raw() as raw:
        await raw.greet()
        assert await raw.ask(Proxy(0)) == ProxyReady(0)
        yield Proxied(raw)
