"""Logs of processes that stay: what is in a line, and that a log which takes nothing stops nobody."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mux import logs
from mux.errors import ExitCode, SharingError
from tests.t2_upstream.ends import Ends, flags, pipe, sockets, terminal_write


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 1, "%s", (message,), None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where syslog is looked for."""
    path = str(tmp_path / "log")
    monkeypatch.setattr(logs, "SYSLOG", path)
    return path


@contextmanager
def syslog(place: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        Path(place).unlink(missing_ok=True)
        listener.bind(place)
        yield listener


@pytest.fixture
def daemon(place: str) -> Iterator[tuple[logging.Handler, socket.socket]]:
    """A handler, and the syslog it found."""
    with syslog(place) as listener:
        handler = logs.handler("program", file=None, foreground=False)
        yield handler, listener
        handler.close()


def test_a_line_of_syslog(daemon: tuple[logging.Handler, socket.socket]) -> None:
    handler, listener = daemon
    handler.emit(record("of a peer: \x1b[2J\n\u202e"))
    said = listener.recv(1000)
    assert said.startswith(b"<30>program[") and said.endswith(b"]: INFO: of a peer: \\x1b[2J\n\\u202e\0")


def test_a_syslog_that_takes_nothing_stops_nobody(daemon: tuple[logging.Handler, socket.socket]) -> None:
    handler, listener = daemon
    for number in range(10_000):  # the kernel keeps some ten
        handler.emit(record(str(number)))
    assert listener.recv(1000).endswith(b" 0\0")
    handler.emit(record("there is room again"))
    listener.setblocking(False)
    said = b""
    with pytest.raises(BlockingIOError):
        while True:
            said = listener.recv(1000)
    assert said.endswith(b"there is room again\0")


def test_a_syslog_that_is_started_anew(daemon: tuple[logging.Handler, socket.socket], place: str) -> None:
    handler, listener = daemon
    listener.close()
    handler.emit(record("lost"))
    with syslog(place) as again:
        handler.emit(record("found"))
        assert again.recv(1000).endswith(b"found\0")


def test_without_any_syslog(place: str) -> None:
    assert isinstance(logs.handler("program", file=None, foreground=False), logging.NullHandler)


@contextmanager
def stderr(monkeypatch: pytest.MonkeyPatch, kind: Callable[[], Ends]) -> Iterator[tuple[logging.Handler, Ends]]:
    """A handler in front, and what its stderr is."""
    ends = kind()
    with open(ends.writing, "w", closefd=False) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        handler = logs.handler("program", file=None, foreground=True)
    os.set_blocking(ends.reading, False)
    try:
        yield handler, ends
    finally:
        handler.close()
        ends.close()


def everything(descriptor: int) -> str:
    """What there is to read."""
    said = b""
    with pytest.raises(BlockingIOError):
        while True:
            said += os.read(descriptor, 1 << 16)
    return said.decode()


@pytest.mark.parametrize("kind", [pipe, sockets, terminal_write])
def test_a_reader_of_stderr_that_takes_nothing_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[], Ends]
) -> None:
    with stderr(monkeypatch, kind) as (handler, ends):
        before = flags(ends.writing)
        for number in range(10_000):
            handler.emit(record(str(number)))
        assert flags(ends.writing) == before  # which the user's shell has, too
        lines = everything(ends.reading).splitlines()
        assert 10 < len(lines) < 10_000
        assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(len(lines))]
        handler.emit(record("there is room again"))
        assert everything(ends.reading).endswith("]: INFO: there is room again\n")


def test_a_line_that_is_broken_off_does_not_run_into_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with stderr(monkeypatch, pipe) as (handler, ends):
        long = "\n".join("x" * 1000 for _ in range(100))
        handler.emit(record(long))
        handler.emit(record("lost"))
        said = everything(ends.reading)
        assert 10_000 < len(said) < len(long)
        assert not said.endswith("\n")
        handler.emit(record("next"))
        handler.emit(record("last"))
        assert re.fullmatch(r"\nprogram\S+ INFO: next\nprogram\S+ INFO: last\n", everything(ends.reading))


def test_a_reader_of_stderr_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with stderr(monkeypatch, pipe) as (handler, ends):
        ends.close(ends.reading)
        handler.emit(record("to nobody"))


def test_without_any_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(logs.handler("program", file=None, foreground=True), logging.NullHandler)


def test_a_file(tmp_path: Path) -> None:
    handler = logs.handler("program", file=str(tmp_path / "file"), foreground=True)
    handler.emit(record("a\x07"))
    handler.close()
    assert (tmp_path / "file").read_text().endswith("]: INFO: a\\x07\n")
    with pytest.raises(SharingError, match="cannot be written") as refused:
        logs.handler("program", file=str(tmp_path / "none" / "file"), foreground=True)
    assert refused.value.exit_code is ExitCode.USAGE
