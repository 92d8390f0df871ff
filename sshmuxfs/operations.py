"""The file system as the kernel sees it: each request a few lines over `names` and `io`.

The rules of this file:
- Every method goes through `boundary`: nothing but FUSEError reaches pyfuse3, which would end the mount.
- The kernel's references are counted in the same synchronous step in which an entry is handed out.

What is absent, on purpose (the kernel remembers ENOSYS and does not ask again):

| request                        | errno  | why                                                                 |
|--------------------------------|--------|---------------------------------------------------------------------|
| get-, set-, list-, removexattr | ENOSYS | version 3 has no extended attributes; programs see EOPNOTSUPP       |
| mknod, not of a regular file   | EPERM  | version 3 cannot make devices, fifos or sockets                     |
| rename, EXCHANGE or WHITEOUT   | EINVAL | no request does it in one step                                      |
| poll                           | ENOSYS | regular files are always ready                                      |
| locks, fallocate, ioctl,       |        | not passed on by pyfuse3: the kernel locks among its own processes, |
| copy_file_range, SEEK_DATA     |        | and answers the others itself                                       |

Imported by `sshmuxfs.mount`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic, time
from typing import cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from sshmuxfs import pages
from sshmuxfs.diagnosis import diagnose_write
from sshmuxfs.directories import Directories
from sshmuxfs.errors import boundary, errno_of
from sshmuxfs.io.files import OpenFile, files_of, grown, invalidate_reads, submit_writes
from sshmuxfs.names import Names
from sshmuxfs.sftp.client import ChannelLost
from sshmuxfs.sftp.protocol import Attributes, OpenFlag, Status, StatusError, Statvfs
from sshmuxfs.tree import attributes as numbers
from sshmuxfs.tree.attributes import View
from sshmuxfs.tree.inodes import Inode
from sshmuxfs.tree.symlinks import SymlinkPolicy, target_for_kernel

# What one stat should suggest as the size of an operation: programs such as cp and cat read and write by it.
BLOCK_SIZE_BYTES = 128 * 1024
# df asks once, a desktop every second; the figure moves slowly.
STATVFS_LIFE_S = 2.0


@dataclass(frozen=True, slots=True)
class Manners:
    """Options that shape single operations.

    `direct_io`: whether files do without the kernel's pages; None leaves it to each open.
    """

    direct_io: bool | None = None
    sync_writes: bool = False
    hard_links: bool = True


class Operations(pyfuse3.Operations):
    """The requests of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, names: Names, view: View, symlinks: SymlinkPolicy, manners: Manners) -> None:
        super().__init__()
        self._names = names
        self._tree = names.tree
        self._times = names.times
        self._view = view
        self._symlinks = symlinks
        self._manners = manners
        self._files: dict[int, OpenFile] = {}
        self._directories = Directories(names, self._entry)
        self._next_handle = 1
        self._statvfs: tuple[Statvfs, float] | None = None
        self._writing = 0
        self._settle_until_s: float | None = None
        self.on_ready: Callable[[], None] | None = None  # called once, when the kernel and libfuse know each other

    def init(self) -> None:
        """The kernel introduces itself. What it takes from our answer would undo what was set before."""
        if self.on_ready is not None:
            trio.lowlevel.current_trio_token().run_sync_soon(self.on_ready)

    # -- names and attributes -----------------------------------------------------------------------------------------

    def _entry(self, inode: Inode) -> EntryAttributes:
        now_s = monotonic()
        entry = EntryAttributes()
        mode, nlink, uid, gid, size, blocks, atime_ns, mtime_ns = self._view.stat(inode)
        entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid = mode, nlink, uid, gid
        entry.st_size, entry.st_blocks = size, blocks
        entry.st_atime_ns = atime_ns
        entry.st_mtime_ns = entry.st_ctime_ns = mtime_ns  # version 3 tells no time of attribute changes
        entry.st_ino = inode.number
        entry.st_blksize = BLOCK_SIZE_BYTES
        entry.attr_timeout = self._times.attr_timeout_s(inode.fetched_at_s, now_s)
        entry.entry_timeout = self._times.entry_timeout_s(inode.fetched_at_s, now_s)
        return entry

    def _given(self, inode: Inode) -> EntryAttributes:
        """An entry that the kernel will count as one more reference."""
        entry = self._entry(inode)
        self._tree.refer(inode)
        return entry

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._tree.inode(parent_inode)
        try:
            found = await self._names.look_up(parent, name, ctx.pid)
            found.looked_up_at_s = monotonic()
            return self._given(found)
        except OSError as error:
            if error.errno != errno.ENOENT or not self._times.kernel_negative_s:
                raise
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = self._times.kernel_negative_s
        return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            self._tree.forget(number, count)

    @boundary
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        found = self._tree.inode(inode)
        await self._names.refresh(found)
        return self._entry(found)

    @boundary
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        target = self._tree.inode(inode)
        atime = numbers.seconds(attr.st_atime_ns) if fields.update_atime else None
        mtime = numbers.seconds(attr.st_mtime_ns) if fields.update_mtime else None
        if (fields.update_atime and atime is None) or (fields.update_mtime and mtime is None):
            raise FUSEError(errno.EINVAL)
        uid, gid = self._view.identity.to_remote(
            attr.st_uid if fields.update_uid else None, attr.st_gid if fields.update_gid else None
        )
        wanted = Attributes(
            size=attr.st_size if fields.update_size else None,
            uid=uid,
            gid=gid,
            permissions=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            atime=atime,
            mtime=mtime,
        )
        if wanted == Attributes():
            await self._names.refresh(target)
        else:
            await self._names.set_attributes(target, wanted, self._files.get(fh) if fh is not None else None)
        return self._entry(target)

    @boundary
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        # The server decides about reading and writing when it comes to it; who may execute is in the mode alone.
        if mode & os.X_OK:
            found = self._tree.inode(inode)
            await self._names.refresh(found)
            permissions = found.attributes.permissions or 0
            return not stat.S_ISREG(permissions) or bool(permissions & 0o111)
        return True

    @boundary
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        link = self._tree.inode(inode)
        target = target_for_kernel(self._symlinks, self._tree.path(link), await self._names.readlink(link))
        if target is None:
            raise FUSEError(errno.EPERM)
        return target

    @boundary
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._given(await self._names.make_link(self._tree.inode(parent_inode), name, target))

    @boundary
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        file = await self._names.create(self._tree.inode(parent_inode), name, mode, OpenFlag.WRITE | OpenFlag.EXCL)
        entry = self._given(file.inode)
        self._names.close(file)
        return entry

    @boundary
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._given(await self._names.make_directory(self._tree.inode(parent_inode), name, mode))

    @boundary
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._names.remove(self._tree.inode(parent_inode), name, directory=False)

    @boundary
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._names.remove(self._tree.inode(parent_inode), name, directory=True)

    @boundary
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        await self._names.rename(
            *(self._tree.inode(parent_inode_old), name_old, self._tree.inode(parent_inode_new), name_new),
            replace=not flags,
        )

    @boundary
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        if not self._manners.hard_links:
            raise FUSEError(errno.EPERM)
        target = self._tree.inode(inode)
        await self._names.hard_link(target, self._tree.inode(new_parent_inode), new_name)
        await self._names.refresh(target)
        return self._given(target)

    # -- files --------------------------------------------------------------------------------------------------------

    def _file_info(self, file: OpenFile, flags: int) -> FileInfo:
        """Hand out a file that was opened with `flags`."""
        self._next_handle += 1
        handle = self._next_handle
        self._files[handle] = file
        inode = file.inode
        if file.writer is not None:
            # As when it was accepted: what was asked before it is sent is answered without it.
            file.writer.on_sent = partial(self._tree.touch, inode)
        wanted = self._manners.direct_io
        file.bypasses = pages.may_bypass(file) if wanted is None else wanted
        file.synchronous = file.bypasses and bool(flags & os.O_DSYNC)
        keep = pages.stand(inode, time() + self._names.server_ahead_s)
        if not keep:
            invalidate_reads(inode)  # the kernel may fill its pages through any descriptor of the file
            if file.writer is None:
                submit_writes(inode)
                file.reader.begin()
        return FileInfo(fh=handle, direct_io=file.bypasses, keep_cache=keep)

    def _file(self, handle: int) -> OpenFile:
        return self._files[handle]

    @boundary
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        target = self._tree.inode(inode)
        before = target.attributes
        file = await self._names.open_for(ctx.pid, target, _pflags(flags))
        if target.attributes != before:
            # The kernel still believes what it was told; reading by an old size would show the file cut off.
            pyfuse3.invalidate_inode(target.number, attr_only=True)
        return self._file_info(file, flags)

    @boundary
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        file = await self._names.create(self._tree.inode(parent_inode), name, mode, _pflags(flags))
        return self._file_info(file, flags), self._given(file.inode)

    @boundary
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._file(fh)
        submit_writes(file.inode)
        # pyfuse3 takes any buffer, whatever its stubs say: the answer is a view of where the server's bytes were
        # received.
        try:
            return cast("bytes", await file.reader.read(off, size))
        except ChannelLost as error:  # with the channel went the handle: connecting again does not help this file
            raise FUSEError(errno.EIO) from error

    @boundary
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._file(fh)
        if file.writer is None:
            raise FUSEError(errno.EBADF)
        inode = file.inode
        invalidate_reads(inode)
        self._tree.touch(inode)
        inode.cached_as = None
        inode.attributes = grown(inode.attributes, off + len(buf))
        submit_writes(inode, but=file)
        self._writing += 1
        try:
            await file.writer.write(off, buf)
            if file.bypasses and pages.shown(inode):
                await pages.renew(inode, off, buf)
            if self._manners.sync_writes or file.synchronous:
                await file.writer.drain()
            if file.synchronous:
                await self._sync(file)
        except Exception as error:
            raise await self._write_failed(file, len(buf), error) from error
        finally:
            self._writing -= 1
        return len(buf)

    async def _write_failed(self, file: OpenFile, length: int, error: Exception) -> FUSEError:
        """The errno of a write that failed, found once and told again as long as the file is open."""
        assert file.writer is not None
        if errno_of(error) is None:
            raise error  # a bug of ours, and the boundary's to tell
        if not isinstance(file.writer.error, FUSEError):
            if isinstance(error, ChannelLost):  # accepted bytes are lost: that is more than "not connected"
                file.writer.error = FUSEError(errno.EIO)
            else:
                offset, length = file.writer.failed or (None, length)
                number = await diagnose_write(file.client, file.handle, length, error, offset)
                file.writer.error = FUSEError(number)
        return file.writer.error

    async def _drain(self, file: OpenFile) -> None:
        if file.writer is None:
            return
        try:
            await file.writer.drain()
        except Exception as error:
            raise await self._write_failed(file, 1, error) from error

    @boundary
    async def flush(self, fh: int) -> None:
        await self._drain(self._file(fh))

    @boundary
    async def fsync(self, fh: int, datasync: bool) -> None:
        file = self._file(fh)
        submit_writes(file.inode)
        # The kernel writes a mapping back through any descriptor of the file: what is on the way is waited for, and a
        # failure that nobody was told of is told here.
        others = [each for each in files_of(file.inode) if each is not file and each.writer and not each.writer.told]
        await self._drain(file)
        for other in others:
            await self._hear(other)
        await self._sync(file)

    async def _hear(self, file: OpenFile) -> None:
        """Wait for what another descriptor has accepted; if that fails, both are told."""
        assert file.writer is not None
        await file.writer.settled()
        error = file.writer.error
        if error is None:
            return
        file.writer.told = True
        if file in files_of(file.inode):
            raise await self._write_failed(file, 1, error) from error
        # Closed meanwhile: its handle may be another file's by now, so that what it was cannot be found out.
        raise error if isinstance(error, FUSEError) else FUSEError(errno.EIO)

    async def _sync(self, file: OpenFile) -> None:
        """Have the server's disk hold what it has; a server that cannot be asked for it has done what it can."""
        try:
            await file.client.fsync(file.handle)
        except ChannelLost as error:
            raise FUSEError(errno.EIO) from error
        except StatusError as error:
            if error.code != Status.OP_UNSUPPORTED:
                raise FUSEError(await diagnose_write(file.client, file.handle, 1, error)) from error

    @boundary
    async def release(self, fh: int) -> None:
        self._names.close(self._files.pop(fh))

    # -- directories --------------------------------------------------------------------------------------------------

    @boundary
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._directories.open(self._tree.inode(inode))

    @boundary
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        await self._directories.read(fh, start_id, token)

    @boundary
    async def releasedir(self, fh: int) -> None:
        self._directories.release(fh)

    @boundary
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Every change to a directory was acknowledged before it was reported: nothing is left to do."""

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        now_s = monotonic()
        if self._statvfs is None or self._statvfs[1] + STATVFS_LIFE_S < now_s:
            try:
                self._statvfs = await self._names.statvfs(), now_s
            except StatusError as error:
                if error.code != Status.OP_UNSUPPORTED:
                    raise
                # Unknown is told as zero blocks, which df leaves out, rather than as figures made up.
                self._statvfs = Statvfs(4096, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 255), now_s
        known = self._statvfs[0]
        data = StatvfsData()
        data.f_bsize, data.f_frsize = known.bsize, known.frsize or known.bsize
        data.f_blocks, data.f_bfree, data.f_bavail = known.blocks, known.bfree, known.bavail
        data.f_files, data.f_ffree, data.f_favail = known.files, known.ffree, known.favail
        data.f_namemax = min(known.namemax or 255, 255)
        return data

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """Whether a file is open for writing; the kernel may then hold changes to a mapping of it."""
        return any(file.writer is not None for file in self._files.values())

    @property
    def is_writing(self) -> bool:
        """Whether there is something to be written that was not accepted yet."""
        return self._writing > 0

    async def settled(self) -> None:
        """Wait for what was accepted and is not answered."""
        await self._names.settle()

    async def settle(self, within_s: float) -> None:
        """Before the end: wait for what was accepted and is not answered; called again, for what is left of that time.

        What is lost then is told by `give_up`.
        """
        if self._settle_until_s is None:
            self._settle_until_s = trio.current_time() + within_s
        with trio.move_on_at(self._settle_until_s):
            await self._names.settle()

    @property
    def lossy_files(self) -> int:
        """How many files may lack what was written to them, with no program told."""
        return self._names.lossy_files

    def give_up(self) -> list[str]:
        """The end: a line for each file that may lack what was written to it; each was logged as well."""
        self._names.give_up()
        unnamed = self._names.lossy_files - len(self._names.losses)
        return self._names.losses + ([f"and {unnamed} files more; the log names them"] if unnamed else [])


def _pflags(flags: int) -> int:
    access = flags & os.O_ACCMODE
    pflags = 0
    if access in (os.O_RDONLY, os.O_RDWR):
        pflags |= OpenFlag.READ
    if access in (os.O_WRONLY, os.O_RDWR):
        pflags |= OpenFlag.WRITE
    if flags & os.O_APPEND:
        pflags |= OpenFlag.APPEND
    if flags & os.O_TRUNC:
        pflags |= OpenFlag.TRUNC
    if flags & os.O_EXCL:
        pflags |= OpenFlag.EXCL
    return pflags
