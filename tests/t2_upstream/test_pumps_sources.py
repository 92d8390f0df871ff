"""Sources: every kind of descriptor read for a window, without anybody who shares it noticing."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mux.upstream.ports import Port, _is_in_memory
from mux.upstream.pumps import Sink, Source
from mux.upstream.sources import READ_BYTES
from mux.upstream.workers import MAX_THREADS, Done, Workers
from tests.t2_upstream.ends import (
    Ends,
    Window,
    fifo,
    flags,
    pipe,
    run,
    sockets,
    tcp,
    terminal_read,
    terminal_write,
    until,
)

ANY = [pipe, sockets, tcp, terminal_read]
DATA = bytes(range(256)) * 8


@contextmanager
def source(descriptor: int, window: Window, translate: Callable[[memoryview], bytes] | None = None) -> Iterator[Source]:
    made = Source(descriptor, window, ended=window.ended.set, translate=translate)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("kind", ANY)
def test_bytes_in_order_then_the_end(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, window = kind(), Window(1 << 20)
        before = flags(ends.reading)
        with source(ends.give(ends.reading), window) as made:
            made.start()
            os.write(ends.writing, b"first ")
            await until(lambda: window.taken == b"first ")
            assert flags(ends.reading) == before
            assert not before & os.O_NONBLOCK
            os.write(ends.writing, DATA)
            await until(lambda: window.taken == b"first " + DATA)
            ends.close(ends.writing)
            await window.ended.wait()
            assert made.done
        assert flags(ends.reading) == before
        ends.close()

    run(main)


@pytest.mark.parametrize("kind", ANY)
def test_no_more_is_read_than_there_is_room_for(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, window = kind(), Window(5)
        with source(ends.give(ends.reading), window) as made:
            os.write(ends.writing, b"0123456789abcdef")
            made.start()
            await until(lambda: window.wanted)
            assert window.taken == b"01234"
            # What is not read is still there for whoever else reads this.
            assert os.read(ends.reading, 3) == b"567"
            window.room_bytes = 100
            made.room()
            await until(lambda: window.taken == b"0123489abcdef")
            ends.close(ends.writing)
            await window.ended.wait()
        ends.close()

    run(main)


@pytest.mark.parametrize("kind", ANY)
def test_closed_it_reads_no_more(kind: Callable[[], Ends]) -> None:
    async def main() -> None:
        ends, window = kind(), Window(100)
        with source(ends.give(ends.reading), window) as made:
            made.start()
            made.close()
            made.close()
            os.write(ends.writing, b"left")
            assert os.read(ends.reading, 10) == b"left"
            made.room()
        assert not window.ended.is_set()
        assert not window.taken
        ends.close()

    run(main)


def test_a_fifo(tmp_path: Path) -> None:
    async def main() -> None:
        with fifo(tmp_path) as ends:
            window = Window(100)
            before = flags(ends.reading)
            with source(ends.give(ends.reading), window) as made:
                made.start()
                os.write(ends.writing, b"through")
                await until(lambda: window.taken == b"through")
                assert flags(ends.reading) == before
                ends.close(ends.writing)
                await window.ended.wait()

    run(main)


def test_a_fifo_whose_writer_has_gone_already(tmp_path: Path) -> None:
    async def main() -> None:
        with fifo(tmp_path) as ends:
            os.write(ends.writing, DATA)
            ends.close(ends.writing)
            window = Window(1 << 20)
            with source(ends.give(ends.reading), window) as made:
                made.start()
                await window.ended.wait()
            assert bytes(window.taken) == DATA

    run(main)


@pytest.mark.parametrize("at_hand", [True, False])
def test_a_regular_file_from_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_hand: bool) -> None:
    if not at_hand:  # as with a file that is not in memory, or of a kind that cannot tell
        monkeypatch.setattr(Port, "read_cached", lambda self, buffer: None)
    path = tmp_path / "file"
    path.write_bytes(b"head " + bytes(3_000_000) + b" tail")

    async def main() -> None:
        window = Window(1000)
        with path.open("rb", buffering=0) as file:
            file.read(5)
            with source(os.dup(file.fileno()), window) as made:
                made.start()
                await until(lambda: window.wanted)
                # The offset is everybody's, and nothing was read that could not be sent.
                assert file.tell() == 5 + 1000
                window.room_bytes = 1 << 30
                made.room()
                await window.ended.wait()
            assert file.tell() == path.stat().st_size
        assert bytes(window.taken) == bytes(3_000_000) + b" tail"

    run(main)


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_what_has_nothing_to_read_ends_at_once(path: str) -> None:
    async def main() -> None:
        window = Window(100)
        with source(os.open(path, os.O_RDONLY), window) as made:
            made.start()
            await window.ended.wait()
        assert not window.taken

    run(main)


def test_a_device_that_epoll_refuses() -> None:
    async def main() -> None:
        window = Window(300_000)
        with source(os.open("/dev/zero", os.O_RDONLY), window) as made:
            made.start()
            await until(lambda: window.wanted)
        assert bytes(window.taken) == bytes(300_000)

    run(main)


def test_the_master_of_a_terminal() -> None:
    """Opened anew it would be that of another."""

    async def main() -> None:
        ends, window = terminal_write(), Window(100)
        with source(ends.give(ends.reading), window) as made:
            made.start()
            os.write(ends.writing, b"from its terminal")
            await until(lambda: window.taken == b"from its terminal")
            ends.close(ends.writing)
            await window.ended.wait()
        ends.close()

    run(main)


def test_what_can_only_be_written_is_at_its_end() -> None:
    """Opened anew for reading, it would take from its reader what is his."""

    async def main() -> None:
        ends, window = pipe(), Window(100)
        os.write(ends.writing, b"not ours")
        with source(ends.give(ends.writing), window) as made:
            made.start()
            assert window.ended.is_set()
        assert os.read(ends.reading, 100) == b"not ours"
        ends.close()

    run(main)


def test_a_socket_that_listens_is_at_its_end() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            window = Window(100)
            with source(os.dup(listener.fileno()), window) as made:
                made.start()
                with socket.create_connection(listener.getsockname()):
                    await window.ended.wait()

    run(main)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_may_not_be_opened_anew(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    """As one of another user is: nothing of its description is changed then either."""
    refuse_opening(monkeypatch)

    async def main() -> None:
        ends, window = pipe(), Window(1 << 20)
        os.set_blocking(ends.reading, blocking)
        with source(ends.give(ends.reading), window) as made:
            made.start()
            for part in (b"one ", b"two ", DATA):
                have = len(window.taken)
                os.write(ends.writing, part)
                await until(lambda have=have, part=part: len(window.taken) == have + len(part))  # type: ignore[misc]
            assert os.get_blocking(ends.reading) is blocking
            ends.close(ends.writing)
            await window.ended.wait()
        assert bytes(window.taken) == b"one two " + DATA
        ends.close()

    run(main)


def refuse_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word for a pipe of somebody else, which root (as whom this may run) never hears."""

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mux.upstream.ports.os.open", refused)


def test_what_is_made_longer_waits_for_room() -> None:
    async def main() -> None:
        ends, window = pipe(), Window(4)
        with source(ends.give(ends.reading), window, lambda data: bytes(data) * 2) as made:
            made.start()
            os.write(ends.writing, b"abcd")
            await until(lambda: window.wanted)
            os.write(ends.writing, b"e")
            assert bytes(window.taken) == b"abcd"
            for expected in (b"abcda", b"abcdab", b"abcdabcd"):
                window.room_bytes = len(expected) - len(window.taken)
                made.room()
                assert bytes(window.taken) == expected
            window.room_bytes = 10
            made.room()
            ends.close(ends.writing)
            await window.ended.wait()
            assert bytes(window.taken) == b"abcdabcdee"
        ends.close()

    run(main)


def test_a_translation_may_close_its_source() -> None:
    async def main() -> None:
        ends, window = pipe(), Window(100)
        made: Source

        def leave(_: memoryview) -> bytes:
            made.close()
            return b"too late"

        made = Source(ends.give(ends.reading), window, ended=window.ended.set, translate=leave)
        made.start()
        os.write(ends.writing, b"~.")
        await until(lambda: made.done)
        assert not window.taken
        assert not window.ended.is_set()
        ends.close()

    run(main)


def test_many_files_cost_threads_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Port, "read_cached", lambda self, buffer: None)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    async def main() -> None:
        before = threading.active_count()
        made = []
        for _ in range(3 * MAX_THREADS):
            window = Window(1000)
            one = Source(os.open(path, os.O_RDONLY), window, ended=window.ended.set)
            one.start()
            made.append((one, window))
        most = 0
        for _, window in made:
            most = max(most, threading.active_count() - before)
            await window.ended.wait()
            assert bytes(window.taken) == b"x" * 100
        assert 0 < most <= MAX_THREADS

    run(main)


class CountingWorkers(Workers):
    """Counts what it is given to do."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0

    def submit(self, call: Callable[[], Any], done: Done) -> None:
        self.jobs += 1
        super().submit(call, done)


def test_a_file_at_hand_costs_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = CountingWorkers()
    monkeypatch.setattr("mux.upstream.sources.WORKERS", workers)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1_000_000)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
        knows = True
    except OSError as error:
        knows = error.errno != errno.EOPNOTSUPP or _is_in_memory(descriptor)

    async def main() -> None:
        window = Window(1 << 30)
        one = Source(descriptor, window, ended=window.ended.set)
        one.start()
        assert not window.taken  # one piece in a turn of the loop
        await window.ended.wait()
        assert bytes(window.taken) == b"x" * 1_000_000
        assert (workers.jobs == 1) is knows  # which looked what it is

    run(main)


@pytest.mark.parametrize("quick", [True, False])
def test_a_file_in_memory_costs_no_thread_while_it_is_quick(monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    workers = CountingWorkers()
    monkeypatch.setattr("mux.upstream.sources.WORKERS", workers)
    monkeypatch.setattr("mux.upstream.ports.LONGEST_READ_S", 1000.0 if quick else -1.0)  # as if it came from the swap
    data = os.urandom(READ_BYTES * 3 + 1)
    descriptor = os.memfd_create("file")
    os.write(descriptor, b"head " + data)
    os.lseek(descriptor, 5, os.SEEK_SET)

    async def main() -> None:
        window = Window(1 << 30)
        one = Source(os.dup(descriptor), window, ended=window.ended.set)
        one.start()
        await window.ended.wait()
        assert bytes(window.taken) == data
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 5 + len(data)
        # One looks what it is. What was slow once is read by others: three pieces more, and the end.
        assert workers.jobs == (1 if quick else 1 + 4)

    run(main)
    os.close(descriptor)


@pytest.mark.parametrize("kind", [pipe, sockets, tcp])
def test_what_can_be_waited_for_costs_no_thread(kind: Callable[[], Ends], monkeypatch: pytest.MonkeyPatch) -> None:
    workers = CountingWorkers()
    for module in ("ports", "sources", "sinks"):
        monkeypatch.setattr(f"mux.upstream.{module}.WORKERS", workers)

    async def main() -> None:
        ends, window, done = kind(), Window(1 << 20), asyncio.Event()
        into = Sink(ends.give(ends.writing), lambda count: None, failed=done.set, done=done.set)
        with source(ends.give(ends.reading), window) as made:
            made.start()
            into.write(memoryview(DATA))
            into.finish()
            await done.wait()
            ends.close(ends.writing)
            await window.ended.wait()
            assert not made.closing
        ends.close()
        assert bytes(window.taken) == DATA

    run(main)
    assert workers.jobs == 0


def test_out_of_descriptors_it_goes_without_one_of_its_own() -> None:
    async def main() -> None:
        ends, window = pipe(), Window(100)
        given = ends.give(ends.reading)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (given + 1, hard))
        try:
            made = Source(given, window, ended=window.ended.set)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        made.start()
        os.write(ends.writing, b"still")
        await until(lambda: window.taken == b"still")
        made.close()
        ends.close()

    run(main)


def test_what_was_handed_over_is_closed() -> None:
    async def main() -> None:
        ends = pipe()
        window = Window(100)
        with source(ends.give(ends.reading), window) as made:
            made.start()
            ends.close(ends.reading)
            # The writer finds out only if nobody holds the other end any more.
            made.close()
            with pytest.raises(BrokenPipeError):
                os.write(ends.writing, b"x")
        ends.close()

    run(main)
