"""A TCP proxy on loopback that makes a distance: every byte arrives `one_way_s` later, in order, at a given rate.

One thread and one `select`, whose timeout is exact to microseconds (epoll's is in milliseconds): it sleeps until a
byte comes or falls due. What is under way is bounded: the proxy stops reading, and TCP holds the sender back. It
delays bytes, not TCP's own handshake or acknowledgements, and has no slow start: a session costs one round trip less
to open than over a real distance.

`DelayProxy` runs it in a process of its own: `python -m tests.support.delay_proxy` prints its port and ends with its
standard input.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from tests.support import processes

READ_BYTES = 1 << 18
# At a limited rate, bytes are handed on in pieces of this duration, so that a large read does not arrive as one lump.
PIECE_S = 0.002
MIN_PIECE_BYTES = 1500
# What may be under way beside rate * delay. Without a rate there is no such product: 32 MiB is 320 MB/s at 100 ms.
UNLIMITED_BYTES = 32 << 20
# With a rate this is the queue of the narrowest router: 1 MiB, as a home router has.
QUEUE_BYTES = 1 << 20
START_DEADLINE_S = 30.0


@dataclass(slots=True, eq=False)
class Line:
    """One direction of one connection: bytes under way from `source` to `sink`."""

    source: socket.socket
    sink: socket.socket
    delay_s: float
    rate: float | None
    under_way: deque[tuple[float, memoryview]] = field(default_factory=deque)
    under_way_bytes: int = 0
    free_at: float = 0.0
    ended: bool = False
    shut: bool = False

    @property
    def limit_bytes(self) -> int:
        return UNLIMITED_BYTES if self.rate is None else int(self.rate * self.delay_s) + QUEUE_BYTES

    @property
    def wants_bytes(self) -> bool:
        return not self.ended and self.under_way_bytes < self.limit_bytes

    @property
    def due_at(self) -> float | None:
        return self.under_way[0][0] if self.under_way else None

    def take(self, now: float) -> None:
        """Read once. The end of the stream travels as an empty piece."""
        try:
            data = self.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            self.under_way.append((max(now, self.free_at) + self.delay_s, memoryview(b"")))
            return
        self.under_way_bytes += len(data)
        view = memoryview(data)
        if self.rate is None:
            self.under_way.append((now + self.delay_s, view))
            return
        piece_bytes = max(MIN_PIECE_BYTES, int(self.rate * PIECE_S))
        for start in range(0, len(view), piece_bytes):
            piece = view[start : start + piece_bytes]
            self.free_at = max(now, self.free_at) + len(piece) / self.rate
            self.under_way.append((self.free_at + self.delay_s, piece))

    def give(self, now: float) -> None:
        """Write what is due, as far as the sink takes it."""
        while self.under_way and self.under_way[0][0] <= now:
            due_at, piece = self.under_way[0]
            if not piece:
                self.under_way.popleft()
                self.shut = True
                self.sink.shutdown(socket.SHUT_WR)
                return
            try:
                sent = self.sink.send(piece)
            except BlockingIOError:
                return
            self.under_way_bytes -= sent
            if sent < len(piece):
                self.under_way[0] = (due_at, piece[sent:])
                return
            self.under_way.popleft()


class Proxy:
    """The loop: accepts connections, joins each to the target by two lines, and serves them all."""

    def __init__(self, target_port: int, up_s: float, down_s: float, rate: float | None) -> None:
        self._target_port = target_port
        self._delays_s = (up_s, down_s)
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[Line, Line]] = []

    def serve(self, until_readable: int) -> None:
        """Run until the descriptor `until_readable` becomes readable or is closed at its other end."""
        while True:
            lines = [line for pair in self._pairs for line in pair]
            now = time.monotonic()
            writers = [line for line in lines if line.due_at is not None and line.due_at <= now]
            waiting = [line.due_at for line in lines if line.due_at is not None and line.due_at > now]
            sources: list[socket.socket | int] = [until_readable, self._listener]
            sources += [line.source for line in lines if line.wants_bytes]
            sinks = [line.sink for line in writers]
            timeout_s = min(waiting) - now if waiting else None
            readable, writable, _ = select.select(sources, sinks, [], timeout_s)
            if until_readable in readable:
                return
            if self._listener in readable:
                self._accept()
            self._move(set(readable), set(writable))

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except BlockingIOError:
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up_s, down_s = self._delays_s
        self._pairs.append((Line(near, far, up_s, self._rate), Line(far, near, down_s, self._rate)))

    def _move(self, readable: set[socket.socket | int], writable: set[socket.socket]) -> None:
        for pair in list(self._pairs):
            try:
                for line in pair:
                    if line.source in readable:
                        line.take(time.monotonic())
                    if line.sink in writable:
                        line.give(time.monotonic())
                if all(line.shut for line in pair):
                    self._drop(pair)
            except OSError:
                # Reset by one end: the other sees the connection end too.
                self._drop(pair)

    def _drop(self, pair: tuple[Line, Line]) -> None:
        self._pairs.remove(pair)
        for line in pair:
            line.source.close()


class DelayProxy:
    """A proxy to 127.0.0.1:`target_port` in its own process; a context manager.

    port  where it listens; `Sshd.via(proxy.port)` is a client configuration that goes through it
    """

    def __init__(self, target_port: int, one_way_s: float, *, rate: float | None = None) -> None:
        """`one_way_s`: the delay in each direction, half of the round trip; `rate`: bytes per second, each way."""
        command = [sys.executable, "-m", "tests.support.delay_proxy", str(target_port), "--one-way-s", str(one_way_s)]
        if rate is not None:
            command += ["--rate", str(rate)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=processes.environment("/nonexistent"),
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_DEADLINE_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            raise AssertionError(f"the delay proxy did not start; exit code {self._process.returncode}")
        self.port = int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing gets through, and nothing is closed."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it; its connections are closed. Idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(START_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="delay_proxy", description="a TCP proxy that delays")
    parser.add_argument("target_port", type=int)
    parser.add_argument("--one-way-s", type=float, required=True, help="delay towards the target, and back")
    parser.add_argument("--rate", type=float, help="bytes per second, each way")
    arguments = parser.parse_args()
    proxy = Proxy(arguments.target_port, arguments.one_way_s, arguments.one_way_s, arguments.rate)
    print(proxy.port, flush=True)
    proxy.serve(sys.stdin.fileno())
    os._exit(0)


if __name__ == "__main__":
    main()
