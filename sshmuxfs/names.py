"""The tree of names joined with the server: files are found, opened, made and closed here.

The rules of this file:
- A file that was opened is the file that was meant: if a rename made here crossed the open, its path may have led to
  another, and what was opened is given back.
- What was accepted and may be lost is told: to the program by its next call, and if there is none any more, in the log.

What asks and what changes names is in `questions` and `changes`; `Names` is all of it.

Imported by `sshmuxfs.operations`.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Coroutine
from time import monotonic, time
from typing import Any

from mux.errors import printable
from sshmuxfs.changes import MODE_BITS, Changes
from sshmuxfs.io.files import Memory, OpenFile, files_of, invalidate_reads, submit_writes
from sshmuxfs.questions import MAX_CROSSINGS, again_if_crossed
from sshmuxfs.session import Link
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client, RequestTimeout, describe
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, OpenFlag, Status, StatusError
from sshmuxfs.tree.attributes import checked
from sshmuxfs.tree.cache import CacheTimes
from sshmuxfs.tree.inodes import Gone, Inode, Tree

log = logging.getLogger(__name__)

# Longer than the kernel takes between the lookup and the open of its second attempt.
_RETRY_S = 1.0
# For the last words of a mount: who lost more has to read the log.
MAX_LOSSES = 100
_ACCESS = OpenFlag.READ | OpenFlag.WRITE


class Names(Changes):
    """What the mount knows and does about names and the files behind them."""

    def __init__(self, link: Link, tree: Tree, times: CacheTimes, *, follow: bool = False, ahead: bool = True) -> None:
        super().__init__(link, tree, times, follow=follow)
        self.memory = Memory()
        self.server_ahead_s = 0.0  # how far the server's clock is ahead of ours, by the last file made there
        # Files that may lack what was written to them, told to no program; and what was logged of the first of them.
        self.lossy_files = 0
        self.losses: list[str] = []
        self._ahead = ahead
        self._open_files: set[OpenFile] = set()
        self._closing: dict[Pending, OpenFile] = {}  # files that were written to, and whose CLOSE is not answered

    # -- opening ------------------------------------------------------------------------------------------------------

    def look_up(self, parent: Inode, name: bytes, caller: int) -> Coroutine[Any, Any, Inode]:
        """`find` for the kernel, on behalf of the thread `caller`."""
        if self.stillness.awaits(caller):
            return self._find_still(parent, name, caller)
        return self.find(parent, name)  # nearly always, and at no cost

    async def _find_still(self, parent: Inode, name: bytes, caller: int) -> Inode:
        await self.stillness.before_lookup(caller, parent, name)
        try:
            found = await self.find(parent, name)
        except BaseException:
            self.stillness.opened(caller)  # there is nothing to open
            raise
        self.stillness.after_lookup(caller)
        return found

    async def open_for(self, caller: int, inode: Inode, pflags: int) -> OpenFile:
        """`open` for the kernel, on behalf of the thread `caller`: told to look again, it is to find what it opens."""
        try:
            if inode.gone and not self.stillness.awaits(caller):
                raise Gone("it has no name any more")  # its name may lead to another: see what the kernel means by it
            file = await self.open(inode, pflags)
        except Gone:
            self.stillness.refused(caller)
            raise
        except BaseException:
            self.stillness.opened(caller)
            raise
        self.stillness.opened(caller)
        return file

    @again_if_crossed
    async def open(self, inode: Inode, pflags: int) -> OpenFile:
        """Open a file and learn its attributes in the same round trip.

        Raises OSError, and Gone if it has no name any more, or its name leads elsewhere now.
        """
        client = await self._link.client()
        if pflags & OpenFlag.TRUNC:
            # What was opened by mistake is given back, not what it held.
            await self._renames_heard(client)
            await self._check_names(client, inode)
        submit_writes(inode)
        if inode.gone:
            return self._open_again(client, inode, pflags)
        if pflags & OpenFlag.TRUNC:
            invalidate_reads(inode)
            self.tree.touch(inode)
        path = self.tree.ways(inode)[0][2]
        request = sftp.Open(path, pflags, sftp.NO_ATTRIBUTES)
        asked = self._submit_ways(client, inode, request)
        await client.settled(asked.pendings[-1])
        try:
            handle: bytes = await client.wait(asked.before[0])
        except StatusError as error:
            if inode.more_names:
                await self._learn_ways(client, inode, asked)  # another name may have been meant: then it is looked up
            if error.code == Status.NO_SUCH_FILE and inode.parent is not None:
                self._check_way(path, asked.moves, inode)
                self.tree.learn_absent(inode.parent, inode.name, asked.now_s, asked.as_of)
                # The kernel looks the name up again, once: then an open that may create does so. Whoever has just
                # looked it up and comes too late has met a race, and is told what is true.
                if inode.looked_up_at_s + _RETRY_S < asked.now_s:
                    raise Gone("removed elsewhere") from error
            raise await self._diagnosed(client, request, error) from error
        try:
            self._check_way(path, asked.moves, inode)
            await self._learn_ways(client, inode, asked)
        except BaseException:
            client.close_nowait(handle)
            raise
        return self._opened(inode, client, handle, path, pflags)

    def _open_again(self, client: Client, inode: Inode, pflags: int) -> OpenFile:
        """Open a file that has no name, by a handle it is open with. Raises Gone if there is none that serves."""
        for file in files_of(inode):
            serves = file.pflags & OpenFlag.APPEND == pflags & OpenFlag.APPEND and not pflags & _ACCESS & ~file.pflags
            if serves and file.client is client and not pflags & OpenFlag.TRUNC:
                return self._opened(inode, client, file.handle, file.path, pflags, sharers=file.sharers)
        raise Gone("it has no name any more")

    async def create(self, parent: Inode, name: bytes, mode: int, pflags: int) -> OpenFile:
        """Make and open a file. Without EXCL a file that is there already is opened as it is, its mode untouched."""
        for _ in range(MAX_CROSSINGS):
            file = await self._create(parent, name, mode, pflags)
            if file is not None:
                return file
            try:
                inode = await self.find(parent, name)
                with self.tree.held(inode):
                    return await self.open(inode, pflags)
            except Gone:
                continue  # it was there, and is no more what it was
        raise Gone("its name is taken again and again")

    @again_if_crossed
    async def _create(self, parent: Inode, name: bytes, mode: int, pflags: int) -> OpenFile | None:
        """Make and open a file; None if it is there already, which is all right without EXCL."""
        client = await self._link.client()
        path = self._new_path(parent, name)
        wanted = Attributes(permissions=mode & MODE_BITS)
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
                return None
            try:
                attributes = checked(await client.wait(found))
            except BaseException:
                client.close_nowait(handle)
                raise
        inode = self.tree.add(parent, name)
        self.tree.update(inode, attributes, now_s, self.tree.changes)
        self.server_ahead_s = (attributes.mtime or 0) - time()
        file = self._opened(inode, client, handle, path, pflags & ~OpenFlag.EXCL)
        if (attributes.permissions or 0) & MODE_BITS != mode & MODE_BITS:  # the server's umask
            await self._set_mode(file, wanted)
        return file

    async def _set_mode(self, file: OpenFile, wanted: Attributes) -> None:
        """Give a new file the mode it was to have, whatever the server's umask.

        Where modes cannot be changed (FAT, or a server that does not let us) the file is what it is, as it would be on
        a local file system of that kind.
        """
        inode, now_s = file.inode, monotonic()
        try:
            await file.client.call(sftp.Fsetstat(file.handle, wanted))
        except StatusError as error:
            log.debug("%s: its mode stays as the server made it: %s", printable(file.path), describe(error))
            return
        except BaseException:
            self.close(file)
            raise
        changed = inode.attributes._replace(permissions=stat.S_IFREG | (wanted.permissions or 0))
        self.tree.update(inode, changed, now_s, self.tree.changes)

    def _opened(
        self,
        inode: Inode,
        client: Client,
        handle: bytes,
        path: bytes,
        pflags: int,
        sharers: list[OpenFile] | None = None,
    ) -> OpenFile:
        memory, ahead = self.memory, self._ahead
        file = OpenFile(inode, client, handle, path=path, pflags=pflags, memory=memory, ahead=ahead, sharers=sharers)
        self.tree.open_file(inode, file)
        self._open_files.add(file)
        return file

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self, file: OpenFile) -> None:
        """Close a file; its inode may now be forgotten.

        Nobody waits for that, but what comes of it is heard where something was written: a write that no call waited
        for (of a mapping) may still fail, and a server may tell only now that it could not keep what it took (a quota,
        or NFS behind it).
        """
        self._open_files.discard(file)
        pending = file.close()
        if pending is not None and file.written:
            self._closing[pending] = file
            pending.on_done = self._closed
        elif file.untold is not None:
            self._lost(file, file.untold)
        self.tree.close_file(file.inode, file)

    def _closed(self, pending: Pending) -> None:
        file = self._closing.pop(pending, None)
        if file is None:
            return  # given up, and told
        # A channel that ended says nothing of what it had acknowledged before.
        refused = pending.error if isinstance(pending.error, StatusError | RequestTimeout) else None
        error = file.untold or refused
        if error is not None:
            self._lost(file, error)

    def _lost(self, file: OpenFile, error: Exception) -> None:
        """What was written to a file may not be there, and no program is told by a call of its own."""
        inode = file.inode
        if inode.gone:
            return  # nobody will read it again
        self.tree.touch(inode)
        inode.cached_as = None
        said = describe(error) if isinstance(error, StatusError) else str(error)
        line = f"{printable(self._path_of(file))}: what was written last may be lost: {said}"
        log.warning(line)
        self.lossy_files += 1
        if len(self.losses) < MAX_LOSSES:
            self.losses.append(line)

    def _path_of(self, file: OpenFile) -> bytes:
        try:
            return self.tree.path(file.inode)
        except Gone:
            return file.path

    async def settle(self) -> None:
        """Wait until the server has answered for all that was written: for open files, and for those just closed."""
        files = self._written()
        for file in files:
            submit_writes(file.inode)
        for file in files:
            assert file.writer is not None
            await file.writer.settled()
        for pending, file in list(self._closing.items()):
            await file.client.settled(pending)

    def give_up(self) -> None:
        """The mount ends: what the server has not answered for may be lost, and is told so."""
        for file in self._written():
            assert file.writer is not None
            if file.untold is not None or file.writer.pending_bytes:
                self._lost(file, file.untold or _Unanswered(file.writer.pending_bytes))
        closing, self._closing = self._closing, {}
        for file in closing.values():
            assert file.writer is not None
            if file.writer.pending_bytes:
                self._lost(file, _Unanswered(file.writer.pending_bytes))

    def _written(self) -> list[OpenFile]:
        return [file for file in self._open_files if file.written]


class _Unanswered(Exception):
    def __init__(self, count: int) -> None:
        super().__init__(f"{count} bytes were not acknowledged when the mount ended")
