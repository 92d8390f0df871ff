"""Names held still for a moment, for a program that is about to open one and came too late before.

Between the kernel's lookup of a name and its open of what was found there, a rename made here may give the name to
another file, and what was found has none any more. The open is then refused with ESTALE, and the kernel looks the name
up again: once. A rename that met that second attempt as well would be told to the program. So the changes that concern
such a name wait until its open has come, or was given time enough to come.

The rule of this file: it holds back nobody who opens, and nobody who changes for longer than HOLD_S after a lookup, nor
for longer than LATE_S whoever looks.

Imported by `sshmuxfs.changes`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from sshmuxfs.tree.inodes import Inode

Place = tuple[Inode, bytes]

# The kernel opens within microseconds of the answer to its lookup; a busy machine may let it wait for a processor. If
# the open never comes (the program was killed), a change is late by this.
HOLD_S = 0.5
# Callers may take turns: a change is not late by more than this, and a program is told of the race then.
LATE_S = 4 * HOLD_S
# From the refusal to the lookup that follows, whose answer may have to come from a server far away.
LOOKUP_S = 5.0
# Callers that were refused and never came again are forgotten when there are more: no more open files at a time.
MAX_REFUSED = 1024


class _Hold:
    __slots__ = ("ended", "place", "until_s")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.until_s = trio.current_time() + HOLD_S
        self.ended = trio.Event()


class Stillness:
    """Who was refused, and which names are held for them. Callers are told apart by their thread's id."""

    def __init__(self) -> None:
        self._refused: OrderedDict[int, float] = OrderedDict()
        self._holds: dict[int, _Hold] = {}
        self._changing: dict[Place, list[trio.Event]] = {}

    def refused(self, caller: int) -> None:
        """An open by `caller` was answered ESTALE."""
        self._end(caller)
        self._refused.pop(caller, None)
        self._refused[caller] = trio.current_time()
        if len(self._refused) > MAX_REFUSED:
            self._end(self._refused.popitem(last=False)[0])

    def awaits(self, caller: int) -> bool:
        """Whether a lookup by `caller` may be the one that follows a refusal."""
        return caller in self._refused

    async def before_lookup(self, caller: int, parent: Inode, name: bytes) -> None:
        """If `caller` was refused just now, hold the name from here on; returns when what changes it has ended."""
        if caller not in self._refused:
            return
        if self._refused[caller] + LOOKUP_S < trio.current_time():
            self.opened(caller)
            return
        self._end(caller)
        hold = self._holds[caller] = _Hold((parent, name))
        with trio.move_on_after(HOLD_S):
            while hold.place in self._changing:
                await self._changing[hold.place][-1].wait()
        hold.until_s = trio.current_time() + HOLD_S

    def after_lookup(self, caller: int) -> None:
        """The kernel is told what was found, and will open it."""
        hold = self._holds.get(caller)
        if hold is not None:
            hold.until_s = trio.current_time() + HOLD_S

    def opened(self, caller: int) -> None:
        """`caller` has what it wanted, or was told why not."""
        self._refused.pop(caller, None)
        self._end(caller)

    def _end(self, caller: int) -> None:
        hold = self._holds.pop(caller, None)
        if hold is not None:
            hold.ended.set()

    async def wait(self, *places: Place) -> None:
        """Wait until none of the names is held. To be called before each change of them."""
        late_s = trio.current_time() + LATE_S
        while self._holds and trio.current_time() < late_s:
            caller, hold = next(((each, held) for each, held in self._holds.items() if held.place in places), (0, None))
            if hold is None:
                return
            with trio.move_on_at(min(hold.until_s, late_s)):
                await hold.ended.wait()
            if self._holds.get(caller) is hold and hold.until_s <= trio.current_time():
                self._end(caller)

    @contextmanager
    def changing(self, *places: Place) -> Iterator[None]:
        """The names are being changed while the block runs."""
        ended = trio.Event()
        for place in places:
            self._changing.setdefault(place, []).append(ended)
        try:
            yield
        finally:
            for place in places:
                self._changing[place].remove(ended)
                if not self._changing[place]:
                    del self._changing[place]
            ended.set()
