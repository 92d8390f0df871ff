"""All that leads to one inode: its names, and a handle that it is open with. Pure.

Version 3 tells no identity of a file. What tells whether two ways lead to one file are the attributes: it has the same
ones whichever way it is asked for.

The rule of this file: one disagreement proves nothing, since a file may be changed between two answers (a log that
grows); the same disagreement twice in a row does. A file that only grows never answers `a, b, a, b`.

Imported by `sshmuxfs.questions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, StatusError
from sshmuxfs.tree.inodes import Way


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions about all that leads to one inode, sent together: each name, then a handle it is open with, if any."""

    before: list[Pending]  # what was sent before them
    pendings: list[Pending]
    ways: list[Way]
    as_of: int  # the tree's count of changes then
    moves: int | None  # Tree.crossing then
    now_s: float


@dataclass(frozen=True, slots=True)
class Said:
    """What was answered: for each name attributes or a refusal; and what the handle has, if that is known."""

    ways: list[Attributes | StatusError]
    held: Attributes | None

    @property
    def seen(self) -> list[Attributes]:
        """What was said of names, without the time of access: that is their readers' doing."""
        return [each._replace(atime=None) for each in self.ways if isinstance(each, Attributes)]

    @property
    def complete(self) -> bool:
        """Whether there are attributes for every name."""
        return all(isinstance(each, Attributes) for each in self.ways)

    @property
    def agrees(self) -> bool:
        """Whether all of it may be true of one file.

        With the handle size and time of change are compared, no more: a server may have the rest from elsewhere.
        """
        first, *others = self.seen
        return all(each == first for each in others) and (self.held is None or _alike(self.held, first))

    @property
    def of_file(self) -> Attributes:
        """The attributes of the file, if it is one: the handle's, where names were answered otherwise."""
        named = next(each for each in self.ways if isinstance(each, Attributes))
        return self.held if self.held is not None and not self.agrees else named

    def repeats(self, other: Said) -> bool:
        """Whether `other`, which was asked just before, was the same."""
        if self.held is None or other.held is None:
            return self.held is other.held and self.seen == other.seen
        return self.seen == other.seen and _alike(self.held, other.held)


def _alike(one: Attributes, other: Attributes) -> bool:
    """Whether size and time of change are the same, as far as both are known."""
    pairs = ((one.size, other.size), (one.mtime, other.mtime))
    return all(mine == its for mine, its in pairs if mine is not None and its is not None)
