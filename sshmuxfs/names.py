"""The tree of names joined with the server: questions about names, and changes to them.

The rules of this file:
- A question notes the tree's count of changes in the same synchronous step in which it is sent; its answer is learned
  only as far as nothing was changed here since.
- A change is told to the tree when the server has agreed to it; if its outcome is unknown, what it concerned is
  believed no more.
- A refusal is diagnosed once and leaves here as an OSError with the errno that a local file system would give.

Imported by `sshmuxfs.operations`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, time

from sshmuxfs.diagnosis import diagnose
from sshmuxfs.io.files import Memory, OpenFile, files_of, invalidate_reads, submit_writes
from sshmuxfs.io.listing import NAME_MAX, Listing
from sshmuxfs.session import Link
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.protocol import Attributes, OpenFlag, Request, Status, StatusError
from sshmuxfs.tree.attributes import checked
from sshmuxfs.tree.cache import CacheTimes
from sshmuxfs.tree.inodes import NEVER_S, Gone, Inode, Tree

_MODE_BITS = 0o7777
# A directory that is walked name by name is learned in one go, up to some ten replies of OpenSSH.
WALK_NAMES = 1000
# Longer than the kernel takes between the lookup and the open of its second attempt.
_RETRY_S = 1.0


def failure(number: int) -> OSError:
    """An OSError with the errno `number`."""
    return OSError(number, os.strerror(number))


class Names:
    """What the mount knows and does about names. `follow`: links are shown as what they lead to."""

    def __init__(self, link: Link, tree: Tree, times: CacheTimes, *, follow: bool = False, ahead: bool = True) -> None:
        self.tree = tree
        self.times = times
        self.memory = Memory()
        self.server_ahead_s = 0.0  # how far the server's clock is ahead of ours, by the last file made there
        self._link = link
        self._follow = follow
        self._ahead = ahead

    # -- asking -------------------------------------------------------------------------------------------------------

    async def find(self, parent: Inode, name: bytes) -> Inode:
        """Return the inode of `name` in `parent`, asking the server unless it is freshly known. Raises OSError."""
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        known = parent.directory.children.get(name) if parent.directory else None
        if known is not None and self._is_fresh(known):
            return known
        if self.tree.is_absent(parent, name, monotonic(), self.times.negative_s):
            raise failure(errno.ENOENT)
        client = await self._link.client()
        if self.tree.is_walked(parent, monotonic(), self.times.dir_s):
            await self._walk(parent)
            known = parent.directory.children.get(name) if parent.directory else None
            if known is not None and self._is_fresh(known):
                return known
        path = self.tree.path(parent, name)
        if known is not None:
            submit_writes(known)
        with self.tree.asking(parent) as as_of:
            now_s = monotonic()
            try:
                attributes = await self._attributes_of(client, path)
            except StatusError as error:
                if error.code == Status.NO_SUCH_FILE:
                    self.tree.learn_absent(parent, name, now_s, as_of)
                    raise failure(errno.ENOENT) from error
                raise await self._diagnosed(client, sftp.Lstat(path), error) from error
            inode = self.tree.learn(parent, name, attributes, now_s, as_of)
        if inode is None:
            raise failure(errno.ENOENT)
        self.tree.found_singly(parent)
        return inode

    async def _walk(self, parent: Inode) -> None:
        """Somebody goes through a directory name by name: learn what is there, if it can be read.

        Nothing is learned of what is not there. Who asks for a name that the server made since then did not list the
        directory, and expects to find it.
        """
        try:
            listing = await self.list(parent, whole=False)
        except OSError:
            return
        try:
            while len(listing.names) < WALK_NAMES and await listing.has(len(listing.names)):
                pass
        except (StatusError, OSError):
            return
        finally:
            listing.close()

    async def refresh(self, inode: Inode) -> None:
        """Make sure that the attributes of `inode` are fresh. Raises Gone if its name leads elsewhere now, OSError."""
        if not self._is_fresh(inode):
            await self._ask_attributes(inode)

    async def _ask_attributes(self, inode: Inode) -> None:
        client = await self._link.client()
        submit_writes(inode)
        as_of, now_s = self.tree.changes, monotonic()
        if inode.gone:
            if inode.kind == stat.S_IFDIR:
                return  # still open here, without a name: what was last known of it is all there is
            await self._ask_by_handle(client, inode, Gone("the file was removed"))
            return
        parent, name, path = inode.parent, inode.name, self.tree.path(inode)
        if parent is None:
            try:
                attributes = await self._attributes_of(client, path)
            except StatusError as error:
                raise await self._diagnosed(client, sftp.Lstat(path), error) from error
            self.tree.update(inode, attributes, now_s, as_of)
            return
        with self.tree.asking(parent):
            try:
                attributes = await self._attributes_of(client, path)
            except StatusError as error:
                if error.code != Status.NO_SUCH_FILE:
                    raise await self._diagnosed(client, sftp.Lstat(path), error) from error
                self.tree.learn_absent(parent, name, now_s, as_of)
                if inode.parent is None:
                    await self._ask_by_handle(client, inode, Gone("the file was removed elsewhere"))
                return
            found = self.tree.learn(parent, name, attributes, now_s, as_of)
        # Moved or removed here meanwhile, it is no longer what was asked about: what is known of it stands.
        if found is not inode and inode.changed <= as_of:
            raise Gone("something else has taken the name")

    async def _ask_by_handle(self, client: Client, inode: Inode, otherwise: Gone) -> None:
        as_of, now_s = self.tree.changes, monotonic()
        file = next((each for each in files_of(inode) if each.client is client), None)
        if file is None:
            raise otherwise
        self.tree.update(inode, checked(await client.fstat(file.handle)), now_s, as_of)

    async def _attributes_of(self, client: Client, path: bytes) -> Attributes:
        """Ask for the attributes of a path; of a link that leads nowhere, its own."""
        try:
            return checked(await client.call(self._question(path)))
        except StatusError as error:
            if not self._follow or error.code != Status.NO_SUCH_FILE:
                raise
        return checked(await client.lstat(path))

    def _question(self, path: bytes) -> Request:
        return sftp.Stat(path) if self._follow else sftp.Lstat(path)

    def _is_fresh(self, inode: Inode) -> bool:
        return inode.fetched_at_s + self.times.stat_s > monotonic()

    async def readlink(self, inode: Inode) -> bytes:
        """Return the target of a link as the server has it."""
        now_s = monotonic()
        if inode.link_target is None or inode.link_fetched_at_s + self.times.link_s <= now_s:
            client = await self._link.client()
            path = self.tree.path(inode)
            try:
                inode.link_target = await client.readlink(path)
            except StatusError as error:
                raise await self._diagnosed(client, sftp.Readlink(path), error) from error
            inode.link_fetched_at_s = now_s
        return inode.link_target

    async def list(self, inode: Inode, *, whole: bool = True) -> Listing:
        """Open a directory; `whole`: what the listing lacks is not there."""
        listing = Listing(self.tree, inode, follow=self._follow, ask=self._question, whole=whole)
        try:
            directory = inode.directory
            if directory is not None and directory.listed_at_s + self.times.dir_s > monotonic():
                listing.from_tree()
                return listing
            client = await self._link.client()
            path = self.tree.path(inode)
            try:
                await listing.from_server(client, path)
            except StatusError as error:
                raise await self._diagnosed(client, sftp.Opendir(path), error) from error
        except BaseException:
            listing.close()
            raise
        return listing

    async def statvfs(self) -> sftp.Statvfs:
        """The file system that the mount's root is on."""
        client = await self._link.client()
        return await client.statvfs(self.tree.path(self.tree.root))

    # -- changing -----------------------------------------------------------------------------------------------------

    async def _diagnosed(self, client: Client, request: Request, error: StatusError) -> OSError:
        return failure(await diagnose(client, request, error))

    async def _change(self, client: Client, request: Request, tell: Callable[[], None]) -> None:
        """Make a change, and `tell` the tree of it in the moment the server agrees.

        Before any later answer is heard, that is: tasks wake up in any order, and an answer to what was asked after
        this would be taken for somebody else's doing.
        """
        (pending,) = client.submit(request)
        pending.on_done = lambda done: tell() if done.error is None else None
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

    async def set_attributes(self, inode: Inode, wanted: Attributes, file: OpenFile | None) -> None:
        """Change size, mode, owner or times. Of a pair (uid and gid, atime and mtime) one may be None: it stays.

        Raises OSError.
        """
        client = await self._link.client()
        file = self._live(client, inode, file, writable=wanted.size is not None)
        wanted = await self._completed(inode, wanted)
        submit_writes(inode)
        if wanted.size is not None:
            invalidate_reads(inode)
            inode.cached_as = None
        self.tree.touch(inode)
        if inode.directory is not None and (wanted.permissions is not None or wanted.uid is not None):
            inode.directory.listed_at_s = NEVER_S  # whether it may still be read is the server's to say
        as_of, now_s = self.tree.changes, monotonic()
        by_handle = file is not None and (inode.gone or wanted.size is not None)
        if by_handle:
            assert file is not None
            requests: tuple[Request, Request] = (sftp.Fsetstat(file.handle, wanted), sftp.Fstat(file.handle))
        else:
            path = self.tree.path(inode)
            requests = (self._setstat(client, inode, path, wanted), self._question(path))
        changed, found = client.submit(*requests)
        await client.settled(found)
        try:
            await client.wait(changed)
        except StatusError as error:
            raise await self._diagnosed(client, requests[0], error) from error
        self.tree.update(inode, checked(await client.wait(found)), now_s, as_of)

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
        client = await self._link.client()
        path = self._new_path(parent, name)
        with self.tree.asking(parent), self._in_doubt((parent, name)):
            request = sftp.Mkdir(path, Attributes(permissions=mode & _MODE_BITS))
            now_s = monotonic()
            inode = await self._made(client, parent, name, request)
        self.tree.made_directory(inode, now_s)
        got = (inode.attributes.permissions or 0) & _MODE_BITS
        inherited = got & stat.S_ISGID  # from the parent directory, as on any local file system
        if got != mode & _MODE_BITS | inherited:
            await self.set_attributes(inode, Attributes(permissions=mode & _MODE_BITS | inherited), None)
        return inode

    async def make_link(self, parent: Inode, name: bytes, target: bytes) -> Inode:
        """symlink."""
        client = await self._link.client()
        path = self._new_path(parent, name)
        with self.tree.asking(parent), self._in_doubt((parent, name)):
            return await self._made(client, parent, name, sftp.Symlink(target, path))

    async def _made(self, client: Client, parent: Inode, name: bytes, request: Request) -> Inode:
        """Send what makes a name, and the question what came of it, together."""
        made, found = client.submit(request, sftp.Lstat(self.tree.path(parent, name)))
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

    async def hard_link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """link."""
        client = await self._link.client()
        if sftp.Hardlink.EXTENSION not in client.extensions:
            raise failure(errno.EPERM)  # what link(2) says of a file system without hard links
        path = self._new_path(parent, name)
        submit_writes(inode)
        with self._in_doubt((parent, name)):
            request = sftp.Hardlink(self.tree.path(inode), path)
            await self._change(client, request, lambda: self.tree.link(inode, parent, name))

    async def remove(self, parent: Inode, name: bytes, *, directory: bool) -> None:
        """unlink or rmdir. What is open stays readable and writable: the server's handles hold it."""
        client = await self._link.client()
        path = self.tree.path(parent, name)
        request: Request = sftp.Rmdir(path) if directory else sftp.Remove(path)
        with self._in_doubt((parent, name)):
            await self._change(client, request, lambda: self.tree.remove(parent, name))

    async def rename(
        self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, *, replace: bool
    ) -> None:
        """rename. Without `replace`, an existing new name is EEXIST (SSH_FXP_RENAME, which never replaces)."""
        client = await self._link.client()
        old, new = self.tree.path(old_parent, old_name), self._new_path(new_parent, new_name)
        request: Request = sftp.Rename(old, new)
        if replace and sftp.PosixRename.EXTENSION in client.extensions:
            request = sftp.PosixRename(old, new)
        with self._in_doubt((old_parent, old_name), (new_parent, new_name)):
            await self._change(client, request, lambda: self.tree.rename(old_parent, old_name, new_parent, new_name))

    def _new_path(self, parent: Inode, name: bytes) -> bytes:
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        return self.tree.path(parent, name)

    # -- opening ------------------------------------------------------------------------------------------------------

    async def open(self, inode: Inode, pflags: int) -> OpenFile:
        """Open a file and learn its attributes in the same round trip. Raises Gone if the name leads elsewhere now."""
        client = await self._link.client()
        submit_writes(inode)
        if pflags & OpenFlag.TRUNC:
            invalidate_reads(inode)
            self.tree.touch(inode)
        path = self.tree.path(inode)
        as_of, now_s = self.tree.changes, monotonic()
        request = sftp.Open(path, pflags, sftp.NO_ATTRIBUTES)
        opened, found = client.submit(request, self._question(path))
        await client.settled(found)
        try:
            handle: bytes = await client.wait(opened)
        except StatusError as error:
            if error.code == Status.NO_SUCH_FILE and inode.parent is not None:
                self.tree.learn_absent(inode.parent, inode.name, now_s, as_of)
                # The kernel looks the name up again, once: then an open that may create does so. Whoever has just
                # looked it up and comes too late has met a race, and is told what is true.
                if inode.looked_up_at_s + _RETRY_S < now_s:
                    raise Gone("removed elsewhere") from error
            raise await self._diagnosed(client, request, error) from error
        try:
            attributes = checked(await client.wait(found))
            if stat.S_IFMT(attributes.permissions or 0) != inode.kind:
                if inode.parent is not None:
                    self.tree.learn(inode.parent, inode.name, attributes, now_s, as_of)
                raise Gone("something else has taken the name")
        except BaseException:
            client.close_nowait(handle)
            raise
        self.tree.update(inode, attributes, now_s, as_of)
        return self._opened(inode, client, handle, path, pflags)

    async def create(self, parent: Inode, name: bytes, mode: int, pflags: int) -> OpenFile:
        """Make and open a file. Without EXCL a file that is there already is opened as it is, its mode untouched."""
        client = await self._link.client()
        path = self._new_path(parent, name)
        wanted = Attributes(permissions=mode & _MODE_BITS)
        request = sftp.Open(path, pflags | OpenFlag.CREAT | OpenFlag.EXCL, wanted)
        with self.tree.asking(parent), self._in_doubt((parent, name)):
            opened, found = client.submit(request, sftp.Lstat(path))
            now_s = monotonic()
            await client.settled(found)
            try:
                handle: bytes = await client.wait(opened)
            except StatusError as error:
                reason = await self._diagnosed(client, request, error)
                if reason.errno != errno.EEXIST or pflags & OpenFlag.EXCL:
                    raise reason from error
                self.tree.distrust(parent, name)
                return await self.open(await self.find(parent, name), pflags)
            try:
                attributes = checked(await client.wait(found))
            except BaseException:
                client.close_nowait(handle)
                raise
        inode = self.tree.add(parent, name)
        self.tree.update(inode, attributes, now_s, self.tree.changes)
        self.server_ahead_s = (attributes.mtime or 0) - time()
        file = self._opened(inode, client, handle, path, pflags & ~OpenFlag.EXCL)
        if (attributes.permissions or 0) & _MODE_BITS != mode & _MODE_BITS:  # the server's umask
            try:
                await client.call(sftp.Fsetstat(handle, wanted))
            except StatusError as error:
                self.close(file)
                raise await self._diagnosed(client, sftp.Setstat(path, wanted), error) from error
            changed = attributes._replace(permissions=stat.S_IFREG | mode & _MODE_BITS)
            self.tree.update(inode, changed, now_s, self.tree.changes)
        return file

    def _opened(self, inode: Inode, client: Client, handle: bytes, path: bytes, pflags: int) -> OpenFile:
        file = OpenFile(inode, client, handle, path=path, pflags=pflags, memory=self.memory, ahead=self._ahead)
        self.tree.open_file(inode, file)
        return file

    def close(self, file: OpenFile) -> None:
        """Close a file; its inode may now be forgotten."""
        file.close()
        self.tree.close_file(file.inode, file)


def _or(value: int | None, other: int | None) -> int:
    return value if value is not None else other or 0
