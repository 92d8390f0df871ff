"""Everybody at once on one connection of each kind, and some are killed in the middle of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.mounted import Mount
from tests.support.sshd import HOST, Sshd
from tests.t2_upstream.starting import logins
from tests.t5_putty.exchanges import HOLDERS, PROGRAMS, JoiningMount, Means, Program, exchange, only_riding, place_of
from tests.t5_putty.test_who_rides import TABLE

SIZE_BYTES = 2_000_000
ROUNDS = 3
DEADLINE_S = 60.0
ENDLESS_BYTES = 1 << 40  # of holes
FIRST_BYTES = 1 << 20
# 10 MB/s at most: others are to have a turn on two processors.
STREAM = "while head -c 100000 /dev/zero; do sleep 0.01; done"

#: One of each kind of holder, by README.md's words.
KINDS = ("sshmux start", "plink -share", "ssh -M")


@contextmanager
def flowing(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose output has begun to come, and goes on coming."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    )
    assert process.stdout is not None
    with process.stdout as output, Path(os.devnull).open("wb") as nowhere:
        assert len(output.read(FIRST_BYTES)) == FIRST_BYTES
        drain = threading.Thread(target=shutil.copyfileobj, args=(output, nowhere))
        drain.start()
        try:
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE_S)
            drain.join()


def through(mount: Mount, root: Path) -> Program:
    """A program that copies through a mount of `root` that is there already."""

    def copy(_: Means, there: Path, here: Path) -> int:
        place = mount.path / there.relative_to(root)
        (here / "down").write_bytes((place / "down").read_bytes())
        (place / "up").write_bytes((here / "up").read_bytes())
        return 0

    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_d15_everybody_at_once_and_some_are_killed(kind: str, make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    """All that can ride, and two mounts, copy both ways; a third mount and others die in full flow. One login serves
    them all, no byte is wrong, and afterwards everything still works."""
    sshd = make_sshd(max_sessions=100)
    (sshd.root / "endless").touch()
    os.truncate(sshd.root / "endless", ENDLESS_BYTES)
    first = threading.Event()
    means = only_riding(sshd)
    parties = {name: program for name, program in PROGRAMS.items() if TABLE[kind, name]}

    def take_part(name: str, rounds: int) -> None:
        for number in range(rounds):
            here, there = tmp_path / f"{name}-{rounds}-{number}", sshd.root / f"{name}-{rounds}-{number}"
            here.mkdir()
            there.mkdir()
            exchange(parties[name], means, there, here, SIZE_BYTES)
            first.set()

    with HOLDERS[kind](sshd), ExitStack() as stack:
        for name in ("one mount", "another"):
            mount = stack.enter_context(JoiningMount(place_of(sshd), sshd.root))
            parties[name] = through(mount, sshd.root)
        doomed = stack.enter_context(JoiningMount(place_of(sshd), sshd.root))
        streams = {"plink": means.riders.command("plink", means.riders.destination, STREAM)}
        streams["ssh"] = means.clients.command(HOST, STREAM)
        killed = [
            stack.enter_context(flowing(command, sshd.environment() if name == "ssh" else means.riders.env))
            for name, command in streams.items()
            if TABLE[kind, name]
        ]
        reader = stack.enter_context(flowing(["cat", str(doomed.path / "endless")], sshd.environment()))
        with ThreadPoolExecutor(len(parties)) as pool:
            work = [pool.submit(take_part, name, ROUNDS) for name in parties]
            assert first.wait(DEADLINE_S)
            assert not all(future.done() for future in work)
            for process in killed:
                process.kill()
            doomed.kill()
            assert reader.wait(DEADLINE_S) == 1  # told that the mount has gone
            for future in work:
                future.result(DEADLINE_S)
        doomed.close()
        for name in parties:
            take_part(name, 1)
    assert logins(sshd) == 1
