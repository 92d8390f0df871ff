"""`python -m tests.bench`: the command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import putty, reach, report, sharing
from tests.bench.contender import OURS, OURS_UPSTREAM, SSHFS, SSHFS_AGAIN, SSHFS_ALONE
from tests.bench.measure import Bench, Plan, Row
from tests.bench.sizes import LOCAL, QUICK
from tests.bench.workloads import ALL
from tests.support import mounts, processes

IN_MEMORY = Path("/dev/shm")
IN_MEMORY_KINDS = ("tmpfs", "ramfs")
CIPHER = "aes128-gcm@openssh.com"
# More than this before the start, and something else is running.
QUIET_LOAD = 0.5
INTERRUPTED = 128 + signal.SIGINT
# The big file, the copy that is written, and the small files.
ROOM = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks. Returns 1 when something failed, was answered wrongly, or with --check missed its mark."""
    options = parser().parse_args(arguments)
    if options.list:
        for kind in ALL:
            print(f"{kind.name} (extra)" if kind.extra else kind.name)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.sharing:
        return sharing.main(options, cipher_of(options, CIPHER))
    if options.putty:
        return putty.main(options, cipher_of(options, None))
    plan = plan_of(options)
    # Daemons come to us when their starters end: found by descent, and reaped.
    processes.adopt_orphans()
    about = machine(plan)
    for name, value in about.items():
        print(f"{name}: {value}")
    if os.getloadavg()[0] > QUIET_LOAD:
        print("the machine is not quiet: the figures are worth little")
    base, ours = (each.name for each in plan.contenders)
    rows, interrupted = measured(plan, options.dir)
    print(report.table(rows, base, ours))
    verdict = reach.judge(rows, base, ours, reach.ON_OUR_UPSTREAM if options.upstream else reach.RATIOS)
    if options.json:
        Path(options.json).write_text(
            json.dumps(report.document(rows, base, ours, about, verdict.misses), indent=1) + "\n"
        )
    failed = any(row.faults(name) for row in rows for name in (base, ours))
    if options.check:
        for miss in verdict.misses:
            print(f"MISSED  {miss}")
        for name in verdict.unmeasured:
            print(f"not measured: {name}")
        print(f"{len(verdict.misses)} missed")
        failed = failed or bool(verdict.misses) or not rows
    return INTERRUPTED if interrupted else int(failed)


def measured(plan: Plan, directory: str | None) -> tuple[list[Row], bool]:
    """Run the plan; whatever happens, nothing of it stays. Returns the rows, and whether Ctrl-C ended them."""
    work = Path(tempfile.mkdtemp(prefix="smx-bench-", dir="/tmp"))
    files = Path(tempfile.mkdtemp(prefix="smx-bench-", dir=directory or files_directory(plan)))
    rows: list[Row] = []
    interrupted = False
    try:
        bench = Bench(
            plan, work, files, in_memory=in_memory(files), report=lambda line: print(line, file=sys.stderr, flush=True)
        )
        for row in bench.run():
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what there is:", file=sys.stderr)
    finally:
        left = [mount for mount in mounts.mounts() if mount.path.startswith(f"{work}/")]
        for mount in left:
            print(f"left mounted: {mount}", file=sys.stderr)
        shutil.rmtree(files, ignore_errors=True)
        # Never through a mount.
        if not left:
            shutil.rmtree(work, ignore_errors=True)
    return rows, interrupted


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the command line describes. Names that are not known end the program with a message."""
    known = {kind.name: kind for kind in ALL}
    names = [name for group in options.only for name in group.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser().error(f"no workload {', '.join(unknown)}; there are {', '.join(known)}")
    contenders = (SSHFS, SSHFS_AGAIN if options.self else OURS)
    if options.upstream:
        contenders = (SSHFS_ALONE, OURS_UPSTREAM)
    return Plan(
        contenders=contenders,
        workloads=tuple(kind for kind in ALL if (kind.name in names if names else options.all or not kind.extra)),
        rtts_ms=options.rtt,
        runs=1 if options.quick else options.runs,
        quick=options.quick,
        cipher=None if options.upstream else cipher_of(options, CIPHER),
        limit_s=options.limit,
        rate=options.rate * 1e6,
    )


def cipher_of(options: argparse.Namespace, default: str | None) -> str | None:
    """The only cipher of the server; None for whatever is negotiated."""
    return None if options.cipher == "default" else options.cipher or default


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.bench", description="sshmuxfs and sshfs, the same work in turn."
    )
    made.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="only these workloads (again, or with commas)"
    )
    made.add_argument("--all", action="store_true", help="the extra workloads too")
    made.add_argument("--list", action="store_true", help="name the workloads")
    made.add_argument(
        "--rtt", metavar="MS", type=round_trips, default="0,20,100", help="round trips (default: 0,20,100)"
    )
    made.add_argument(
        "--runs", metavar="N", type=positive, default=3, help="runs of each, of which the median counts (default: 3)"
    )
    made.add_argument("--quick", action="store_true", help="one run of little work: to see that all of it works")
    made.add_argument("--json", metavar="FILE", help="write every sample there")
    made.add_argument("--check", action="store_true", help="compare with what has to be reached; exit 1 if it is not")
    made.add_argument("--self", action="store_true", help="sshfs on both sides: the noise of this machine")
    made.add_argument(
        "--upstream",
        action="store_true",
        help="sshfs with a connection of its own against sshmuxfs on an upstream of ours, each with its own defaults",
    )
    made.add_argument(
        "--sharing", action="store_true", help="our upstream and a real master: latency, throughput, fairness, memory"
    )
    made.add_argument(
        "--putty",
        action="store_true",
        help="a mount over a plink, beside psftp over it and by itself: reading, writing",
    )
    made.add_argument(
        "--cipher",
        metavar="NAME",
        help=f'of all connections; "default": negotiated, as --upstream and --putty have it (else: {CIPHER})',
    )
    made.add_argument("--limit", metavar="S", type=float, default=120.0, help="longest run of a command (default: 120)")
    made.add_argument(
        "--rate", metavar="MB/S", type=float, default=100.0, help="of the link where it has a delay (default: 100)"
    )
    made.add_argument(
        "--dir", metavar="DIR", help="where the served files are made (default: in memory, if there is room)"
    )
    return made


def round_trips(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if any(not 0 <= value <= 2000 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: round trips are from 0 to 2000 ms")
    return values


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def files_directory(plan: Plan) -> str | None:
    """In memory, where there is room: then no disk is in the figures. None: where temporary files go."""
    needed = ROOM * (QUICK if plan.quick else LOCAL).big_bytes
    if IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > needed:
        return str(IN_MEMORY)
    return None


def in_memory(path: Path) -> bool:
    """Whether the file system that holds `path` has no disk."""
    above = [mount for mount in mounts.mounts() if path.is_relative_to(mount.path)]
    return max(above, key=lambda mount: len(mount.path)).kind in IN_MEMORY_KINDS if above else False


def machine(plan: Plan) -> dict[str, object]:
    """What a reader has to know to compare: the machine, the versions, the plan."""

    def version(name: str, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return next((line for line in (done.stdout + done.stderr).splitlines() if name in line), "unknown").strip()

    return {
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ssh": version("OpenSSH", "ssh", "-V"),
        "sshfs": version("SSHFS", "sshfs", "--version"),
        "cipher": plan.cipher or "each its own choice",
        "link": f"{plan.rate / 1e6:g} MB/s each way where it has a delay",
        "runs": plan.runs,
        "caches": "dropped"
        if os.access("/proc/sys/vm/drop_caches", os.W_OK)
        else "not dropped (that takes root); mounts are fresh",
    }


if __name__ == "__main__":
    sys.exit(main())
