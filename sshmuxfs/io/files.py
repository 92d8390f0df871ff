"""Open files: a handle on the server, and what is known of the file it was opened on.

The rule of this file: before anything else asks the server about an inode, what its open files have accepted and not
sent is sent (`submit_writes`); order on the channel does the rest.

A file keeps the path and the identity (size, time of change) under which it was opened: a later channel can find it
again.

Imported by `sshmuxfs.operations`.
"""

from __future__ import annotations

from sshmuxfs.io import plan
from sshmuxfs.io.readahead import ReadAhead
from sshmuxfs.io.writebehind import Dirty, WriteBehind
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, OpenFlag
from sshmuxfs.tree.inodes import Inode


class OpenFile:
    """One open file of this mount: what a FUSE file handle stands for.

    `sharers` are the open files that stand on the same handle of the server, if there are others; the last one gives
    it back.
    """

    def __init__(
        self,
        inode: Inode,
        client: Client,
        handle: bytes,
        *,
        path: bytes,
        pflags: int,
        memory: Memory,
        ahead: bool,
        sharers: list[OpenFile] | None = None,
    ) -> None:
        self.inode = inode
        self.client = client
        self.handle = handle
        self.path = path
        self.pflags = pflags
        self.identity = (inode.attributes.size, inode.attributes.mtime)
        self.reader = ReadAhead(
            *(client, handle, lambda: inode.attributes.size, memory.read),
            ahead=ahead,
            version=lambda: (inode.attributes.mtime, inode.attributes.size),
        )
        self.bypasses = False  # whether the kernel does without pages for what goes through this file
        # O_SYNC of a file that does without pages: the kernel sends an FSYNC behind writes by way of pages only.
        self.synchronous = False
        self.writer = WriteBehind(client, handle, memory.dirty) if pflags & OpenFlag.WRITE else None
        self.sharers = [] if sharers is None else sharers
        self.sharers.append(self)

    @property
    def written(self) -> bool:
        """Whether anything was written through it."""
        return self.writer is not None and self.writer.used

    @property
    def untold(self) -> Exception | None:
        """What became of a write that failed, if no call was told of it."""
        return self.writer.error if self.writer is not None and not self.writer.told else None

    def close(self) -> Pending | None:
        """Give the handle back; what was accepted is sent before it. Returns what becomes of that, if it is sent."""
        if self.writer is not None:
            self.writer.submit()
        self.reader.give_back()
        self.sharers.remove(self)
        return None if self.sharers else self.client.close_nowait(self.handle)


class Memory:
    """The bounds that all open files of a mount share."""

    def __init__(self) -> None:
        self.read = plan.Budget(plan.READ_BUDGET_BYTES)
        self.dirty = Dirty()


def files_of(inode: Inode) -> list[OpenFile]:
    """The open files on an inode."""
    return [each for each in inode.files or () if isinstance(each, OpenFile)]


def submit_writes(inode: Inode, but: OpenFile | None = None) -> None:
    """Send what the inode's open files, `but` one, have accepted and not sent."""
    for file in inode.files or ():
        if file is not but and isinstance(file, OpenFile) and file.writer is not None:
            file.writer.submit()


def invalidate_reads(inode: Inode) -> None:
    """The inode's content was changed here: nothing that was fetched before may be shown any more."""
    for file in inode.files or ():
        if isinstance(file, OpenFile):
            file.reader.invalidate()


def grown(attributes: Attributes, end: int) -> Attributes:
    """The attributes of a file that was just written up to `end`."""
    return attributes if (attributes.size or 0) >= end else attributes._replace(size=end)
