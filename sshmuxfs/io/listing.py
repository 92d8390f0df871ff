"""One open directory: its names in the order the server gave them, growing as the kernel asks.

The rules of this file:
- A position is an index into `names`, which never changes once given out: what is created or removed meanwhile moves
  nothing.
- Names no directory can hold ('/', NUL, empty, over 255 bytes) are dropped one by one, as are '.', '..' and
  repetitions.
- What is heard enters the tree at once; a name removed here while the directory is open stays removed.

Imported by `sshmuxfs.questions`.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections import deque
from collections.abc import Callable
from time import monotonic

from mux.errors import printable
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, Entry, Request, Status, StatusError
from sshmuxfs.tree.attributes import BadAttributes, checked
from sshmuxfs.tree.inodes import NEVER_S, Inode, Tree

log = logging.getLogger(__name__)

NAME_MAX = 255
# OpenSSH answers a READDIR with at most 100 names: two cover most directories, and a long one deserves a deeper queue.
# 32 is what sshfs has proven harmless to servers.
FIRST_DEPTH = 2
LAST_DEPTH = 32
# A server that sends only nonsense must not fill the log.
MAX_COMPLAINTS = 5
# A server that answers for ever and tells nothing new must not hold its caller for ever. 1000 replies of OpenSSH are
# 100,000 names in a row that are repeated or no names at all.
MAX_BARREN = 1000


def acceptable(name: bytes) -> bool:
    """Whether a name from the server can stand in a directory."""
    return 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


class Listing:
    """A snapshot of a directory. `ask` makes the request for one path's attributes (LSTAT, or STAT to follow links).

    At its end the tree learns that there are no other names, unless the listing is not meant to be the `whole`.
    """

    def __init__(
        self, tree: Tree, inode: Inode, *, follow: bool, ask: Callable[[bytes], Request], whole: bool = True
    ) -> None:
        self.inode = inode
        self.names: list[bytes] = []
        self.begun = False  # whether the kernel has had any of it
        self._tree = tree
        self._follow = follow
        self._whole = whole
        self._ask = ask
        self._heard: list[tuple[Attributes, float, int] | None] = []  # for each name, until it was given out
        self._seen: set[bytes] = set()
        self._client: Client | None = None
        self._handle: bytes | None = None
        self._under_way: deque[tuple[Pending, float, int]] = deque()
        self._depth = FIRST_DEPTH
        self._started_s = monotonic()
        self._as_of = tree.begin_asking(inode)
        self._asking = True
        self._given = 0  # how many of the names the kernel has had
        self._complaints = 0
        self._barren = 0  # replies in a row without a new name

    def from_tree(self) -> None:
        """Take the names that the tree knows to be all."""
        assert self.inode.directory is not None
        known = self.inode.directory.children
        self.names = list(known)
        self._heard = [(child.attributes, child.fetched_at_s, self._tree.changes) for child in known.values()]

    async def from_server(self, client: Client, path: bytes) -> None:
        """Open the directory on the server and ask for its first names. Raises as any request does."""
        self._started_s, self._as_of = monotonic(), self._tree.changes
        self._handle = await client.call(sftp.Opendir(path))
        self._client = client
        self._ask_more()

    def close(self) -> None:
        """The directory is no longer open."""
        self._end_asking()
        self._finish()

    def _end_asking(self) -> None:
        if self._asking:
            self._asking = False
            self._tree.end_asking(self.inode)

    async def has(self, index: int) -> bool:
        """Whether there is a name at `index`; waits for the server as long as more are to come."""
        while index >= len(self.names):
            if self._handle is None:
                if self._given == len(self.names):
                    self._end_asking()  # the tree need not remember what is removed while this stays open
                return False
            await self._receive()
        return True

    def inode_at(self, index: int) -> Inode | None:
        """The inode of the name at `index`, None if it is not known (any more): it was removed here, or forgotten."""
        directory = self.inode.directory
        assert directory is not None
        name = self.names[index]
        known = directory.children.get(name)
        heard = self._heard[index]
        if known is None and heard is not None:
            attributes, heard_at_s, as_of = heard
            if directory.absent.get(name, NEVER_S) <= heard_at_s:
                known = self._tree.learn(self.inode, name, attributes, heard_at_s, as_of)
        return known

    def given(self, index: int) -> None:
        """The kernel has the name at `index`: its attributes are now the inode's business."""
        if self._heard[index] is not None:
            self._heard[index] = None
            self._given += 1
        self.begun = True

    # -- the conversation ---------------------------------------------------------------------------------------------

    def _ask_more(self) -> None:
        assert self._client is not None and self._handle is not None
        missing = self._depth - len(self._under_way)
        if missing > 0:
            now_s, as_of = monotonic(), self._tree.changes
            for pending in self._client.submit(*[sftp.Readdir(self._handle)] * missing):
                self._under_way.append((pending, now_s, as_of))

    async def _receive(self) -> None:
        """Take the next answer."""
        assert self._client is not None
        pending, asked_at_s, as_of = self._under_way[0]
        try:
            entries: list[Entry] = await self._client.wait(pending)
        except StatusError as error:
            self._finish()
            if error.code != Status.EOF:
                raise
            if self._whole:
                self._tree.learn_complete(self.inode, self._seen, self._started_s, self._as_of)
            self._seen = set()
            return
        except Exception:
            self._finish()
            raise
        if not self._under_way or self._under_way[0][0] is not pending:
            return  # another reader of the same directory stream was first
        self._under_way.popleft()
        self._depth = min(self._depth + 1, LAST_DEPTH)
        self._ask_more()
        settled = await self._settled(entries)
        self._barren = 0 if settled else self._barren + 1
        if self._barren > MAX_BARREN:
            self._finish()
            raise OSError(errno.EIO, "the server names the same files for ever, or none")
        for name, attributes in settled:
            self.names.append(name)
            self._heard.append((attributes, asked_at_s, as_of))
            self._tree.learn(self.inode, name, attributes, asked_at_s, as_of)

    async def _settled(self, entries: list[Entry]) -> list[Entry]:
        """The entries that can be shown, each with attributes that can be; asks for those that lack them."""
        good: list[Entry] = []
        unclear: list[Entry] = []
        for entry in entries:
            name, attributes = entry
            if name in self._seen or not acceptable(name):
                if name not in (b".", b".."):
                    self._complain(f"a name from the server is not shown: {printable(name)}")
                continue
            self._seen.add(name)
            mode = attributes.permissions
            if mode is None or (self._follow and stat.S_ISLNK(mode)):
                unclear.append(entry)
            else:
                good.append(entry)
        if unclear:
            good += await self._clear(unclear)
        return [entry for entry in good if self._is_good(entry)]

    async def _clear(self, entries: list[Entry]) -> list[Entry]:
        """Ask for the attributes of each entry; one that leads nowhere keeps its own, so that it can be removed."""
        assert self._client is not None
        asked = self._client.submit(*[self._ask(self._tree.path(self.inode, entry.filename)) for entry in entries])
        found = []
        for entry, pending in zip(entries, asked, strict=True):
            try:
                found.append(Entry(entry.filename, await self._client.wait(pending)))
            except StatusError:
                found.append(entry)
        return found

    def _is_good(self, entry: Entry) -> bool:
        try:
            checked(entry.attributes)
        except BadAttributes as error:
            self._complain(f"{printable(entry.filename)} is not shown: {error}")
            return False
        return True

    def _complain(self, text: str) -> None:
        if self._complaints < MAX_COMPLAINTS:
            self._complaints += 1
            log.warning(text)

    def _finish(self) -> None:
        if self._client is not None and self._handle is not None:
            self._client.close_nowait(self._handle)
        self._handle = None
        self._under_way.clear()
