"""Freed memory that is kept, as the kernel counts it."""

from __future__ import annotations

import resource

from mux.heap import KEPT_BYTES, MAPPED_BYTES, keep_freed_memory
from tests.support import bounded

BLOCK_BYTES = 128 * 1024 + 100  # what a write of the kernel is in the end
BLOCKS = 40
ROUNDS = 50


def faults(rounds: int) -> int:
    """Of making blocks and dropping them, over and over."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [bytes(BLOCK_BYTES) for _ in range(BLOCKS)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_was_freed_is_used_again_without_a_fault() -> None:
    """In a child, whose heap is its own."""
    assert BLOCK_BYTES * BLOCKS < KEPT_BYTES and BLOCK_BYTES < MAPPED_BYTES

    def use() -> tuple[bool, int]:
        taken = keep_freed_memory()
        faults(2)
        return taken, faults(ROUNDS)

    taken, seen = bounded.in_subprocess(use, 60.0)
    pages = ROUNDS * BLOCKS * BLOCK_BYTES // resource.getpagesize()
    assert taken
    assert seen < pages // 100
