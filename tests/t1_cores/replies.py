"""What an SFTP server says, byte for byte, and how a stream delivers it: for the tests of the client's side."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sshmuxfs.sftp.exchange import Exchange, Pending
from sshmuxfs.sftp.protocol import ATTRIBUTES, Attributes, Type

Extensions = Sequence[tuple[bytes, bytes]]


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", 1 + len(body), kind) + body


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def version(number: int = 3, extensions: Extensions = ()) -> bytes:
    pairs = b"".join(string(name) + string(value) for name, value in extensions)
    return packet(Type.VERSION, struct.pack(">I", number) + pairs)


def status(request_id: int, code: int = 0, text: bytes = b"") -> bytes:
    return packet(Type.STATUS, struct.pack(">II", request_id, code) + string(text) + string(b""))


def handle(request_id: int, value: bytes) -> bytes:
    return packet(Type.HANDLE, struct.pack(">I", request_id) + string(value))


def data(request_id: int, value: bytes) -> bytes:
    return packet(Type.DATA, struct.pack(">I", request_id) + string(value))


def attributes(request_id: int, value: Attributes) -> bytes:
    return packet(Type.ATTRS, struct.pack(">I", request_id) + ATTRIBUTES.put(value))


def names(request_id: int, *entries: tuple[bytes, Attributes]) -> bytes:
    body = struct.pack(">II", request_id, len(entries))
    for name, value in entries:
        body += string(name) + string(b"-rw-r--r-- ...") + ATTRIBUTES.put(value)
    return packet(Type.NAME, body)


def extended(request_id: int, body: bytes) -> bytes:
    return packet(Type.EXTENDED_REPLY, struct.pack(">I", request_id) + body)


class Stream:
    """A stream that delivers given bytes into the buffers an exchange names, and keeps account of where they went."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.now_s = 0.0
        self.into: dict[int, int] = {}  # bytes by the id of the object they were received into
        self.receives = 0

    def deliver(self, stream: bytes, most_bytes: int | None = None) -> list[Pending]:
        """Deliver all of it, at most `most_bytes` in one receive; return what completed."""
        completed: list[Pending] = []
        rest = memoryview(stream)
        while rest:
            taken = 0
            for buffer in self.exchange.receive_buffers():
                count = min(len(buffer), len(rest), (most_bytes or len(stream)) - taken)
                buffer[:count] = rest[:count]
                rest = rest[count:]
                taken += count
                self.into[id(buffer.obj)] = self.into.get(id(buffer.obj), 0) + count
            assert taken, "an exchange that names no room for the next byte would wait for ever"
            self.receives += 1
            completed += self.exchange.bytes_received(taken, self.now_s)
        return completed

    def received_into(self, owner: object) -> int:
        """How many bytes were received straight into `owner`."""
        return self.into.get(id(owner), 0)


def greeted(extensions: Extensions = ()) -> Exchange:
    """An exchange that has heard VERSION."""
    exchange = Exchange()
    Stream(exchange).deliver(version(3, extensions))
    return exchange
