"""Who of those that send on one connection sends next, once its transport has room again.

One rule: whoever got less than it wanted waits at the end of the row, and is let in when all before it were. So many
who send in bulk share alike, and none of them can keep another out. Imported by `channels.py` and `relay.py`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, Self


class Braked(Protocol):
    """What is needed of `engine.Engine`."""

    paused: bool
    brakes: set[Any]


class Sender(Protocol):
    """Who waits."""

    def take_turn(self) -> None:
        """There is room: send a piece, and `wait` again for the next. It is not in the row any more."""


class Turns:
    """The row of one engine: `Turns.of`."""

    def __init__(self, engine: Braked) -> None:
        self._engine = engine
        self._row: deque[Sender] = deque()
        self.period = 0  # counts the times that the transport had room again

    @classmethod
    def of(cls, engine: Braked) -> Self:
        """The engine's own, made when first asked for."""
        for brake in engine.brakes:
            if isinstance(brake, cls):
                return brake
        turns = cls(engine)
        engine.brakes.add(turns)
        return turns

    def wait(self, sender: Sender) -> None:
        """Put somebody who wants to send at the end of the row. It is not in it."""
        self._row.append(sender)

    def pause(self) -> None:
        """The transport has enough (a brake of the engine)."""

    def resume(self) -> None:
        """The transport has room: let those in the row send, until it has enough again."""
        self.period += 1
        for _ in range(len(self._row)):
            if self._engine.paused or not self._row:
                return
            self._row.popleft().take_turn()
