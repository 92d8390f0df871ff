"""Changes to names: what makes, moves and removes them, and what changes the attributes behind them.

The rules of this file:
- A change is told to the tree when the server has agreed to it; if its outcome is unknown, what it concerned is
  believed no more.
- What was refused because its path led nowhere is tried again if a rename made here may have been the reason: nothing
  was done then.

Imported by `sshmuxfs.names`.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from sshmuxfs.errors import errno_of
from sshmuxfs.io.files import OpenFile, files_of, invalidate_reads, submit_writes
from sshmuxfs.io.listing import NAME_MAX
from sshmuxfs.questions import MAX_CROSSINGS, Questions, again_if_crossed, failure
from sshmuxfs.session import Link
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, OpenFlag, Request, StatusError
from sshmuxfs.stillness import Stillness
from sshmuxfs.tree.attributes import checked
from sshmuxfs.tree.cache import CacheTimes
from sshmuxfs.tree.inodes import NEVER_S, Inode, Tree

log = logging.getLogger(__name__)

MODE_BITS = 0o7777


class Changes(Questions):
    """What the mount does about names."""

    def __init__(self, link: Link, tree: Tree, times: CacheTimes, *, follow: bool) -> None:
        super().__init__(link, tree, times, follow=follow)
        self.stillness = Stillness()
        self._renames: list[Pending] = []  # on the way

    async def _change(self, client: Client, request: Request, tell: Callable[[], None]) -> None:
        """Make a change, and `tell` the tree of it in the moment the server agrees.

        Before any later answer is heard, that is: tasks wake up in any order, and an answer to what was asked after
        this would be taken for somebody else's doing.
        """
        (pending,) = client.submit(request)
        moving = isinstance(request, sftp.Rename | sftp.PosixRename)
        if moving:
            self._renames.append(pending)
            self.tree.moving += 1

        def heard(done: Pending) -> None:
            if moving:
                self._renames.remove(done)
                self.tree.moving -= 1
            if done.error is None:
                tell()

        if pending.done:  # the stream broke in the sending
            heard(pending)
        else:
            pending.on_done = heard
        try:
            await client.wait(pending)
        except StatusError as error:
            raise await self._diagnosed(client, request, error) from error

    @contextmanager
    def _in_doubt(self, *places: tuple[Inode, bytes]) -> Iterator[None]:
        """If the block's outcome stays unknown, or contradicts what is believed, believe nothing about `places`."""
        try:
            yield
        except Exception:
            for parent, name in places:
                self.tree.distrust(parent, name)
            raise

    @again_if_crossed
    async def set_attributes(self, inode: Inode, wanted: Attributes, file: OpenFile | None) -> None:
        """Change size, mode, owner or times. Of a pair (uid and gid, atime and mtime) one may be None: it stays.

        Raises OSError.
        """
        client = await self._link.client()
        if file is None:
            await self._check_names(client, inode)
        writable = wanted.size is not None
        wanted = await self._completed(inode, wanted)
        if self._live(client, inode, file, writable=writable) is None:
            await self._renames_heard(client)
        # Only now: whatever was waited for, the file may have been closed, and its handle be that of another.
        file = self._live(client, inode, file, writable=writable)
        submit_writes(inode)
        if wanted.size is not None:
            invalidate_reads(inode)
            inode.cached_as = None
        self.tree.touch(inode)
        if inode.directory is not None and (wanted.permissions is not None or wanted.uid is not None):
            inode.directory.listed_at_s = NEVER_S  # whether it may still be read is the server's to say
        as_of, now_s = self.tree.changes, monotonic()
        moving = self.tree.crossing is not None  # a path may lead elsewhere by the time the server hears of it
        by_handle = file is not None and (inode.gone or moving or wanted.size is not None)
        if by_handle:
            assert file is not None
            requests: tuple[Request, Request] = (sftp.Fsetstat(file.handle, wanted), sftp.Fstat(file.handle))
        else:
            path = self.tree.path(inode)
            asked = sftp.Fstat(file.handle) if file is not None else self._question(path)
            requests = (self._setstat(client, inode, path, wanted), asked)
        changed, found = client.submit(*requests)
        await client.settled(found)
        try:
            await client.wait(changed)
        except StatusError as error:
            raise await self._diagnosed(client, requests[0], error) from error
        self.tree.update(inode, checked(await client.wait(found)), now_s, as_of)
        if inode.changed > as_of and not inode.gone:
            await self._ask_attributes(inode)  # a rename crossed it, or a write: that answer says nothing of both

    async def _renames_heard(self, client: Client) -> None:
        """Wait for the renames that are under way: they may move a file, where a path is all there is to name it."""
        for _ in range(MAX_CROSSINGS):
            if not self._renames:
                return
            await client.settled(self._renames[-1])

    def _setstat(self, client: Client, inode: Inode, path: bytes, wanted: Attributes) -> Request:
        """SETSTAT follows links, so a link needs LSETSTAT; without that, better no change than one of its target."""
        if inode.kind != stat.S_IFLNK:
            return sftp.Setstat(path, wanted)
        if sftp.Lsetstat.EXTENSION not in client.extensions:
            raise failure(errno.EOPNOTSUPP)
        return sftp.Lsetstat(path, wanted)

    async def _completed(self, inode: Inode, wanted: Attributes) -> Attributes:
        """Fill in the other half of a pair: version 3 only sets both.

        It is asked for anew, so that no old owner or time of change is put back; an old time of access harms nobody.
        """
        half_owner = (wanted.uid is None) != (wanted.gid is None)
        half_times = (wanted.atime is None) != (wanted.mtime is None)
        if half_owner or (half_times and (wanted.mtime is None or inode.attributes.atime is None)):
            await self._ask_attributes(inode)
        now = inode.attributes
        if half_times:
            wanted = wanted._replace(atime=_or(wanted.atime, now.atime), mtime=_or(wanted.mtime, now.mtime))
        if half_owner:
            wanted = wanted._replace(uid=_or(wanted.uid, now.uid), gid=_or(wanted.gid, now.gid))
        return wanted

    def _live(self, client: Client, inode: Inode, file: OpenFile | None, *, writable: bool) -> OpenFile | None:
        """A file open on `inode` over the channel there is: the one given, if it serves."""
        candidates = [file, *files_of(inode)] if file is not None else files_of(inode)
        needed = OpenFlag.WRITE if writable else OpenFlag.READ | OpenFlag.WRITE
        return next((each for each in candidates if each.client is client and each.pflags & needed), None)

    async def make_directory(self, parent: Inode, name: bytes, mode: int) -> Inode:
        """mkdir. The mode is as the caller's umask left it; the server's umask is undone."""
        now_s = monotonic()
        wanted = Attributes(permissions=mode & MODE_BITS)
        inode = await self._made(parent, name, lambda path: sftp.Mkdir(path, wanted))
        self.tree.made_directory(inode, now_s)
        got = (inode.attributes.permissions or 0) & MODE_BITS
        inherited = got & stat.S_ISGID  # from the parent directory, as on any local file system
        if got != mode & MODE_BITS | inherited:
            try:
                with self.tree.held(inode):
                    await self.set_attributes(inode, Attributes(permissions=mode & MODE_BITS | inherited), None)
            except Exception as error:  # it is there, with the mode that there can be
                if errno_of(error) is None:
                    raise
                log.debug("the mode of a new directory stays as the server made it: %s", error)
        return inode

    async def make_link(self, parent: Inode, name: bytes, target: bytes) -> Inode:
        """symlink."""
        return await self._made(parent, name, lambda path: sftp.Symlink(target, path))

    @again_if_crossed
    async def _made(self, parent: Inode, name: bytes, make: Callable[[bytes], Request]) -> Inode:
        """Send what makes a name, and the question what came of it, together."""
        client = await self._link.client()
        path = self._new_path(parent, name)
        with self.tree.asking(parent), self._in_doubt((parent, name)):
            request = make(path)
            made, found = client.submit(request, sftp.Lstat(path))
            now_s = monotonic()
            await client.settled(found)
            try:
                await client.wait(made)
            except StatusError as error:
                raise await self._diagnosed(client, request, error) from error
            attributes = checked(await client.wait(found))
        inode = self.tree.add(parent, name)
        self.tree.update(inode, attributes, now_s, self.tree.changes)
        return inode

    @again_if_crossed
    async def hard_link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """link."""
        client = await self._link.client()
        if sftp.Hardlink.EXTENSION not in client.extensions:
            raise failure(errno.EPERM)  # what link(2) says of a file system without hard links
        await self._check_names(client, inode)
        path = self._new_path(parent, name)
        submit_writes(inode)
        with self._in_doubt((parent, name)):
            request = sftp.Hardlink(self.tree.path(inode), path)
            await self._change(client, request, lambda: self.tree.link(inode, parent, name))

    @again_if_crossed
    async def remove(self, parent: Inode, name: bytes, *, directory: bool) -> None:
        """unlink or rmdir. What is open stays readable and writable: the server's handles hold it."""
        client = await self._link.client()
        await self.stillness.wait((parent, name))
        path = self.tree.path(parent, name)
        request: Request = sftp.Rmdir(path) if directory else sftp.Remove(path)
        with self._in_doubt((parent, name)), self.stillness.changing((parent, name)):
            await self._change(client, request, lambda: self.tree.remove(parent, name))

    @again_if_crossed
    async def rename(
        self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, *, replace: bool
    ) -> None:
        """rename. Without `replace`, an existing new name is EEXIST (SSH_FXP_RENAME, which never replaces)."""
        client = await self._link.client()
        places = (old_parent, old_name), (new_parent, new_name)
        await self.stillness.wait(*places)
        old, new = self.tree.path(old_parent, old_name), self._new_path(new_parent, new_name)
        request: Request = sftp.Rename(old, new)
        if replace and sftp.PosixRename.EXTENSION in client.extensions:
            request = sftp.PosixRename(old, new)
        with self._in_doubt(*places), self.stillness.changing(*places):
            await self._change(client, request, lambda: self.tree.rename(old_parent, old_name, new_parent, new_name))

    def _new_path(self, parent: Inode, name: bytes) -> bytes:
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        return self.tree.path(parent, name)


def _or(value: int | None, other: int | None) -> int:
    return value if value is not None else other or 0
