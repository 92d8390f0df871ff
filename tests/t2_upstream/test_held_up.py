"""What never answers, a file or a terminal, holds nobody up: neither the rest of the process nor its end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mux.errors import ExitCode, JoinError
from mux.upstream import commandlines
from mux.upstream.prompts import Prompts
from mux.upstream.workers import Workers, in_thread
from tests.support import processes
from tests.support.sshd import Sshd
from tests.t2_upstream.ends import run
from tests.t2_upstream.starting import DEADLINE_S, upstreams, walk
from tests.t2_upstream.test_start import wait_for_login


def test_a_key_file_that_does_not_come(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sshd.runtime_dir))
    key = tmp_path / "key"
    os.mkfifo(key)
    running = walk(sshd, f"IdentityFile={key}", control_path=sshd.control_dir / "held-up").begin()
    held = wait_for_login(key, running)
    started = upstreams(sshd)
    assert started
    running.cancel()
    assert running.wait(DEADLINE_S)
    with pytest.raises(JoinError) as caught:
        running.result()
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert not processes.wait_ended(started, DEADLINE_S)
    os.close(held)


def test_the_loop_ends_while_a_thread_still_waits() -> None:
    reading, writing = os.pipe()
    workers = Workers()

    async def main() -> None:
        waiting = asyncio.ensure_future(in_thread(lambda: os.read(reading, 1), workers))
        assert await in_thread(lambda: "the next one", workers) == "the next one"
        waiting.cancel()

    run(main)
    os.write(writing, b"x")
    os.close(writing)
    os.close(reading)


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        with pytest.raises(FileNotFoundError):
            await in_thread(lambda: os.open("/nowhere/at/all", os.O_RDONLY))

    run(main)


def test_command_lines_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    lookers = Workers(1)
    for name, value in {"_LOOKERS": lookers, "AFTER_S": 0.0, "MAX_WAITING": 2}.items():
        monkeypatch.setattr(commandlines, name, value)
    told: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        lookers.submit(lambda: os.read(reading, 1), lambda *_: None)
        for _ in range(5):
            commandlines.look_up(os.getpid(), told.append)
        behind = loop.create_future()
        loop.call_later(0.0, behind.set_result, None)
        await behind
        assert lookers.waiting == 2
        os.write(writing, b"x")
        await in_thread(lambda: None, lookers)  # the only thread takes one after the other
        assert len(told) == 2 and all("python" in line for line in told)

    run(main)
    os.close(writing)
    os.close(reading)


def test_a_terminal_that_was_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY", "SSH_ASKPASS_REQUIRE"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = os.openpty()
    os.close(ours)
    monkeypatch.setattr(Prompts, "_open_terminal", lambda self: os.dup(theirs))

    async def main() -> None:
        assert await Prompts(batch=False, password=None).ask("Password: ", echo=False) is None

    run(main)
    os.close(theirs)
