"""A server that says what a test wants said, in the engine's place: for what no real one does on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from mux.protocol.connection import Packet
from mux.protocol.wire import u32
from mux.upstream.channels import LiveChannel
from mux.upstream.company import Company

THEIRS = 77  # the number of its end of every channel


class Server:
    """The engine's place: keeps what is sent, and says what a test wants said."""

    def __init__(self) -> None:
        self.paused = False
        self.brakes: set[Any] = set()
        self.company = Company()
        self.lost: str | None = None
        self.sent: list[tuple[int, bytes]] = []
        self.routes: dict[int, LiveChannel] = {}
        self.pauses_after_bytes: int | None = None
        self.version = "SSH-2.0-OpenSSH_9.2"
        self.rekeys = 0
        self.shortest_round_trip_s: float | None = None
        self.asked: list[bytes] = []  # global requests
        self._next = 10

    def add_route(self, route: LiveChannel) -> int:
        self._next += 1
        self.routes[self._next] = route
        return self._next

    def remove_route(self, number: int) -> None:
        del self.routes[number]

    def send(self, kind: int, *parts: bytes | memoryview) -> None:
        self.sent.append((kind, b"".join(parts)))
        if self.pauses_after_bytes is not None:
            self.pauses_after_bytes -= sum(map(len, parts))
            self.paused = self.pauses_after_bytes <= 0

    def send_all(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            self.send(*packet)

    def request(self, name: bytes, body: bytes, on_reply: Callable[[bool, bytes], None]) -> None:
        self.asked.append(name)
        on_reply(False, body)

    def say(self, number: int, kind: int, body: bytes = b"") -> None:
        self.routes[number].packet(kind, memoryview(body))

    def confirm(self, number: int, window: int = 1 << 20, packet: int = 32768) -> None:
        self.say(number, 91, u32(THEIRS) + u32(window) + u32(packet))

    def take(self) -> list[tuple[int, bytes]]:
        sent, self.sent = self.sent, []
        return sent

    def facts(self) -> SimpleNamespace:
        return SimpleNamespace(server_version=self.version)

    def rekey(self) -> None:
        self.rekeys += 1

    def resume(self, until_bytes: int | None = None) -> None:
        self.paused = False
        self.pauses_after_bytes = until_bytes
        for brake in list(self.brakes):
            brake.resume()


@dataclass(frozen=True)
class Incoming:
    kind: bytes = b"forwarded-tcpip"
    sender: int = THEIRS
    window_bytes: int = 1 << 20
    packet_bytes: int = 32768
    rest: bytes = b""


class End:
    """Keeps what a channel tells."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.channel: LiveChannel | None = None
        self.answer = True
        self.on_room: Callable[[], None] = lambda: None
        self.broken = False

    def opened(self, channel: LiveChannel) -> None:
        self.channel = channel
        self.said.append("opened")

    def data(self, stream: int, data: memoryview) -> None:
        if self.broken:
            raise ZeroDivisionError
        self.said.append((stream, bytes(data)))

    def eof(self) -> None:
        self.said.append("eof")

    def closed(self) -> None:
        self.said.append("closed")

    def request(self, name: bytes, want_reply: bool, body: bytes) -> bool:
        self.said.append((name, want_reply, body))
        return self.answer

    def room(self) -> None:
        self.said.append("room")
        self.on_room()

    def lost(self, reason: str) -> None:
        self.said.append(f"lost: {reason}")
