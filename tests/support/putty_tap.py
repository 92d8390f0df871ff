"""A man in the middle of PuTTY's bare protocol: every byte is kept, in the order in which both directions passed here.

The rule: what a downstream must never send is looked for in the bytes themselves, by `Conversation.check`, and not in
what the code under test believes to have sent. The tap may cut what goes down into single bytes.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from mux.protocol.bare import LARGEST_UP_BYTES, PREFIX
from mux.protocol.connection import Message

READ_BYTES = 1 << 16
# With header, the longest padding (255) and MAC (64) still no more than the 32768 bytes that a PuTTY reads ahead.
SAFE_PACKET_BYTES = 32768 - 13 - 1 - 255 - 64
# What a downstream of a PuTTY may send, of all there is.
ALLOWED = {
    Message.CHANNEL_OPEN,
    Message.CHANNEL_OPEN_FAILURE,
    Message.CHANNEL_WINDOW_ADJUST,
    Message.CHANNEL_DATA,
    Message.CHANNEL_CLOSE,
    Message.CHANNEL_REQUEST,
    Message.CHANNEL_SUCCESS,
    Message.CHANNEL_FAILURE,
}


@dataclass
class Direction:
    """The packets of one direction, as far as they are complete."""

    data: bytearray = field(default_factory=bytearray)
    greeting: bytes | None = None
    packets: list[tuple[int, bytes]] = field(default_factory=list)

    def take(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the packets that these bytes completed."""
        self.data += data
        if self.greeting is None:
            end = self.data.find(b"\n") + 1
            if not end:
                return []
            self.greeting = bytes(self.data[:end])
            del self.data[:end]
        fresh = []
        while len(self.data) >= 5:
            (length,) = struct.unpack_from(">I", self.data)
            if len(self.data) < 4 + length:
                break
            fresh.append((self.data[4], bytes(self.data[5 : 4 + length])))
            del self.data[: 4 + length]
        self.packets += fresh
        return fresh


class Conversation:
    """One client's connection: what passed, and what was wrong with what went up."""

    def __init__(self) -> None:
        self.up = Direction()
        self.down = Direction()
        self.ended = False  # by the downstream: all that it sent has been here
        self.wrong: list[str] = []
        self.numbers: list[int] = []  # the server's, of channels opened here
        self.down_data_bytes = 0
        self._untold_bytes = 0  # received by the downstream, and not given back
        self._window_bytes = 0  # what the downstream may send
        self._closed = False

    def went_up(self, data: bytes) -> None:
        """Nothing: the downstream has ended."""
        self.ended |= not data
        fresh = self.up.take(data)
        if (fresh or self.up.data) and self.up.greeting is not None and self.down.greeting is None:
            self.wrong.append("a packet before the upstream's line")
        for kind, body in fresh:
            self._judge(kind, body)

    def went_down(self, data: bytes) -> None:
        for kind, body in self.down.take(data):
            if kind == Message.CHANNEL_OPEN_CONFIRMATION:
                _, number, self._window_bytes, _ = struct.unpack_from(">4I", body)
                self.numbers.append(number)
            elif kind == Message.CHANNEL_WINDOW_ADJUST:
                self._window_bytes += struct.unpack(">II", body)[1]
            elif kind == Message.CHANNEL_DATA:
                self.down_data_bytes += len(body) - 8
                self._untold_bytes += len(body) - 8
            elif kind == Message.CHANNEL_EXTENDED_DATA:
                self._untold_bytes += len(body) - 12

    def _judge(self, kind: int, body: bytes) -> None:
        wrong = self.wrong.append
        if kind not in ALLOWED:
            wrong(f"a packet of type {kind}")
        if len(body) + 1 > LARGEST_UP_BYTES:
            wrong(f"a packet of {len(body) + 1} bytes")
        if self._closed:
            wrong(f"a packet of type {kind} behind CLOSE")
        if kind == Message.CHANNEL_OPEN:
            _, window, packet = struct.unpack(">3I", body[-12:])
            if not (2 << 20 <= window <= 8 << 20 and packet <= SAFE_PACKET_BYTES):
                wrong(f"a window of {window} and packets of {packet} bytes")
        elif kind != Message.CHANNEL_OPEN_FAILURE and struct.unpack_from(">I", body)[0] not in self.numbers:
            wrong(f"a packet of type {kind} to a channel that is not ours")
        if kind == Message.CHANNEL_DATA:
            self._window_bytes -= len(body) - 8
            if self._window_bytes < 0:
                wrong("data beyond the window")
        elif kind == Message.CHANNEL_WINDOW_ADJUST:
            self._untold_bytes -= struct.unpack(">II", body)[1]
            if self._untold_bytes + len(self.down.data) < 0:  # a packet may be used up as it arrives
                wrong("more room than was used")
        self._closed |= kind == Message.CHANNEL_CLOSE

    def check(self) -> None:
        """Raise AssertionError for anything that must never go up, and for a greeting that is not one."""
        assert not self.wrong, self.wrong
        greeting = self.up.greeting or b""
        assert greeting == b"" or (greeting.startswith(PREFIX + b"2.0-sshmuxfs") and greeting.endswith(b"\r\n"))

    def sent(self) -> Counter[int]:
        """How many packets of each type went up."""
        return Counter(kind for kind, _ in self.up.packets)


class Tap:
    """Listens at `path` and hands on to `target`, once constructed; a context manager."""

    def __init__(self, path: str, target: str, *, piece_bytes: int | None = None) -> None:
        self.path = path
        self.conversations: list[Conversation] = []
        self._target = target
        self._piece_bytes = piece_bytes
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.unlink(self.path)
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._sockets):
            each.close()

    def check(self) -> None:
        """`Conversation.check` of all."""
        assert self.conversations
        for conversation in self.conversations:
            conversation.check()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                server.connect(self._target)
                conversation = Conversation()
                self.conversations.append(conversation)
                lock = threading.Lock()
                self._start(self._pass_on, client, server, conversation.went_up, lock, None)
                self._start(self._pass_on, server, client, conversation.went_down, lock, self._piece_bytes)

    @staticmethod
    def _pass_on(
        source: socket.socket,
        sink: socket.socket,
        note: Callable[[bytes], None],
        lock: threading.Lock,
        piece_bytes: int | None,
    ) -> None:
        taken = True
        with suppress(OSError):
            while data := source.recv(READ_BYTES):
                with lock:
                    note(data)
                try:
                    for start in range(0, len(data) if taken else 0, piece_bytes or len(data)):
                        sink.sendall(data[start : start + (piece_bytes or len(data))])
                except OSError:  # it has gone; what the other end said last counts all the same
                    taken = False
        with lock:
            note(b"")
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
