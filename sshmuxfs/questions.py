"""Questions about names: the tree joined with the server, as far as nothing is changed.

The rules of this file:
- A question notes the tree's count of changes in the same synchronous step in which it is sent; its answer is learned
  only as far as nothing was changed here since.
- Version 3 names files by whole paths. A rename made here while a question is on the way may have led it elsewhere: it
  is then asked again (`again_if_crossed`), and what it was answered is not learned.
- What is open or has several names is asked for by all that leads to it, the handle and every name, in one send. They
  share all attributes; if they do not, somebody else has put another file under a name (`_learn_ways`).
- A refusal is diagnosed once and leaves here as an OSError with the errno that a local file system would give.

Imported by `sshmuxfs.changes`, `sshmuxfs.names`.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Concatenate, ParamSpec, TypeVar

from sshmuxfs.diagnosis import diagnose
from sshmuxfs.io.files import OpenFile, files_of, submit_writes
from sshmuxfs.io.listing import NAME_MAX, Listing
from sshmuxfs.session import Link
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, Request, Status, StatusError
from sshmuxfs.tree.attributes import BadAttributes, checked
from sshmuxfs.tree.cache import CacheTimes
from sshmuxfs.tree.inodes import Gone, Inode, Tree, other_kind
from sshmuxfs.tree.symlinks import LONGEST_TARGET_BYTES
from sshmuxfs.tree.ways import Asked, Said

P = ParamSpec("P")
T = TypeVar("T")
Q = TypeVar("Q", bound="Questions")

# A directory that is walked name by name is learned in one go, up to some ten replies of OpenSSH.
WALK_NAMES = 1000
# Each further attempt needs another rename in the time of one round trip: more than this is nobody's work.
MAX_CROSSINGS = 5


def failure(number: int) -> OSError:
    """An OSError with the errno `number`."""
    return OSError(number, os.strerror(number))


class Crossed(Gone):
    """A rename made here crossed a request: its path may have led to something else."""


def again_if_crossed(
    method: Callable[Concatenate[Q, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Q, P], Coroutine[Any, Any, T]]:
    """Try again, a bounded number of times, when what was named by its path was not found and may have been moved."""

    @functools.wraps(method)
    async def trying(self: Q, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(MAX_CROSSINGS):
            moves = self.tree.moves
            try:
                return await method(self, *args, **kwargs)
            except Crossed:
                continue
            except OSError as error:
                if moves == self.tree.moves or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
        return await method(self, *args, **kwargs)

    return trying


class Questions:
    """What the mount knows about names, and can ask. `follow`: links are shown as what they lead to."""

    def __init__(self, link: Link, tree: Tree, times: CacheTimes, *, follow: bool) -> None:
        self.tree = tree
        self.times = times
        self._link = link
        self._follow = follow

    async def _diagnosed(self, client: Client, request: Request, error: StatusError) -> OSError:
        return failure(await diagnose(client, request, error))

    def _check_way(self, path: bytes, moves: int | None, inode: Inode, name: bytes | None = None) -> None:
        """See that `path` led to the inode (or `name` in it) when the server heard of it. Raises Crossed.

        `moves` is what `Tree.crossing` was when the path was sent. Raises Gone if the inode has no name left.
        """
        if moves is not None and moves != self.tree.moves and self.tree.path(inode, name) != path:
            raise Crossed("it was renamed meanwhile")

    async def find(self, parent: Inode, name: bytes) -> Inode:
        """Return the inode of `name` in `parent`, asking the server unless it is freshly known. Raises OSError."""
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        known = parent.directory.children.get(name) if parent.directory else None
        if known is not None and self._is_fresh(known):
            return known
        if self.tree.is_absent(parent, name, monotonic(), self.times.negative_s):
            raise failure(errno.ENOENT)
        if self.tree.is_walked(parent, monotonic(), self.times.dir_s):
            await self._walk(parent)
            known = parent.directory.children.get(name) if parent.directory else None
            if known is not None and self._is_fresh(known):
                return known
        return await self._find_there(parent, name)

    @again_if_crossed
    async def _find_there(self, parent: Inode, name: bytes) -> Inode:
        client = await self._link.client()
        known = parent.directory.children.get(name) if parent.directory else None
        if known is not None and (known.files or known.more_names):
            try:
                await self._ask_ways(client, known)
            except Crossed:
                raise
            except Gone:
                pass  # something else has the name, and is known now if it could be asked for
            known = parent.directory.children.get(name) if parent.directory else None
            if known is not None:
                self.tree.found_singly(parent)
                return known
        moves, path = self.tree.crossing, self.tree.path(parent, name)
        with self.tree.asking(parent) as as_of:
            now_s = monotonic()
            try:
                attributes = await self._attributes_of(client, path)
                self._check_way(path, moves, parent, name)
            except StatusError as error:
                if error.code == Status.NO_SUCH_FILE:
                    self._check_way(path, moves, parent, name)
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

    @again_if_crossed
    async def _ask_attributes(self, inode: Inode) -> None:
        client = await self._link.client()
        submit_writes(inode)
        as_of, moves, now_s = self.tree.changes, self.tree.crossing, monotonic()
        if inode.gone:
            if inode.kind == stat.S_IFDIR:
                return  # still open here, without a name: what was last known of it is all there is
            await self._ask_by_handle(client, inode, Gone("the file was removed"))
            return
        if inode.files or inode.more_names:
            try:
                await self._ask_ways(client, inode)
            except Crossed:
                raise
            except Gone as error:
                await self._ask_by_handle(client, inode, error)
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
                if not inode.gone:
                    self._check_way(path, moves, inode)
                self.tree.learn_absent(parent, name, now_s, as_of)
                if inode.parent is None:
                    await self._ask_by_handle(client, inode, Gone("the file was removed elsewhere"))
                return
            if not inode.gone:
                self._check_way(path, moves, inode)
            found = self.tree.learn(parent, name, attributes, now_s, as_of)
        # Removed here meanwhile, it is no longer what was asked about: what is known of it stands.
        if found is not inode and inode.changed <= as_of:
            raise Gone("something else has taken the name")

    async def _ask_by_handle(self, client: Client, inode: Inode, otherwise: Gone) -> None:
        file = self._file_on(client, inode)
        if file is None:
            raise otherwise
        submit_writes(inode)
        as_of, now_s = self.tree.changes, monotonic()
        self.tree.update(inode, checked(await client.fstat(file.handle)), now_s, as_of)

    def _file_on(self, client: Client, inode: Inode) -> OpenFile | None:
        return next((each for each in files_of(inode) if each.client is client), None)

    # -- all that leads to one file -----------------------------------------------------------------------------------

    async def _ask_ways(self, client: Client, inode: Inode) -> None:
        """Ask for the attributes of an inode by all that leads to it. Raises as `_learn_ways`."""
        await self._learn_ways(client, inode, self._submit_ways(client, inode))

    async def _check_names(self, client: Client, inode: Inode) -> None:
        """Before something is done by one name that cannot be undone: see that whichever was meant leads there.

        Raises Gone if not; OSError.
        """
        if inode.more_names:
            await self._ask_ways(client, inode)

    def _submit_ways(self, client: Client, inode: Inode, *before: Request) -> Asked:
        """Send `before`, and the questions about all that leads to an inode. Raises Gone if a name leads nowhere."""
        submit_writes(inode)
        ways = self.tree.ways(inode)
        questions = [self._question(path) for _, _, path in ways]
        file = self._file_on(client, inode)
        if file is not None:
            questions.append(sftp.Fstat(file.handle))
        as_of, moves, now_s = self.tree.changes, self.tree.crossing, monotonic()
        pendings = client.submit(*before, *questions)
        return Asked(pendings[: len(before)], pendings[len(before) :], ways, as_of, moves, now_s)

    async def _said(self, client: Client, asked: Asked) -> Said:
        ways: list[Attributes | StatusError] = []
        held = None
        await client.settled(asked.pendings[-1])
        for (_, _, path), pending in zip(asked.ways, asked.pendings, strict=False):
            try:
                ways.append(await self._told(client, path, pending))
            except StatusError as error:
                ways.append(error)
        if len(asked.pendings) > len(asked.ways):
            with suppress(StatusError, BadAttributes):
                held = checked(await client.wait(asked.pendings[-1]))
        return Said(ways, held)

    async def _learn_ways(self, client: Client, inode: Inode, asked: Asked) -> None:
        """Learn what is answered to questions about all that leads to an inode.

        Raises Gone if it does not lead to one file: then something else was put under a name, the inode has lost its
        names, and what they lead to now is learned. Raises Crossed, OSError.
        """
        said = await self._said(client, asked)
        same = said.complete and said.agrees
        if said.complete and not same and not inode.gone:
            # Or it was changed from one answer to the next, as a log is that grows: then it is not so twice.
            before, asked = self._submit_ways(client, inode), self._submit_ways(client, inode)
            earlier, said = await self._said(client, before), await self._said(client, asked)
            same = said.complete and (said.agrees or not said.repeats(earlier))
        same = same and not any(other_kind(inode, each) for each in said.seen)
        if inode.gone:
            if not same:
                raise Gone("it has lost its names meanwhile")
            return
        if (not same or asked.moves not in (None, self.tree.moves)) and self.tree.ways(inode) != asked.ways:
            raise Crossed("one of its names was changed here meanwhile")
        if same:
            self.tree.update(inode, said.of_file, asked.now_s, asked.as_of)
            return
        refusals = [each for each in said.ways if isinstance(each, StatusError) and each.code != Status.NO_SUCH_FILE]
        if len(refusals) == len(said.ways):
            raise await self._diagnosed(client, self._question(asked.ways[0][2]), refusals[0]) from refusals[0]
        self._part(inode, asked, said)
        raise Gone("something else has taken the name")

    def _part(self, inode: Inode, asked: Asked, said: Said) -> None:
        """Take the names from an inode, and learn what they lead to."""
        self.tree.part(inode)
        if said.held is not None:
            self.tree.update(inode, said.held, asked.now_s, asked.as_of)
        for (parent, name, _), each in zip(asked.ways, said.ways, strict=True):
            if isinstance(each, Attributes):
                self.tree.learn(parent, name, each, asked.now_s, asked.as_of)
            elif each.code == Status.NO_SUCH_FILE:
                self.tree.learn_absent(parent, name, asked.now_s, asked.as_of)

    async def _attributes_of(self, client: Client, path: bytes) -> Attributes:
        """Ask for the attributes of a path; of a link that leads nowhere, its own."""
        (pending,) = client.submit(self._question(path))
        return await self._told(client, path, pending)

    async def _told(self, client: Client, path: bytes, pending: Pending) -> Attributes:
        """The answer to the question about a path; for a link that leads nowhere, asks for its own attributes."""
        try:
            return checked(await client.wait(pending))
        except StatusError as error:
            if not self._follow or error.code != Status.NO_SUCH_FILE:
                raise
        return checked(await client.lstat(path))

    def _question(self, path: bytes) -> Request:
        return sftp.Stat(path) if self._follow else sftp.Lstat(path)

    def _is_fresh(self, inode: Inode) -> bool:
        return inode.fetched_at_s + self.times.stat_s > monotonic()

    @again_if_crossed
    async def readlink(self, inode: Inode) -> bytes:
        """Return the target of a link as the server has it."""
        now_s = monotonic()
        if inode.link_target is None or inode.link_fetched_at_s + self.times.link_s <= now_s:
            client = await self._link.client()
            moves, path = self.tree.crossing, self.tree.path(inode)
            try:
                target = await client.readlink(path)
            except StatusError as error:
                raise await self._diagnosed(client, sftp.Readlink(path), error) from error
            self._check_way(path, moves, inode)
            # What no link can hold is not kept; who is given nothing is told what is told of that.
            inode.link_target = target if len(target) <= LONGEST_TARGET_BYTES else b""
            inode.link_fetched_at_s = now_s
        return inode.link_target

    @again_if_crossed
    async def list(self, inode: Inode, *, whole: bool = True) -> Listing:
        """Open a directory; `whole`: what the listing lacks is not there."""
        listing = Listing(self.tree, inode, follow=self._follow, ask=self._question, whole=whole)
        try:
            directory = inode.directory
            if directory is not None and directory.listed_at_s + self.times.dir_s > monotonic():
                listing.from_tree()
                return listing
            client = await self._link.client()
            moves, path = self.tree.crossing, self.tree.path(inode)
            try:
                await listing.from_server(client, path)
            except StatusError as error:
                raise await self._diagnosed(client, sftp.Opendir(path), error) from error
            self._check_way(path, moves, inode)
        except BaseException:
            listing.close()
            raise
        return listing

    async def statvfs(self) -> sftp.Statvfs:
        """The file system that the mount's root is on."""
        client = await self._link.client()
        return await client.statvfs(self.tree.path(self.tree.root))
