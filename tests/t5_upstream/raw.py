"""A control client made by hand: what no real client does, and what the installed one cannot do yet.

The rule: it sends exactly what it is told, whole or in pieces, and says what came back; each wait has a deadline.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from mux.protocol.messages import (
    SERVER_MESSAGES,
    Alive,
    AliveCheck,
    ClientMessage,
    ExitMessage,
    Hello,
    NewSession,
    ServerMessage,
    SessionOpened,
    UnknownMessage,
    decode,
    encode,
)

DEADLINE_S = 60.0
Message = TypeVar("Message", bound=ServerMessage)
Piece = tuple[bytes, tuple[int, ...]]

GREETING = encode(Hello())


class Hangup(AssertionError):
    """The other end closed where a message was due."""


class Raw:
    """A connection to a control path; a context manager.

    extensions  of the holder's greeting, once it came
    """

    def __init__(self, path: str, *, greet: bool = True) -> None:
        """`greet` True sends our greeting, and awaits the holder's."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._data = b""
        self.extensions: tuple[tuple[bytes, bytes], ...] = ()
        try:
            self._socket.connect(path)
            if greet:
                self.send(GREETING)
                self.greeted()
        except BaseException:
            self.close()
            raise

    @classmethod
    def taken_over(cls, descriptor: int) -> Self:
        """A connection that another process greeted on; `descriptor` is this object's from here on."""
        raw = cls.__new__(cls)
        raw._socket = socket.socket(fileno=descriptor)
        raw._data = b""
        raw.extensions = ()
        return raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def greeted(self) -> None:
        """Await the holder's greeting."""
        self.extensions = self.expect(Hello).extensions

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """In one call, with the descriptors beside its first byte."""
        if not descriptors:
            self._socket.sendall(data)
            return
        sent = socket.send_fds(self._socket, [data], list(descriptors))
        # To send nothing to somebody who has gone is an error, too.
        if sent < len(data):
            self._socket.sendall(data[sent:])

    def offer(self, data: bytes) -> int:
        """Send what is taken at once; 0 when nothing is."""
        _, writable, _ = select.select([], [self._socket], [], 0)
        return self._socket.send(data, socket.MSG_DONTWAIT) if writable else 0

    def say(self, message: ClientMessage, descriptors: Sequence[int] = ()) -> None:
        """A message, then each descriptor with a byte of its own, as a real client hands them over."""
        self.send(encode(message))
        for descriptor in descriptors:
            self.send(b"\0", [descriptor])

    def message(self, deadline_s: float = DEADLINE_S) -> ServerMessage | UnknownMessage:
        """The next message. Raises Hangup, TimeoutError."""
        packet = self.packet(deadline_s)
        return decode(packet, SERVER_MESSAGES)

    def packet(self, deadline_s: float = DEADLINE_S) -> bytes:
        """The next length-prefixed packet, without its length."""
        until = time.monotonic() + deadline_s
        while len(self._data) < 4 or len(self._data) < 4 + int.from_bytes(self._data[:4], "big"):
            self._receive(until)
        length = int.from_bytes(self._data[:4], "big")
        packet, self._data = self._data[4 : 4 + length], self._data[4 + length :]
        return packet

    def _receive(self, until: float) -> None:
        self._socket.settimeout(max(0.001, until - time.monotonic()))
        try:
            part = self._socket.recv(1 << 18)
        except ConnectionResetError:
            part = b""
        if not part:
            raise Hangup(f"the other end closed; {self._data!r} was left")
        self._data += part

    def expect(self, kind: type[Message]) -> Message:
        message = self.message()
        assert isinstance(message, kind), f"{message} is no {kind.__name__}"
        return message

    def hung_up(self, deadline_s: float = DEADLINE_S) -> bool:
        """Whether the other end closes; whatever it says before is dropped."""
        until = time.monotonic() + deadline_s
        try:
            while True:
                self._receive(until)
        except Hangup:
            return True
        except TimeoutError:
            return False

    def alive(self) -> int:
        """The holder's pid, by its own word."""
        self.say(AliveCheck(7))
        return self.expect(Alive).pid


def session(request_id: int = 1, command: bytes = b"exit 3", **fields: object) -> NewSession:
    return NewSession(request_id, command=command, **fields)  # type: ignore[arg-type]


@contextmanager
def null() -> Iterator[list[int]]:
    """Three descriptors of /dev/null."""
    descriptors = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def pipes() -> Iterator[tuple[list[int], list[int]]]:
    """Three to hand over and our ends of them: ([stdin, stdout, stderr], [to write, to read, to read])."""
    stdin, to_write = os.pipe()
    out, stdout = os.pipe()
    err, stderr = os.pipe()
    given, kept = [stdin, stdout, stderr], [to_write, out, err]
    try:
        yield given, kept
    finally:
        for descriptor in (*given, *kept):
            os.close(descriptor)


def run(path: str, command: bytes = b"exit 3") -> int:
    """A whole session without input and output; its exit code."""
    with Raw(path) as raw, null() as descriptors:
        raw.say(session(command=command), descriptors)
        opened = raw.expect(SessionOpened)
        said = raw.expect(ExitMessage)
        assert said.session_id == opened.session_id
        assert raw.hung_up()
        return said.exit_value


def well(path: Path | str, pid: int) -> Callable[[], bool]:
    """Whether the holder at `path` is as it should be: it answers, and it serves a session."""

    def check() -> bool:
        with Raw(str(path)) as raw:
            return raw.alive() == pid and run(str(path)) == 3

    return check
