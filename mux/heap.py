"""Freed memory is kept for what comes next, by processes through which blocks of data run.

One rule: it is a wish. Where the C library does not know it, nothing changes and nobody is told.

glibc gives the free end of its heap back to the kernel once that is larger than twice the largest block so far
(mallopt(3), M_TRIM_THRESHOLD), and takes it again, page by page and each page zeroed, for the next block. With blocks
of 128 to 256 KiB, some of them on their way at any time, that is up to a page fault for each 4 KiB of a transfer.
Imported by `mux.upstream.service` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import ctypes
from typing import Final

# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

# What transfers both ways have on their way at a time (4 MiB of writes, as much read ahead), and as much again.
KEPT_BYTES: Final = 16 << 20
# No block of a transfer is as large; what is (a long listing) goes back at once when it is freed.
MAPPED_BYTES: Final = 4 << 20


def keep_freed_memory() -> bool:
    """Ask for it, for the calling process; returns whether the C library took the wish."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) == 1 and mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) == 1)
