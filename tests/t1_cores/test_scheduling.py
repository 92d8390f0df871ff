"""Short turns at the processor, as the kernel tells of them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from mux.scheduling import SLICE_NS, ask_for_short_turns
from tests.support import bounded

# Since when the kernel has turns of a length that a process asks for.
KNOWN_SINCE = (6, 12)


def test_the_kernel_grants_it_or_nothing_changes() -> None:
    """In a child, whose turns are its own."""

    def ask() -> tuple[bool, int, str]:
        os.nice(3)
        taken = ask_for_short_turns()
        return taken, os.getpriority(os.PRIO_PROCESS, 0), Path("/proc/self/sched").read_text()

    taken, nice, told = bounded.in_subprocess(ask, 20.0)
    assert nice == os.getpriority(os.PRIO_PROCESS, 0) + 3
    slices = [int(line.split()[-1]) for line in told.splitlines() if line.startswith("se.slice")]
    version = tuple(map(int, platform.release().split(".")[:2]))
    if slices and version >= KNOWN_SINCE:
        assert taken
        assert slices == [SLICE_NS]
