"""What to fetch and what to send: ranges, the sequential detector, window sizes. Pure.

The rule of this file: arithmetic only. It says what should be asked for; others ask.

Imported by `sshmuxfs.io`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

KIB = 1024
MIB = 1024 * KIB

# The first read of a file is answered by one request of this size: what the kernel itself reads ahead, and most files.
FIRST_FETCH_BYTES = 128 * KIB
# Even next door the path has a depth: five processes hand each block on. Measured: below this the reader waits.
MIN_WINDOW_BYTES = 2 * MIB
# Four channel windows of OpenSSH (2 MiB each): more in flight brings nothing before there are more channels.
MAX_WINDOW_BYTES = 8 * MIB
# What is fetched ahead is received into extents of about this size; a kernel read that spans two of them is the only
# one that needs a copy: one in 32 of the usual 128 KiB, one in eight of the 512 KiB from next door.
EXTENT_BYTES = 4 * MIB
# Kernel read-ahead is handled by several tasks, so reads of one stream may come slightly out of order.
REORDER_BYTES = MIB
# All files together, so that the process stays well under 120 MB.
READ_BUDGET_BYTES = 32 * MIB
WRITE_BUDGET_BYTES = 24 * MIB
# One file's accepted but unacknowledged writes: the server's window is 2 MiB a channel, the rest stands in sockets.
WRITE_WINDOW_BYTES = 4 * MIB
# Next door less keeps everybody busy. Half a channel's window: beyond it sshd hands back every piece of it by itself,
# twice as many packets for all on the way (measured: a ninth of the time of a long write).
NEAR_WRITE_WINDOW_BYTES = MIB


def window_bytes(in_flight_bytes: float, streamed_bytes: int) -> int:
    """How far ahead of a sequential reader to be.

    `in_flight_bytes` is rate times round trip as measured; twice that leaves room for the path to prove faster.
    `streamed_bytes` is what was read in sequence so far: a reader is trusted with as much again, so that the head of a
    file costs little and a long read reaches the full window after a few round trips.
    """
    target = min(max(int(2 * in_flight_bytes), MIN_WINDOW_BYTES), MAX_WINDOW_BYTES)
    return min(target, 2 * streamed_bytes)


def write_window_bytes(*, near: bool) -> int:
    """How much one file may have accepted and not acknowledged, on a server that is next door or is not."""
    return NEAR_WRITE_WINDOW_BYTES if near else WRITE_WINDOW_BYTES


class Detector:
    """Tells a sequential reader from a random one, by where each read begins."""

    __slots__ = ("_next", "streamed_bytes")

    def __init__(self) -> None:
        self._next = 0
        self.streamed_bytes = 0  # 0: not sequential

    def note(self, offset: int, size: int) -> bool:
        """A read of `size` at `offset` comes in; return whether it carries on from the last, or begins the file."""
        sequential = offset == self._next or (self.streamed_bytes > 0 and abs(offset - self._next) <= REORDER_BYTES)
        if sequential:
            self._next = max(self._next, offset + size)
            self.streamed_bytes += size
        else:
            self._next = offset + size
            self.streamed_bytes = 0
        return sequential


def blocks(start: int, end: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut `[start, end)` into `(offset, length)` of at most `block_bytes`."""
    while start < end:
        length = min(block_bytes, end - start)
        yield start, length
        start += length


class Holder(Protocol):
    """Someone who holds memory of a budget and can be asked to give it all back at once."""

    def give_back(self) -> None: ...


class Budget:
    """A number of bytes shared by many holders; the one that used its share longest ago pays for a newcomer."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._holders: OrderedDict[int, tuple[Holder, int]] = OrderedDict()

    def take(self, holder: Holder, count_bytes: int) -> bool:
        """Give `holder` `count_bytes` more, at the cost of others if need be; False if they cannot be had."""
        held = self._holders.get(id(holder), (holder, 0))[1]
        if held + count_bytes > self.total_bytes:
            return False  # and nobody has to pay for that
        while self.used_bytes + count_bytes > self.total_bytes:
            oldest = next(each for each, _ in self._holders.values() if each is not holder)
            oldest.give_back()
            self.release(oldest)
        self._holders.pop(id(holder), None)
        self._holders[id(holder)] = (holder, held + count_bytes)
        self.used_bytes += count_bytes
        return True

    def share_bytes(self, holder: Holder) -> int:
        """What `holder` may have if all who hold something have as much; what it takes above is taken away again."""
        others = len(self._holders) - (id(holder) in self._holders)
        return self.total_bytes // (others + 1)

    def give(self, holder: Holder, count_bytes: int) -> None:
        """`holder` gives back part of its share."""
        entry = self._holders.get(id(holder))
        if entry is None:
            return
        left = entry[1] - count_bytes
        if left > 0:
            self._holders[id(holder)] = (holder, left)
            self.used_bytes -= count_bytes
        else:
            self.release(holder)

    def touch(self, holder: Holder) -> None:
        """`holder` makes use of its share now."""
        if id(holder) in self._holders:
            self._holders.move_to_end(id(holder))

    def release(self, holder: Holder) -> None:
        """`holder` has nothing any more."""
        _, held = self._holders.pop(id(holder), (holder, 0))
        self.used_bytes -= held
