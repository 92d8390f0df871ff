"""What sharing costs: the same clients on our upstream and on a real `ssh -M`, in turn, with the same cipher.

The rule: a figure of ours stands beside the same figure of a real master, taken in the same run by the same code; what
has no counterpart there (a mount's `stat` beside another client's copy) stands beside its own idle figure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Protocol

from tests.bench import corpus
from tests.bench.contender import OURS, Mounted
from tests.bench.sizes import MIB
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd, program
from tests.support.upstream import Upstream

COMMAND_DEADLINE_S = 120.0
LATENCY_RUNS = 40
# In each run. On which processor a program runs, which differs from one transfer to the next, decides more than who
# carries its bytes.
TRANSFERS = 5
STATS = 3000
CLIENTS = 10
# No end: a copy of a fixed length would be over before a slow machine has made its stats.
COPY = "cat /dev/zero"

# What has to be reached: ours in terms of the real master's, or of the idle figure, or in bytes.
LATENCY_RATIO = 1.5
THROUGHPUT_RATIO = 1.0
STAT_RATIO = 3.0
MEMORY_BYTES = 150_000_000


class Connection(Protocol):
    """A real master or our upstream."""

    @property
    def pid(self) -> int: ...

    @property
    def control_path(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report. `ratio` is what is judged: it has to be `at_least`, or `at_most`."""

    title: str
    base: str
    ours: str
    ratio: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missed(self) -> bool:
        too_low = self.at_least is not None and self.ratio < self.at_least
        return too_low or (self.at_most is not None and self.ratio > self.at_most)


def line(figure: Figure) -> str:
    """It, for the report, and what has to be reached."""
    reach = "" if figure.at_least is None else f"  at least {figure.at_least:g}"
    reach += "" if figure.at_most is None else f"  at most {figure.at_most:g}"
    mark = "  MISSED" if figure.missed else ""
    return f"{figure.title:<44} {figure.base:>14} {figure.ours:>14} {figure.ratio:>7.2f}{reach}{mark}"


def main(options: argparse.Namespace, cipher: str | None) -> int:
    """Run all; returns 1 when `options.check` and something missed its mark."""
    processes.adopt_orphans()
    files = Path(tempfile.mkdtemp(prefix="smx-bench-", dir=options.dir or "/dev/shm"))
    missed = False
    try:
        with Sshd(ciphers=cipher, max_sessions=30) as sshd:
            for figure in figures(sshd, files, 1 if options.quick else options.runs, quick=options.quick):
                print(line(figure), flush=True)
                missed = missed or figure.missed
    finally:
        shutil.rmtree(files, ignore_errors=True)
    return int(missed and options.check)


def figures(sshd: Sshd, files: Path, runs: int, *, quick: bool) -> Iterator[Figure]:
    """Every figure, each as soon as it is known."""
    size = 64 * MIB if quick else 512 * MIB
    big = files / "big"
    corpus.make_big(big, size)
    with both(sshd) as (master, ours):
        yield latency(sshd, master, ours)
        for title, work in transfers(sshd, big).items():
            yield throughput(title, size, 1 if quick else runs * TRANSFERS, work, master, ours)
        yield memory(sshd, ours, big)
    with Upstream(sshd, control_path=str(sshd.control_dir / "ours")) as ours:
        yield fairness(sshd, ours, files, runs)


@contextlib.contextmanager
def both(sshd: Sshd) -> Iterator[tuple[Connection, Connection]]:
    with (
        Master(sshd, control_path=str(sshd.control_dir / "real")) as master,
        Upstream(sshd, control_path=str(sshd.control_dir / "ours")) as ours,
    ):
        yield master, ours


def ssh(sshd: Sshd, connection: Connection, *command: str) -> list[str]:
    # Were the connection not shared, ssh would log in by itself; with such a proxy command that fails.
    riding = ["-F", str(sshd.ssh_config), "-S", connection.control_path, "-o", "ProxyCommand=false"]
    return [program("ssh"), *riding, HOST, *command]


def timed(command: list[str], *, source: Path | None = None) -> float:
    """Seconds of a command that has to succeed; its output goes nowhere."""
    with open(source or os.devnull, "rb") as stdin:
        began = time.perf_counter()
        subprocess.run(
            command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True,
            timeout=COMMAND_DEADLINE_S,
        )  # fmt: skip
        return time.perf_counter() - began


def latency(sshd: Sshd, master: Connection, ours: Connection) -> Figure:
    """`ssh host true`, one after the other."""
    times: dict[str, list[float]] = {"master": [], "ours": []}
    for _ in range(LATENCY_RUNS):
        times["master"].append(timed(ssh(sshd, master, "true")))
        times["ours"].append(timed(ssh(sshd, ours, "true")))
    base, found = median(times["master"]), median(times["ours"])
    return Figure("ssh host true", f"{base * 1e3:.1f} ms", f"{found * 1e3:.1f} ms", found / base, at_most=LATENCY_RATIO)


def transfers(sshd: Sshd, big: Path) -> dict[str, Callable[[Connection], float]]:
    """Seconds of moving the big file over a connection, by title."""

    def sftp(connection: Connection, line: str) -> float:
        batch = big.with_name("batch")
        batch.write_text(line + "\n")
        riding = ["-F", str(sshd.ssh_config), "-o", f"ControlPath={connection.control_path}"]
        return timed([program("sftp"), "-q", *riding, "-o", "ProxyCommand=false", "-b", str(batch), HOST])

    return {
        "ssh host cat big": lambda each: timed(ssh(sshd, each, f"cat {big}")),
        "ssh host 'cat >/dev/null' < big": lambda each: timed(ssh(sshd, each, "cat >/dev/null"), source=big),
        "sftp get": lambda each: sftp(each, f"get {big} /dev/null"),
        "sftp put": lambda each: sftp(each, f"put {big} {big}.put"),
    }


def throughput(
    title: str, size: int, count: int, work: Callable[[Connection], float], master: Connection, ours: Connection
) -> Figure:
    times: dict[Connection, list[float]] = {master: [], ours: []}
    for number in range(count):
        # Neither always finds what the other left.
        for connection in (master, ours) if number % 2 == 0 else (ours, master):
            times[connection].append(work(connection))
    base, found = (median(times[each]) for each in (master, ours))
    # Of neighbours: a machine of others is fast for a minute, and slow for the next.
    ratio = median(theirs / mine for theirs, mine in zip(times[master], times[ours], strict=True))
    return Figure(
        title,
        f"{size / base / 1e6:.0f} MB/s",
        f"{size / found / 1e6:.0f} MB/s",
        ratio,
        at_least=THROUGHPUT_RATIO,
    )


def memory(sshd: Sshd, ours: Connection, big: Path) -> Figure:
    """The upstream's peak with ten clients in full flow, half of them each way."""
    down = ssh(sshd, ours, f"cat {big}")
    up = ssh(sshd, ours, "cat >/dev/null")
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(CLIENTS):
            source = stack.enter_context(big.open("rb"))
            command = down if number % 2 else up
            clients.append(stack.enter_context(subprocess.Popen(command, stdin=source, stdout=subprocess.DEVNULL)))
            stack.callback(clients[-1].kill)
        for client in clients:
            if client.wait(COMMAND_DEADLINE_S) != 0:
                raise RuntimeError("a client failed: the figure would say nothing of ten in full flow")
    peak = peak_bytes(ours.pid)
    text = f"{peak / 1e6:.0f} MB"
    return Figure(f"memory with {CLIENTS} clients in full flow", "", text, peak / MEMORY_BYTES, at_most=1.0)


def peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no peak")


def fairness(sshd: Sshd, ours: Connection, files: Path, runs: int) -> Figure:
    """The 99th percentile of a stat on the mount while another client copies, and idle."""
    served = files / "served"
    served.mkdir()
    for number in range(STATS):
        (served / f"{number:05}").touch()
    mount_point = files / "mnt"
    mount_point.mkdir()
    # Each stat is to go to the server, and none is to be answered by a listing.
    options = ["-o", "dcache_timeout=0", "-o", "attr_timeout=0", "-o", "entry_timeout=0"]
    command = [*OURS.command(sshd.ssh_config, ours.control_path, served, mount_point), *options]
    idles, busies = [], []
    with Mounted(command, mount_point, sshd.environment()):
        for _ in range(runs):
            idles.append(stats(mount_point))
            with beside(ssh(sshd, ours, COPY)):
                busies.append(stats(mount_point))
    idle, busy = median(idles), median(busies)
    return Figure(
        "stat beside a copy, 99th percentile", f"{idle * 1e3:.2f} ms", f"{busy * 1e3:.2f} ms", busy / idle,
        at_most=STAT_RATIO,
    )  # fmt: skip


@contextlib.contextmanager
def beside(copy: list[str]) -> Iterator[None]:
    """In the company of a command that has to outlive what is measured, or the figure would say nothing."""
    process = subprocess.Popen(copy, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError("the copy ended while the stats were made")
    finally:
        process.kill()
        process.wait(COMMAND_DEADLINE_S)


def stats(mount_point: Path) -> float:
    """The 99th percentile of the seconds of a stat; in a process of its own, which has no other work."""
    script = (
        "import os, sys, time\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    began = time.perf_counter()\n"
        "    os.stat(os.path.join(sys.argv[1], name))\n"
        "    print(time.perf_counter() - began)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(mount_point)],
        capture_output=True, text=True, check=True, timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip
    return quantiles(map(float, done.stdout.split()), n=100)[98]
