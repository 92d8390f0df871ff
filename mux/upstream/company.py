"""Whether somebody has the connection for himself.

One rule: it is seen by what the server sends, which is what whoever waits for an answer has in front of it. Imported by
`doors.py`, which knows what comes for whom, and by those who look: `channels.py`, by way of the engine.
"""

from __future__ import annotations

import time
from typing import Final

# Longer than it is from one key to the next of somebody who types, or from one stat to the next of a program; and too
# short to be noticed in a copy that has just become the only one.
ALONE_AFTER_S: Final = 0.1


class Company:
    """Of one connection.

    last    who was spoken to last. Whoever is and was not is to `enter`
    """

    __slots__ = ("_since_s", "last")

    def __init__(self) -> None:
        self.last: object = None
        self._since_s = -ALONE_AFTER_S

    def enter(self, who: object) -> None:
        """The server speaks to another than before."""
        self.last = who
        self._since_s = time.monotonic()

    def alone(self) -> bool:
        """Whether the server has spoken to nobody else for a while."""
        return time.monotonic() - self._since_s >= ALONE_AFTER_S
