"""A short turn at the processor, often, for processes that others wait for.

One rule: it is a wish. Where the kernel does not know it, or does not grant it, nothing changes and nobody is told.

A mount and an upstream sleep until somebody wants something, and then little is to be done, while a copy beside them
keeps the processors busy. Linux gives who runs a slice of some milliseconds; since 6.12 a process may ask for another
length (sched_setattr(2), sched_runtime of SCHED_OTHER), and who asks for a shorter one is let in sooner. Its share of
the processor stays the same. Imported by `mux.upstream.service` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

# The shortest there is: an answer takes a few of it, and a longer piece of work goes on in the next turn.
SLICE_NS: Final = 100_000
# linux/sched/types.h: size, policy, flags, nice, priority, runtime, deadline, period
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
_SCHED_OTHER: Final = 0
# No C library wraps the call before glibc 2.41, and its number is the architecture's: those of asm/unistd.h.
_CALL_NUMBERS: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}


def ask_for_short_turns() -> bool:
    """Ask for short turns for the calling process's first thread; returns whether the kernel took the wish."""
    number = _CALL_NUMBERS.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != _SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, _SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    return bool(ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0) == 0)
