"""What the kernel is told of a file, made from what the server said. Pure.

The rule of this file: server attributes are checked here, once, before anything else reads a size or a mode from them.

Imported by `sshmuxfs.operations`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NamedTuple

from sshmuxfs.sftp.protocol import Attributes
from sshmuxfs.tree.identity import IdentityMap
from sshmuxfs.tree.inodes import Inode

_KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))
_MAX_SIZE_BYTES = 2**63 - 1  # off_t
MAX_TIME_S = 2**32 - 1  # version 3 sends times as uint32
NS_PER_S = 1_000_000_000
BLOCK_BYTES = 512  # the unit of st_blocks


class BadAttributes(Exception):
    """The server sent attributes that no file can have."""


def checked(attributes: Attributes) -> Attributes:
    """Return `attributes` as a file's: with a known kind, and a size that fits. Raises BadAttributes."""
    mode = attributes.permissions
    if mode is None or stat.S_IFMT(mode) not in _KINDS:
        raise BadAttributes(f"mode {mode!r} has no kind of file in it")
    if attributes.size is not None and attributes.size > _MAX_SIZE_BYTES:
        raise BadAttributes(f"a size of {attributes.size} bytes is more than any file can have")
    return attributes


class Stat(NamedTuple):
    """The numbers of a struct stat; times in nanoseconds since 1970."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class View:
    """How this mount shows files: whose they are, and with which permissions (`umask` replaces them, as in libfuse)."""

    identity: IdentityMap
    umask: int | None = None

    def stat(self, inode: Inode) -> Stat:
        """Return what the kernel is told of `inode`, from its last known attributes. The type must be known."""
        size, uid, gid, permissions, atime, mtime = inode.attributes
        mode = permissions or 0
        if self.umask is not None:
            mode = stat.S_IFMT(mode) | (0o777 & ~self.umask)
        local_uid, local_gid = self.identity.to_local(uid or 0, gid or 0)
        size = size or 0
        return Stat(
            *(mode & 0o177777, inode.link_count, local_uid, local_gid),
            *(size, (size + BLOCK_BYTES - 1) // BLOCK_BYTES),
            *((atime or 0) * NS_PER_S, (mtime or 0) * NS_PER_S),
        )


def seconds(time_ns: int) -> int | None:
    """The whole second of a time to set, or None if version 3 cannot say it (before 1970, after 2106)."""
    second = time_ns // NS_PER_S
    return second if 0 <= second <= MAX_TIME_S else None
