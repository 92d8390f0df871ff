"""One measurement, and the order of many: contenders take turns, each on a fresh mount, with caches emptied before.

The rule: every wait has an end. A command that outlives its limit is a result too ("> 120 s"), and its contender is not
asked for the rest of that row.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench import contender, corpus
from tests.bench.contender import Contender, ContenderError, Mounted, Rides
from tests.bench.sizes import sizes_for
from tests.bench.workload import Outcome, Setting, Workload, WrongAnswer
from tests.bench.workloads import Start
from tests.support.delay_proxy import DelayProxy
from tests.support.master import Master
from tests.support.sshd import Sshd
from tests.support.upstream import Upstream

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
TOOL_DEADLINE_S = 20.0
# After SIGKILL, for the request that holds a command in the kernel to be answered.
KILL_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for. `limit_s` bounds each command; `rate` is the proxy's, bytes per second."""

    contenders: tuple[Contender, Contender]
    workloads: tuple[type[Workload], ...]
    rtts_ms: tuple[float, ...]
    runs: int
    quick: bool
    cipher: str | None
    limit_s: float
    rate: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one command. `fault` is why there is no time; `over` that the limit was what ended it."""

    seconds: float | None = None
    cpu_s: float = 0.0
    machine_cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    start_s: float = 0.0
    unmount_s: float = 0.0
    over: bool = False
    fault: str = ""


@dataclass(slots=True)
class Row:
    """One workload at one round trip: the samples of both contenders, by name."""

    rtt_ms: float
    workload: str
    title: str
    limit_s: float
    moved_bytes: int | None
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def seconds(self, name: str) -> float | None:
        """The median; None when a run failed, none was made, or one took too long."""
        samples = self.samples.get(name, [])
        times = [sample.seconds for sample in samples if sample.seconds is not None]
        return median(times) if times and len(times) == len(samples) else None

    def cpu_s(self, name: str) -> float:
        return median(sample.cpu_s for sample in self.samples[name])

    def machine_cpu_s(self, name: str) -> float:
        return median(sample.machine_cpu_s for sample in self.samples[name])

    def peak_rss_bytes(self, name: str) -> int:
        return max(sample.peak_rss_bytes for sample in self.samples[name])

    def over(self, name: str) -> bool:
        """Whether its answer is only that it takes longer than the limit."""
        samples = self.samples.get(name, [])
        return any(sample.over for sample in samples) and not self.faults(name)

    def faults(self, name: str) -> list[str]:
        return [sample.fault for sample in self.samples.get(name, []) if sample.fault and not sample.over]

    def ratio(self, base: str, other: str) -> float | None:
        """How many times as fast as `base` the `other` is; at least that when `base` took too long; None: unknown."""
        other_s = self.seconds(other)
        base_s = self.limit_s if self.over(base) else self.seconds(base)
        return base_s / other_s if other_s and base_s is not None else None


@dataclass(frozen=True, slots=True)
class Link:
    """The server at one round trip, and the control path of a connection for each contender that rides, by name."""

    config: Path
    control_paths: Mapping[str, str]


@contextlib.contextmanager
def linked(sshd: Sshd, plan: Plan, rtt_ms: float) -> Iterator[Link]:
    """Connections to `sshd` at this round trip: directly at 0, else through a proxy. They end with the context."""
    with contextlib.ExitStack() as stack:
        config = sshd.ssh_config
        if rtt_ms > 0:
            config = sshd.via(stack.enter_context(DelayProxy(sshd.port, rtt_ms / 2000, rate=plan.rate)).port)
        paths = {}
        for number, each in enumerate(plan.contenders):
            path = str(sshd.control_dir / f"m{number}")
            if each.rides is Rides.MASTER:
                stack.enter_context(Master(sshd, control_path=path, config=config))
            elif each.rides is Rides.OUR_UPSTREAM:
                stack.enter_context(Upstream(sshd, control_path=path, config=config))
            paths[each.name] = path
        yield Link(config, paths)


class Bench:
    """All measurements of a plan.

    `work` holds the mount points; `files` is for what is served and for the client's files, and may be `in_memory`.
    """

    def __init__(self, plan: Plan, work: Path, files: Path, *, in_memory: bool, report: Callable[[str], None]) -> None:
        self.plan = plan
        self.work = work
        self.served = files / "served"
        self.scratch = files / "scratch"
        self.in_memory = in_memory
        self.report = report
        for directory in (self.served, self.scratch):
            directory.mkdir()

    def run(self) -> Iterator[Row]:
        """Every row, in the order of round trips and workloads; each comes when it is complete."""
        with Sshd(ciphers=self.plan.cipher) as sshd:
            for rtt_ms in self.plan.rtts_ms:
                setting = Setting(
                    self.served, self.scratch, sizes_for(rtt_ms, quick=self.plan.quick), environment(sshd)
                )
                self.report(f"RTT {rtt_ms:g} ms: making files")
                workloads = [kind(setting) for kind in self.plan.workloads]
                for workload in workloads:
                    # What is made when first named is made now.
                    _ = workload.command
                with linked(sshd, self.plan, rtt_ms) as link:
                    for each in self.plan.contenders:
                        # Programs come from the disk, masters open their first session: nobody's time.
                        self.sample(Start(setting), each, link, first=False)
                    for workload in workloads:
                        yield self.row(workload, link, rtt_ms)
                for path in (*self.served.iterdir(), *self.scratch.iterdir()):
                    corpus.remove(path)

    def row(self, workload: Workload, link: Link, rtt_ms: float) -> Row:
        """Both contenders in turn, as many times as planned."""
        row = Row(rtt_ms, workload.name, workload.title, self.plan.limit_s, workload.moved_bytes)
        for number in range(self.plan.runs):
            for each in self.plan.contenders:
                samples = row.samples.setdefault(each.name, [])
                if any(sample.fault for sample in samples):
                    continue
                samples.append(self.sample(workload, each, link, first=number == 0))
                last = samples[-1]
                said = last.fault or f"{last.seconds:.3f} s, {last.cpu_s:.2f} s CPU, {last.peak_rss_bytes / 1e6:.0f} MB"
                self.report(f"RTT {rtt_ms:g} ms, {workload.title}, {each.name}: {said}")
        return row

    def sample(self, workload: Workload, who: Contender, link: Link, *, first: bool) -> Sample:
        """One run on a fresh mount; whatever goes wrong is its fault, not the end of the benchmark."""
        workload.reset()
        mount_point = self.work / f"{workload.name}-{who.program}"
        mount_point.mkdir(exist_ok=True)
        command = who.command(link.config, link.control_paths[who.name], self.served, mount_point)
        if workload.cold:
            self.empty_caches()
        try:
            mounted = Mounted(command, mount_point, workload.setting.environment)
        except ContenderError as error:
            return Sample(fault=f"mounting: {error}")
        try:
            with mounted:
                sample = self.timed(workload, mounted, first=first)
            if not sample.fault and not workload.served_is_right():
                raise WrongAnswer("what the server holds after unmounting")
        except WrongAnswer as error:
            return Sample(fault=f"wrong answer: {error}")
        except (ContenderError, OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            return Sample(fault=f"{type(error).__name__}: {error}")
        mount_point.rmdir()
        return Sample(
            sample.seconds,
            sample.cpu_s,
            sample.machine_cpu_s,
            sample.peak_rss_bytes,
            mounted.start_s,
            mounted.unmount_s,
            sample.over,
            sample.fault,
        )

    def timed(self, workload: Workload, mounted: Mounted, *, first: bool) -> Sample:
        """Run the command and check its answer."""
        command = workload.command
        environment = workload.setting.environment
        # From the disk into memory: the tool itself, which the caches' emptying has thrown out.
        subprocess.run([command[0], "--version"], capture_output=True, timeout=TOOL_DEADLINE_S, env=environment)
        before = mounted.usage()
        ended = execute(command, mounted.mount_point, self.scratch, environment, self.plan.limit_s)
        after = mounted.usage()
        cpu_s, machine_cpu_s = after.cpu_s - before.cpu_s, after.machine_cpu_s - before.machine_cpu_s
        if ended is None:
            text = f"> {self.plan.limit_s:g} s"
            return Sample(None, cpu_s, machine_cpu_s, after.peak_rss_bytes, over=True, fault=text)
        wall_s, exit_code, output, complaint = ended
        if exit_code != 0:
            return Sample(fault=f"{command[0]} ended with {exit_code}: {complaint.strip()[-300:]!r}")
        outcome = Outcome(wall_s, mounted.start_s, output, complaint, mounted.mount_point)
        seconds = workload.elapsed_s(outcome)
        workload.check(outcome, first=first)
        return Sample(seconds, cpu_s, machine_cpu_s, after.peak_rss_bytes)

    def empty_caches(self) -> None:
        """Empty page cache, names and inodes; have the served files in memory again. Only root can: else leave them."""
        os.sync()
        try:
            DROP_CACHES.write_text("3")
        except OSError:
            return
        if not self.in_memory:
            corpus.read_all(self.served)


def environment(sshd: Sshd) -> dict[str, str]:
    """The environment of everything that is timed: no locale, no configuration of git's but the repository's."""
    return {
        **sshd.environment(),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
    }


def execute(
    command: Sequence[str], directory: Path, scratch: Path, environment: Mapping[str, str], limit_s: float
) -> tuple[float, int, str, str] | None:
    """Run a command in `directory`: (seconds, exit code, standard output, standard error); None at the limit."""
    # Into files: a reader of pipes would compete for the processors with what is measured.
    with (scratch / "output").open("w+b") as output, (scratch / "complaint").open("w+b") as complaint:
        began = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=complaint,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
        )
        ended = False
        try:
            ended = contender.wait(child, limit_s)
            seconds = time.perf_counter() - began
        finally:
            if not ended:
                os.killpg(child.pid, signal.SIGKILL)
                # If it is still held then, unmounting by force frees it.
                contender.wait(child, KILL_GRACE_S)
        if not ended:
            return None
        output.seek(0)
        complaint.seek(0)
        return (
            seconds,
            child.returncode,
            output.read().decode(errors="replace"),
            complaint.read().decode(errors="replace"),
        )
