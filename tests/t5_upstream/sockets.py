"""Small servers and connections to the far ends of forwardings.

The rule: every socket has a deadline, and every server is closed with the test that made it.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 60.0


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := connection.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Raises AssertionError when the stream ends before."""
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        assert part, f"the stream ended after {data!r}, {count} bytes were due"
        data += part
    return data


def echo(connection: socket.socket) -> None:
    """Give everything back, and end when the peer has."""
    while part := connection.recv(1 << 18):
        connection.sendall(part)
    connection.shutdown(socket.SHUT_WR)


class Server:
    """Accepts connections, each served by a thread; a context manager.

    port      on 127.0.0.1, or 0 for a unix socket
    accepted  how many there were
    """

    def __init__(self, serve: Callable[[socket.socket], None] = echo, *, path: Path | None = None) -> None:
        self._serve = serve
        self.accepted = 0
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port: int = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(16)
            self.port = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and close every connection. Idempotent."""
        if self._listener.fileno() < 0:
            return
        # Closing alone would not wake the thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(DEADLINE_S)
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            connection.settimeout(DEADLINE_S)
            self._open.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError:
            return


@contextmanager
def connected(target: int | str | Path, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection to a port here, or to a unix socket."""
    if isinstance(target, int):
        connection = socket.create_connection((host, target), DEADLINE_S)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE_S)
        connection.connect(str(target))
    with connection:
        yield connection


def there_and_back(connection: socket.socket, data: bytes) -> bytes:
    """Send, end, and return what comes back up to the end; both at once, so that no buffer need hold it all."""

    def send() -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return read_all(connection)
    finally:
        sender.join(DEADLINE_S)


def echoes(target: int | str | Path, host: str = "127.0.0.1", size_bytes: int = 300_000) -> bool:
    """Whether an echo server answers at the far end."""
    data = os.urandom(size_bytes)
    with connected(target, host) as connection:
        return there_and_back(connection, data) == data


def refused(target: int | str | Path, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there."""
    try:
        with connected(target, host):
            return False
    except (ConnectionRefusedError, FileNotFoundError):
        return True


SOCKS_REPLY_BYTES = 8
GRANTED_4 = 0x5A
GRANTED_5 = 0x00


def socks4(connection: socket.socket, port: int, host: str = "") -> int:
    """CONNECT to 127.0.0.1, or by name as 4a. Returns the reply's code."""
    address = socket.inet_aton("0.0.0.1" if host else "127.0.0.1")
    request = struct.pack("!BBH4s", 4, 1, port, address) + b"user\0"
    connection.sendall(request + (host.encode() + b"\0" if host else b""))
    return read_exactly(connection, SOCKS_REPLY_BYTES)[1]


def socks5(connection: socket.socket, port: int, host: str = "127.0.0.1", *, by_name: bool = False) -> int:
    """CONNECT without authentication. Returns the reply's code."""
    connection.sendall(b"\x05\x01\x00")
    assert read_exactly(connection, 2) == b"\x05\x00"
    if by_name:
        address = b"\x03" + bytes([len(host)]) + host.encode()
    elif ":" in host:
        address = b"\x04" + socket.inet_pton(socket.AF_INET6, host)
    else:
        address = b"\x01" + socket.inet_aton(host)
    connection.sendall(b"\x05\x01\x00" + address + struct.pack("!H", port))
    version, code, _, kind = read_exactly(connection, 4)
    assert version == 5
    read_exactly(connection, {1: 4, 4: 16}[kind] + 2)
    return code
