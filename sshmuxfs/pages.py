"""The kernel's pages of a file: when they stand, when a file does without them, and how they stay right.

The rule of this file: from the moment a write is acknowledged, no page shows what was there before.

Pages are of no use to a file that is only written: nobody reads them there, and the next open drops those of a file
that was written. Its writes bypass them (FOPEN_DIRECT_IO), which saves finding a page for every 4 KiB and a copy of
every byte.

Who opens the file beside such a writer may have pages, and mappings. Kernels from 6.6 on write back and drop the pages
that a write replaces, before it reaches us (fs/fuse/file.c); what is read into them meanwhile is renewed here. Older
ones do neither, and may write back later what a mapping had changed before: with those, nothing is bypassed.

Imported by `sshmuxfs.operations` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import errno
import logging
import re
import stat

import pyfuse3
import trio

from sshmuxfs.io.files import OpenFile, files_of
from sshmuxfs.sftp.protocol import OpenFlag
from sshmuxfs.tree.inodes import Inode

log = logging.getLogger(__name__)

# Version 3 tells whole seconds: a file changed within the last two may change again without showing it.
SETTLED_S = 2.0

# A write waits so long for pages that others are reading. Those reads may be waiting for a place among the requests
# that we serve at a time, and all places be taken by such writes.
RENEW_S = 5.0
_FIRST_THAT_DROPS = (6, 6)
# Threads that wait for pages: as many as there can be writes. Those that were left behind count, and take no other's.
_THREADS = trio.CapacityLimiter(40)


def dropped_by(release: str) -> bool:
    """Whether a kernel (`os.uname().release`) drops the pages that a write beside them replaces; not, if in doubt."""
    version = re.match(r"(\d+)\.(\d+)", release)
    return version is not None and (int(version[1]), int(version[2])) >= _FIRST_THAT_DROPS


def stand(inode: Inode, server_now_s: float) -> bool:
    """Whether the kernel's pages are still good for a file that is opened now; and note what it will have pages of.

    They are if the file is as it was when they were read, and had settled by then.
    """
    seen = (inode.attributes.size or 0, inode.attributes.mtime or 0)
    settled = seen[1] + SETTLED_S < server_now_s
    standing = settled and inode.cached_as == seen
    # Pages of a file that had not settled may be of any of its versions, however long ago that is by then.
    inode.cached_as = seen if settled else None
    return standing


def may_bypass(file: OpenFile) -> bool:
    """Whether `file` can do without pages: it is only written, and nobody who has it open has pages.

    Not for appending: the kernel's idea of where that went may be wrong, and most such files are logs, which others
    read along. Not with a set-uid or set-gid bit: for writes by way of pages the kernel sees to it that they go.
    """
    inode = file.inode
    return (
        file.pflags & (OpenFlag.READ | OpenFlag.WRITE | OpenFlag.APPEND) == OpenFlag.WRITE
        and not (inode.attributes.permissions or 0) & (stat.S_ISUID | stat.S_ISGID)
        and all(each.bypasses for each in files_of(inode) if each is not file)
    )


def shown(inode: Inode) -> bool:
    """Whether somebody has the file open by way of pages."""
    return any(not each.bypasses for each in files_of(inode))


async def renew(inode: Inode, offset: int, data: bytes) -> None:
    """Put into the kernel's pages what was accepted from a writer that bypasses them.

    In a thread, since it waits for pages that are being read, which is by requests that the loop answers. After RENEW_S
    it is left to itself, as at the end of the mount: a read that is answered later than that has these bytes by itself,
    or they come behind it.
    """
    with trio.move_on_after(RENEW_S) as waiting:
        await trio.to_thread.run_sync(_store, inode.number, offset, data, abandon_on_cancel=True, limiter=_THREADS)
    if waiting.cancelled_caught:
        log.debug("pages of inode %d are still being read after %g s", inode.number, RENEW_S)


def _store(number: int, offset: int, data: bytes) -> None:
    try:
        pyfuse3.notify_store(number, offset, data)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the kernel has forgotten the file, and its pages
            log.warning("the kernel does not take what was written, its pages may be old: %s", error)
