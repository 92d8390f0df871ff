"""How large the windows of channels are: what a server may send ahead of its being used.

One rule: all windows of a connection together are what this process may have to hold, so the large ones come out of a
budget; and where others wait none is larger than its path needs, because what one channel has in flight is in front of
what the next one asks for. Imported by whoever opens channels.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

# How OpenSSH's client has it (CHAN_SES_WINDOW_DEFAULT); what one may hold whose output nobody reads.
SESSION_WINDOW_BYTES: Final = 2 * 1024 * 1024
# 16 MiB in flight are 1.3 Gbit/s at 100 ms: beyond that the far end's own limits are reached first.
LARGEST_WINDOW_BYTES: Final = 16 * 1024 * 1024
# Ten clients that read nothing of what they asked for, and the process stays below 150 MB.
WINDOW_BUDGET_BYTES: Final = 64 * 1024 * 1024
# 4 Gbit/s. From a near server more comes in any case, as the least window there is lasts longer than the path.
_PATH_BYTES_PER_S: Final = 500_000_000
# Four packets: with fewer, both ends wait for each other; with more, a stat beside a copy from a near server waits.
LEAST_WINDOW_BYTES: Final = 128 * 1024
# What a session has while it is alone: with less, a near server waits for it now and then, and has more packets to read
# that open it; with more, nothing is faster.
ALONE_WINDOW_BYTES: Final = 512 * 1024
# What a program that moves files has in flight by itself: 64 requests of 32 KiB of sftp, 8 of 255 KiB of a mount.
LEAST_LARGE_WINDOW_BYTES: Final = 2 * 1024 * 1024


def path_bytes(round_trip_s: float | None) -> int:
    """The window with which a path of this round trip is never idle; without a limit when it is not known."""
    if round_trip_s is None:
        return LARGEST_WINDOW_BYTES
    return max(LEAST_WINDOW_BYTES, int(_PATH_BYTES_PER_S * round_trip_s))


def shared_bytes(round_trip_s: float | None) -> int:
    """The window of a session beside others."""
    return min(SESSION_WINDOW_BYTES, path_bytes(round_trip_s))


def session_bytes(round_trip_s: float | None) -> int:
    """The window of a session that is alone."""
    return max(ALONE_WINDOW_BYTES, shared_bytes(round_trip_s))


class WindowBudget:
    """How large the windows of sessions are, so that all of them together stay affordable. One per engine: `of`.

    What a window holds is memory only while a client does not read; but all may stop reading at once. `left_bytes` may
    be less than nothing: everybody gets the least there is.
    """

    def __init__(self, total_bytes: int = WINDOW_BUDGET_BYTES) -> None:
        self.left_bytes = total_bytes

    @classmethod
    def of(cls, engine: object) -> WindowBudget:
        """The engine's own, made when first asked for."""
        return _BUDGETS.setdefault(engine, cls())

    def take(self, *, large: bool, round_trip_s: float | None = None) -> int:
        """The window for a session, in bytes: for one that moves files `large`, if there is enough left of the budget.

        What is returned must be given to `give_back` when the session is over.
        """
        if not large:
            return session_bytes(round_trip_s)
        most_bytes = max(LEAST_LARGE_WINDOW_BYTES, min(LARGEST_WINDOW_BYTES, self.left_bytes // 2))
        window_bytes = min(most_bytes, max(LEAST_LARGE_WINDOW_BYTES, path_bytes(round_trip_s)))
        self.left_bytes -= window_bytes
        return window_bytes

    def give_back(self, window_bytes: int, *, large: bool) -> None:
        """End of the session that took this."""
        if large:
            self.left_bytes += window_bytes


_BUDGETS: weakref.WeakKeyDictionary[Any, WindowBudget] = weakref.WeakKeyDictionary()
