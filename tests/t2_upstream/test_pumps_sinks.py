"""Sinks: every kind of descriptor written to, no faster than it is read, and nothing consumed before it is written."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mux.upstream.pumps import Sink
from tests.t2_upstream.ends import Ends, fifo, flags, one_turn, pipe, run, sockets, tcp, terminal_write, until
from tests.t2_upstream.test_pumps_sources import refuse_opening

ANY = [pipe, sockets, tcp, terminal_write]
PIECE = bytes(range(256)) * 128  # a whole packet


class Told:
    """What a sink said."""

    def __init__(self) -> None:
        self.consumed = 0
        self.failed = 0
        self.done = 0

    def consume(self, count: int) -> None:
        assert count > 0
        self.consumed += count

    def fail(self) -> None:
        assert not self.done
        self.failed += 1

    def finish(self) -> None:
        self.done += 1


@contextmanager
def sink(descriptor: int, told: Told, *, half_close: bool = False) -> Iterator[Sink]:
    made = Sink(descriptor, told.consume, failed=told.fail, done=told.finish, half_close=half_close)
    try:
        yield made
    finally:
        made.close()


def read_all(descriptor: int, count: int) -> bytes:
    """Exactly `count` bytes, of a descriptor that blocks."""
    data = b""
    while len(data) < count:
        data += os.read(descriptor, min(65536, count - len(data)))
    return data


@pytest.mark.parametrize("kind", ANY)
def test_written_at_once_where_there_is_room(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, told = kind(), Told()
        before = flags(ends.writing)
        with sink(ends.give(ends.writing), told) as made:
            made.write(memoryview(b"now"))
            assert told.consumed == 3
            assert os.read(ends.reading, 10) == b"now"
            assert flags(ends.writing) == before
            assert not before & os.O_NONBLOCK
            made.finish()
            assert (told.done, told.failed) == (1, 0)
        assert flags(ends.writing) == before
        ends.close()

    run(main)


@pytest.mark.parametrize("kind", ANY)
def test_a_slow_reader_is_waited_for(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, told = kind(), Told()
        count = 200  # 6.4 MB: more than TCP on loopback takes in
        with sink(ends.give(ends.writing), told) as made:
            for number in range(count):
                made.write(memoryview(bytes([number]) + PIECE[1:]))
                made.write(memoryview(b"small"))
            total = count * (len(PIECE) + 5)
            assert 0 < told.consumed < total
            assert told.consumed + made.queued_bytes == total
            # Nobody else's description was made non-blocking meanwhile.
            assert not flags(ends.writing) & os.O_NONBLOCK
            made.finish()
            assert not told.done
            received = bytearray()
            os.set_blocking(ends.reading, False)
            while len(received) < total:
                try:
                    received += os.read(ends.reading, 1 << 20)
                except BlockingIOError:
                    pass
                assert told.consumed + made.queued_bytes == total
                await one_turn()
            assert bytes(received) == b"".join(bytes([number]) + PIECE[1:] + b"small" for number in range(count))
            await until(lambda: told.done == 1)
            assert told.consumed == total
        ends.close()

    run(main)


@pytest.mark.parametrize("kind", [pipe, sockets, tcp, terminal_write])
def test_who_reads_no_more_is_noticed_by_the_next_write(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, told = kind(), Told()
        with sink(ends.give(ends.writing), told) as made:
            made.write(memoryview(b"first"))
            os.read(ends.reading, 5)
            ends.close(ends.reading)
            sent = 5
            # The first may still be taken by TCP, whose other end answers with a reset.
            while not told.failed:
                made.write(memoryview(b"more"))
                sent += 4
                await one_turn()
            assert (told.failed, told.done) == (1, 1)
            made.write(memoryview(b"and more"))
            assert told.consumed == sent + 8
            assert (told.failed, told.done) == (1, 1)
            made.finish()
            assert told.done == 1
        ends.close()

    run(main)


@pytest.mark.parametrize("kind", [pipe, sockets])
def test_who_goes_while_it_is_waited_for(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, told = kind(), Told()
        with sink(ends.give(ends.writing), told) as made:
            for _ in range(20):
                made.write(memoryview(PIECE))
            assert made.queued_bytes
            ends.close(ends.reading)
            await until(lambda: told.failed == 1)
            assert told.consumed == 20 * len(PIECE)
            assert told.done == 1
        ends.close()

    run(main)


def test_closed_it_drops_what_it_has() -> None:
    async def main() -> None:
        ends, told = pipe(), Told()
        made = Sink(ends.give(ends.writing), told.consume, failed=told.fail, done=told.finish)
        for _ in range(20):
            made.write(memoryview(PIECE))
        made.close()
        made.close()
        assert told.consumed == 20 * len(PIECE)
        made.write(memoryview(b"x"))
        made.finish()
        assert (told.failed, told.done) == (0, 0)
        ends.close(ends.writing)
        assert len(read_all(ends.reading, 65536)) == 65536
        assert os.read(ends.reading, 1) == b""
        ends.close()

    run(main)


def test_appending_to_a_file_that_others_append_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")

    async def main() -> None:
        told = Told()
        with path.open("ab", buffering=0) as file:
            with sink(os.dup(file.fileno()), told) as made:
                made.write(memoryview(b"ours\n"))
                await until(lambda: told.consumed == 5)
                with path.open("ab") as other:
                    other.write(b"theirs\n")
                made.write(memoryview(b"ours again\n"))
                made.finish()
                await until(lambda: told.done == 1)
            file.write(b"after\n")

    run(main)
    assert path.read_bytes() == b"before\nours\ntheirs\nours again\nafter\n"


def test_a_file_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "out"

    async def main() -> None:
        told = Told()
        with path.open("wb", buffering=0) as file:
            file.write(b"head ")
            with sink(os.dup(file.fileno()), told) as made:
                for number in range(100):
                    made.write(memoryview(PIECE))
                    made.write(memoryview(b"%4d" % number))
                made.finish()
                assert not told.done
                await until(lambda: told.done == 1)
                assert told.consumed == 100 * (len(PIECE) + 4)
            assert file.tell() == path.stat().st_size
            file.write(b"tail")

    run(main)
    assert path.read_bytes() == b"head " + b"".join(PIECE + b"%4d" % number for number in range(100)) + b"tail"


def test_a_full_device() -> None:
    async def main() -> None:
        told = Told()
        with sink(os.open("/dev/full", os.O_WRONLY), told) as made:
            made.write(memoryview(b"no space left"))
            await until(lambda: told.failed == 1)
            assert (told.consumed, told.done) == (13, 1)

    run(main)


def test_nothing_takes_everything() -> None:
    async def main() -> None:
        told = Told()
        with sink(os.open("/dev/null", os.O_RDWR), told) as made:
            made.write(memoryview(PIECE))
            assert told.consumed == len(PIECE)
            made.finish()
            assert (told.failed, told.done) == (0, 1)

    run(main)


def test_a_fifo_without_a_reader(tmp_path: Path) -> None:
    async def main() -> None:
        with fifo(tmp_path) as ends:
            ends.close(ends.reading)
            told = Told()
            with sink(ends.give(ends.writing), told) as made:
                assert not told.failed
                made.write(memoryview(b"x"))
                await until(lambda: told.done == 1)
                assert (told.consumed, told.failed) == (1, 1)

    run(main)


@pytest.mark.parametrize("path", ["/dev/null", "/etc/hostname"])
def test_what_can_only_be_read_fails(path: str) -> None:
    async def main() -> None:
        told = Told()
        with sink(os.open(path, os.O_RDONLY), told) as made:
            made.write(memoryview(b"x"))
            assert (told.consumed, told.failed, told.done) == (1, 1, 1)

    run(main)


def test_half_of_a_socket_is_closed() -> None:
    async def main() -> None:
        one, other = socket.socketpair()
        told = Told()
        with one, other:
            with sink(os.dup(one.fileno()), told, half_close=True) as made:
                made.write(memoryview(b"all"))
                made.finish()
            assert (other.recv(10), other.recv(10)) == (b"all", b"")
            other.send(b"back")
            assert one.recv(10) == b"back"

    run(main)


def test_a_socket_of_several_owners_is_left_alone() -> None:
    async def main() -> None:
        one, other = socket.socketpair()
        told = Told()
        with one, other:
            with sink(os.dup(one.fileno()), told) as made:
                made.write(memoryview(b"all"))
                made.finish()
            one.send(b" and more")
            assert other.recv(20) == b"all and more"

    run(main)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_may_not_be_opened_anew(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    refuse_opening(monkeypatch)

    async def main() -> None:
        ends, told = pipe(), Told()
        os.set_blocking(ends.writing, blocking)
        os.set_blocking(ends.reading, False)
        with sink(ends.give(ends.writing), told) as made:
            for _ in range(10):
                made.write(memoryview(PIECE))
            made.finish()
            received = b""
            while len(received) < 10 * len(PIECE):
                try:
                    received += os.read(ends.reading, 65536)
                except BlockingIOError:
                    await one_turn()
            assert received == 10 * PIECE
            await until(lambda: told.done == 1)
            assert told.consumed == len(received)
            assert os.get_blocking(ends.writing) is blocking
        ends.close()

    run(main)


def test_single_bytes_are_kept_together() -> None:
    """A window full of them must not become as many objects."""

    async def main() -> None:
        ends, told = pipe(), Told()
        with sink(ends.give(ends.writing), told) as made:
            for _ in range(4):
                made.write(memoryview(PIECE))
            for number in range(200_000):
                made.write(memoryview(bytes([number % 256])))
            assert len(made._queue) < 20
            received = b""
            os.set_blocking(ends.reading, False)
            while told.consumed < 4 * len(PIECE) + 200_000:
                try:
                    received += os.read(ends.reading, 1 << 16)
                except BlockingIOError:
                    pass
                await one_turn()
            made.finish()
        ends.close(ends.writing)
        os.set_blocking(ends.reading, True)
        while more := os.read(ends.reading, 1 << 16):
            received += more
        assert received == 4 * PIECE + bytes(number % 256 for number in range(200_000))
        ends.close()

    run(main)
