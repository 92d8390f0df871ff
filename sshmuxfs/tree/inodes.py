"""The tree of names that are known: which inode stands where, who refers to it, and what was last heard of it.

The rules of this file:
- It is synchronous and does no I/O. A change is one call, so that no task ever sees half of it.
- *Own changes win.* Whoever asks the server notes with `asking()` how far the changes had come when the question was
  sent; an answer never overwrites what was changed here after that, and never brings back a name removed after that.
- *An inode that is open, or has several names, is not one name's to tell of*: somebody else may have put another file
  there. What a listing says is not learned of it; when one of its names proves to lead elsewhere, it loses them all.
- An inode number is never that of another inode which anyone still refers to. It is made from the parent's number and
  the name, so that it is the same again after the kernel forgot it or the file system was mounted anew (git and backup
  programs compare inode numbers).

An inode with no kernel lookups, no open handles and no known children is *idle*: kept for its knowledge, the longest
idle one dropped first when there are more than `max_idle`.

Imported by `sshmuxfs.operations`, `sshmuxfs.tree.ways`, `sshmuxfs.io.files` (through the inode only).
"""

from __future__ import annotations

import hashlib
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from sshmuxfs.sftp.protocol import Attributes

ROOT_NUMBER = 1
# sshfs's dcache_max_size; about 5 MB here.
DEFAULT_MAX_IDLE = 10_000
# Absent names remembered per directory; a program that probes more has no pattern worth keeping.
MAX_ABSENT = 1024
# git and make ask for one name after the other. One or two may be chance; names that are not there say nothing.
WALK_AFTER = 3
NEVER_S = float("-inf")

Way = tuple["Inode", bytes, bytes]  # a directory, a name in it, and the path of both


class Gone(Exception):
    """The inode has no name any more: it was removed, or something else stands in its place."""


class Directory:
    """What is known of a directory's names."""

    __slots__ = ("absent", "asked_singly", "asking", "children", "doubted", "listed_at_s", "removed", "walked_at_s")

    def __init__(self) -> None:
        self.children: dict[bytes, Inode] = {}
        self.listed_at_s = NEVER_S  # when `children` was last known to be complete
        self.asked_singly = 0  # names found there one by one since it was last walked
        self.walked_at_s = NEVER_S  # when all that is there was last learned because of that
        self.doubted = 0  # number of the last change after which that could no longer be said
        self.absent: dict[bytes, float] = {}  # names the server did not have, and when
        self.asking = 0  # questions about its names under way
        self.removed: dict[
            bytes, int
        ] = {}  # names removed here while questions were under way, and the change's number


class Inode:
    """One file, directory or link. Its names are `(parent, name)` and `more_names` (hard links made here)."""

    __slots__ = (
        *(
            "attributes",
            "cached_as",
            "changed",
            "directory",
            "fetched_at_s",
            "files",
            "link_fetched_at_s",
            "link_target",
        ),
        *("looked_up_at_s", "lookups", "more_names", "name", "number", "parent"),
    )

    def __init__(self, number: int, parent: Inode | None, name: bytes) -> None:
        self.number = number
        self.parent = parent  # None: the root, or no name left
        self.name = name
        self.more_names: list[tuple[Inode, bytes]] | None = None
        self.looked_up_at_s = NEVER_S  # when the kernel last asked for one of its names
        self.lookups = 0  # references the kernel holds
        self.files: list[object] | None = None  # open files on it
        self.attributes = Attributes()
        self.fetched_at_s = NEVER_S
        self.changed = 0  # number of the last change made here to its content or attributes
        self.cached_as: tuple[int, int] | None = None  # size and mtime of what the kernel's page cache holds
        self.directory: Directory | None = None
        self.link_target: bytes | None = None
        self.link_fetched_at_s = NEVER_S

    @property
    def kind(self) -> int:
        """The S_IFMT bits, 0 if unknown."""
        return stat.S_IFMT(self.attributes.permissions or 0)

    @property
    def gone(self) -> bool:
        """Whether no name leads here any more."""
        return self.parent is None and self.number != ROOT_NUMBER

    @property
    def link_count(self) -> int:
        """Names known to lead here; 1 for directories, which tells programs that nothing follows from it."""
        if self.gone:
            return 0
        return 1 + len(self.more_names or ())

    def names(self) -> list[tuple[Inode, bytes]]:
        """Every known name, the one that paths are made of first."""
        first = [(self.parent, self.name)] if self.parent is not None else []
        return [*first, *(self.more_names or ())]


class Tree:
    """All known inodes of one mount. `base` is the absolute remote path of its root."""

    def __init__(self, base: bytes, *, max_idle: int = DEFAULT_MAX_IDLE) -> None:
        self.base = base
        self.root = Inode(ROOT_NUMBER, None, b"")
        self.root.directory = Directory()
        self.changes = 0  # how many changes were made here so far
        self.moves = 0  # how many of them were renames
        self.moving = 0  # renames that were sent, and of which nothing was heard yet
        self._by_number = {ROOT_NUMBER: self.root}
        self._idle: OrderedDict[int, Inode] = OrderedDict()
        self._max_idle = max_idle
        self._dropping = False

    def __len__(self) -> int:
        return len(self._by_number)

    # -- finding ------------------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """Return a known inode. Raises Gone if the number means nothing (a file handle from before a restart)."""
        try:
            return self._by_number[number]
        except KeyError:
            raise Gone(f"no inode has the number {number}") from None

    def path(self, inode: Inode, name: bytes | None = None) -> bytes:
        """Return the remote path of an inode, or of `name` within it. Raises Gone if it has no name left."""
        parts = [] if name is None else [name]
        node = inode
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        if node is not self.root:
            raise Gone(f"inode {inode.number} has no name any more")
        parts.append(b"" if self.base == b"/" else self.base)
        return b"/".join(reversed(parts)) or b"/"

    def ways(self, inode: Inode) -> list[Way]:
        """Every known name of an inode, with its path. Raises Gone if one is below what has no name any more."""
        try:
            return [(parent, name, self.path(parent, name)) for parent, name in inode.names()]
        except Gone:
            self.part(inode)
            raise

    @property
    def crossing(self) -> int | None:
        """The number of renames so far, if one is on the way: what is sent now by a path comes behind it.

        None if there is none. Whatever is renamed later is then sent later, and done later.
        """
        return self.moves if self.moving else None

    # -- learning from the server -------------------------------------------------------------------------------------

    def begin_asking(self, directory: Inode) -> int:
        """A question about names in `directory` goes out; return the number of changes so far. `end_asking` ends it."""
        _state(directory).asking += 1
        return self.changes

    def end_asking(self, directory: Inode) -> None:
        """The answers to a question about names in `directory` are in, or no longer wanted."""
        state = _state(directory)
        state.asking -= 1
        if not state.asking:
            state.removed.clear()

    @contextmanager
    def asking(self, directory: Inode) -> Iterator[int]:
        """`begin_asking` and `end_asking` around a block."""
        as_of = self.begin_asking(directory)
        try:
            yield as_of
        finally:
            self.end_asking(directory)

    def learn(self, parent: Inode, name: bytes, attributes: Attributes, now_s: float, as_of: int) -> Inode | None:
        """The server says that `name` in `parent` has `attributes`, in answer to a question sent at change `as_of`.

        Returns the inode, or None when the name was removed here after the question was sent. If it is open or has
        other names, the attributes are not taken for its own.
        """
        state = _state(parent)
        if state.removed and state.removed.get(name, -1) > as_of:
            return None
        state.absent.pop(name, None)
        inode = state.children.get(name)
        if inode is not None and inode.changed <= as_of and other_kind(inode, attributes):
            self.part(inode)
            inode = None
        if inode is None:
            inode = self._add(parent, name)
        if not inode.files and not inode.more_names:
            self.update(inode, attributes, now_s, as_of)
        return inode

    def update(self, inode: Inode, attributes: Attributes, now_s: float, as_of: int) -> None:
        """The server says that `inode` has `attributes`, in answer to a question sent at change `as_of`."""
        if inode.changed <= as_of:
            inode.attributes = attributes
            inode.fetched_at_s = now_s

    def learn_absent(self, parent: Inode, name: bytes, now_s: float, as_of: int) -> None:
        """The server says that there is no `name` in `parent`."""
        state = _state(parent)
        inode = state.children.get(name)
        if inode is not None:
            if inode.changed > as_of:
                return
            self.part(inode)
        if len(state.absent) >= MAX_ABSENT:
            state.absent.clear()
        state.absent[name] = now_s

    def learn_complete(self, parent: Inode, names: set[bytes], now_s: float, as_of: int) -> None:
        """`names` were all, in answer to questions the first of which was sent at `now_s` and change `as_of`."""
        state = _state(parent)
        for name, inode in list(state.children.items()):
            if name in names or inode.changed > as_of or inode.fetched_at_s > now_s:
                continue
            if state.children.get(name) is inode:  # else it went with another name
                self._detach_name(inode, parent, name, listing_stands=True)
                self.part(inode)
        if state.doubted <= as_of:  # else what came up meanwhile may be missing here
            state.listed_at_s = now_s

    def part(self, inode: Inode) -> None:
        """Somebody else has changed what a name of `inode` leads to: none of its names leads to it any more.

        Which of several is still the file that was known cannot be told, and the kernel may take each for this inode.
        It is told to look again, and finds for each name what is there.
        """
        while inode.parent is not None:
            self._detach_name(inode, inode.parent, inode.name)

    def is_walked(self, parent: Inode, now_s: float, life_s: float) -> bool:
        """Whether `parent` is gone through name by name, and was not listed within `life_s`; True once."""
        state = _state(parent)
        if state.asked_singly < WALK_AFTER or max(state.walked_at_s, state.listed_at_s) + life_s > now_s:
            return False
        state.asked_singly, state.walked_at_s = 0, now_s
        return life_s > 0

    def found_singly(self, parent: Inode) -> None:
        """The server was asked for one name in `parent`, and has it."""
        _state(parent).asked_singly += 1

    def is_absent(self, parent: Inode, name: bytes, now_s: float, life_s: float) -> bool:
        """Whether `name` is known not to be in `parent`, by a complete listing or an answer not older than `life_s`."""
        state = _state(parent)
        if name in state.children:
            return False
        return max(state.listed_at_s, state.absent.get(name, NEVER_S)) + life_s > now_s

    # -- changes made here --------------------------------------------------------------------------------------------

    def touch(self, inode: Inode) -> int:
        """`inode` was changed here: what is known of its attributes is old, and answers under way are too."""
        self.changes += 1
        inode.changed = self.changes
        inode.fetched_at_s = NEVER_S
        return self.changes

    def add(self, parent: Inode, name: bytes) -> Inode:
        """`name` was made here, in `parent`; whatever had the name before is gone."""
        state = _state(parent)
        old = state.children.get(name)
        if old is not None:
            self._detach_name(old, parent, name)
        state.absent.pop(name, None)
        state.removed.pop(name, None)
        inode = self._add(parent, name)
        self.touch(inode)
        self.touch(parent)
        return inode

    def made_directory(self, inode: Inode, now_s: float) -> None:
        """`inode` is a directory just made here: it is known to be empty."""
        _state(inode).listed_at_s = now_s

    def remove(self, parent: Inode, name: bytes) -> None:
        """`name` was removed here from `parent`. The inode lives on while anyone refers to it."""
        self.touch(parent)
        self._note_removed(parent, name)
        inode = _state(parent).children.get(name)
        if inode is not None:
            self.touch(inode)
            self._detach_name(inode, parent, name, listing_stands=True)

    def rename(self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes) -> None:
        """A name was moved here; the inode keeps its number, and what stood at the new name is gone."""
        source, target = _state(old_parent), _state(new_parent)
        inode = source.children.get(old_name)
        replaced = target.children.get(new_name)
        self.moves += 1
        self.touch(old_parent)
        self.touch(new_parent)
        if inode is not None and inode is replaced:
            return  # two names of one file: rename(2) then does nothing
        if replaced is not None:
            self.touch(replaced)
            self._detach_name(replaced, new_parent, new_name, listing_stands=True)
        self._note_removed(old_parent, old_name)
        target.absent.pop(new_name, None)
        target.removed.pop(new_name, None)
        if inode is None:
            self._doubt(target)  # something is there now of which nothing is known
            return
        del source.children[old_name]
        target.children[new_name] = inode
        _replace_name(inode, (old_parent, old_name), (new_parent, new_name))
        self.touch(inode)
        self._settle(old_parent)
        self._settle(new_parent)

    def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """A further name for `inode` was made here."""
        state = _state(parent)
        old = state.children.get(name)
        if old is not None:
            self._detach_name(old, parent, name)
        state.absent.pop(name, None)
        state.removed.pop(name, None)
        state.children[name] = inode
        if inode.gone:
            inode.parent, inode.name = parent, name
        elif inode.more_names is None:
            inode.more_names = [(parent, name)]
        else:
            inode.more_names.append((parent, name))
        self.touch(inode)
        self.touch(parent)
        self._settle(parent)

    def distrust(self, parent: Inode, *names: bytes) -> None:
        """An operation on `names` in `parent` ended in doubt: believe nothing of them."""
        state = _state(parent)
        self._doubt(state)
        state.absent.clear()
        self.touch(parent)
        for name in names:
            inode = state.children.get(name)
            if inode is not None:
                self.touch(inode)

    # -- references ---------------------------------------------------------------------------------------------------

    def refer(self, inode: Inode) -> None:
        """The kernel was told of `inode`, once more."""
        inode.lookups += 1
        if inode.lookups == 1:
            self._idle.pop(inode.number, None)

    def forget(self, number: int, count: int) -> None:
        """The kernel dropped `count` of its references."""
        inode = self._by_number.get(number)
        if inode is not None:
            inode.lookups = max(0, inode.lookups - count)
            self._settle(inode)

    @contextmanager
    def held(self, inode: Inode) -> Iterator[None]:
        """Keep `inode` known while the block runs, as a reference of the kernel's does."""
        self.refer(inode)
        try:
            yield
        finally:
            self.forget(inode.number, 1)

    def open_file(self, inode: Inode, file: object) -> None:
        """`file` is open on `inode` from now on."""
        if inode.files is None:
            inode.files = []
        inode.files.append(file)
        self._idle.pop(inode.number, None)

    def close_file(self, inode: Inode, file: object) -> None:
        """`file` is no longer open on `inode`."""
        if inode.files is not None and file in inode.files:
            inode.files.remove(file)
            if not inode.files:
                inode.files = None
        self._settle(inode)

    # -- within -------------------------------------------------------------------------------------------------------

    def _add(self, parent: Inode, name: bytes) -> Inode:
        inode = Inode(self._free_number(parent.number, name), parent, name)
        self._by_number[inode.number] = inode
        _state(parent).children[name] = inode
        self._idle.pop(parent.number, None)
        self._settle(inode)
        return inode

    def _free_number(self, parent_number: int, name: bytes) -> int:
        salt = parent_number.to_bytes(8, "big")
        attempt = name
        for turn in range(1 << 16):
            digest = hashlib.blake2b(attempt, digest_size=8, salt=salt).digest()
            number = int.from_bytes(digest, "big") >> 1  # 63 bits: some programs read inode numbers as signed
            if number > ROOT_NUMBER and number not in self._by_number:
                return number
            attempt = b"%b/%d" % (name, turn)  # no name holds a slash
        raise AssertionError("65,536 inodes share one name")

    def _note_removed(self, parent: Inode, name: bytes) -> None:
        state = _state(parent)
        if state.asking:
            state.removed[name] = self.changes

    def _doubt(self, state: Directory) -> None:
        """What is known of a directory's names may no longer be all, and no listing under way can make it so."""
        self.changes += 1
        state.doubted = self.changes
        state.listed_at_s = NEVER_S

    def _detach_name(self, inode: Inode, parent: Inode, name: bytes, *, listing_stands: bool = False) -> None:
        """Take one name from an inode; `listing_stands`: we know that the name is absent, not just in doubt."""
        state = _state(parent)
        del state.children[name]
        if not listing_stands:
            self._doubt(state)
        _replace_name(inode, (parent, name), None)
        self._settle(inode)
        self._settle(parent)

    def _settle(self, inode: Inode) -> None:
        """Decide anew whether `inode` is referred to, idle, or to be dropped."""
        number = inode.number
        if inode.lookups or inode.files or inode is self.root or (inode.directory and inode.directory.children):
            self._idle.pop(number, None)
        elif inode.gone:
            self._idle.pop(number, None)
            self._by_number.pop(number, None)
        else:
            self._idle[number] = inode
            if self._dropping:  # the directory of what is dropped: it goes before what was just added
                self._idle.move_to_end(number, last=False)
            else:
                self._drop_surplus()

    def _drop_surplus(self) -> None:
        """Drop the longest idle. What a drop leaves idle is met by this loop: recursion could go thousands deep."""
        self._dropping = True
        while len(self._idle) > self._max_idle:
            inode = next(iter(self._idle.values()))
            for parent, name in inode.names():
                self._detach_name(inode, parent, name)
        self._dropping = False


def _state(inode: Inode) -> Directory:
    """Return what is known of the names in a directory; it begins when first asked for."""
    if inode.directory is None:
        inode.directory = Directory()
    return inode.directory


def other_kind(inode: Inode, attributes: Attributes) -> bool:
    """Whether `attributes` are of another kind of file than the inode is known to be."""
    kind = stat.S_IFMT(attributes.permissions or 0)
    return bool(inode.kind and kind and inode.kind != kind)


def _replace_name(inode: Inode, old: tuple[Inode, bytes], new: tuple[Inode, bytes] | None) -> None:
    """Give an inode `new` in the place of its name `old`; None takes the name away."""
    if inode.parent is old[0] and inode.name == old[1]:
        if new is None and inode.more_names:
            new = inode.more_names.pop(0)
        inode.parent, inode.name = new if new is not None else (None, inode.name)
    elif inode.more_names:
        at = inode.more_names.index(old)
        inode.more_names[at : at + 1] = [] if new is None else [new]
    if not inode.more_names:
        inode.more_names = None
