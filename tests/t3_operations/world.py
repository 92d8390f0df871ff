"""A whole file system of ours without a kernel: `Operations` over `Names` and `Link` on real sftp-servers.

What a kernel would give is given by stand-ins, since pyfuse3 lets nobody but itself make them: `Fields` for
SetattrFields, whose members are read-only; `Reply` for a readdir token, with a `readdir_reply` that fills it; and
`invalidate_inode` and `notify_store` that keep what they are given. A RequestContext can be made, with zeros, and is
never looked into.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, cast
from unittest import mock

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, ReaddirToken, RequestContext, SetattrFields

from mux.downstream.passenger import SessionStream
from sshmuxfs import changes, questions, session
from sshmuxfs import names as names_module
from sshmuxfs import operations as operations_module
from sshmuxfs.io import listing
from sshmuxfs.names import Names
from sshmuxfs.operations import Manners, Operations
from sshmuxfs.session import Link
from sshmuxfs.sftp import client as client_module
from sshmuxfs.sftp.client import Client
from sshmuxfs.tree.attributes import View
from sshmuxfs.tree.cache import CacheTimes
from sshmuxfs.tree.identity import IdentityMap
from sshmuxfs.tree.inodes import ROOT_NUMBER, Inode, Tree
from sshmuxfs.tree.symlinks import SymlinkPolicy
from tests.support.sftp_process import SftpProcess

CTX = RequestContext()
_WITH_CLOCKS = (questions, changes, names_module, operations_module, session, listing, client_module)
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Fields:
    """Which attributes a setattr is about."""

    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False


@dataclass
class Reply:
    """The kernel's buffer of one readdir: room for so many entries, those taken, and those refused for lack of room."""

    room: int = 1000
    entries: list[tuple[bytes, EntryAttributes, int]] = field(default_factory=list)
    refused: int = 0

    def take(self, name: bytes, attributes: EntryAttributes, next_id: int) -> bool:
        if len(self.entries) == self.room:
            self.refused += 1
            return False
        self.entries.append((name, attributes, next_id))
        return True

    def names(self) -> list[bytes]:
        return [name for name, _, _ in self.entries]


def _reply(token: Any, name: bytes, attributes: EntryAttributes, next_id: int) -> bool:
    assert isinstance(token, Reply)
    return token.take(name, attributes, next_id)


class Clock:
    """A clock that stands still between one jump and the next."""

    def __init__(self) -> None:
        self.now_s = monotonic()

    def __call__(self) -> float:
        return self.now_s


class World:
    """The file system, and what a test does with it as a kernel would."""

    def __init__(self, operations: Operations, names: Names, link: Link, directory: Path) -> None:
        self.operations = operations
        self.names = names
        self.tree = names.tree
        self.link = link
        self.directory = directory
        self.processes: list[SftpProcess] = []
        self.invalidated: list[int] = []
        self.stored: list[tuple[int, int, bytes]] = []  # inode number, offset and bytes of what the kernel's pages got
        self.clock: Clock | None = None

    @property
    def process(self) -> SftpProcess:
        """The server that runs now."""
        return self.processes[-1]

    def asked(self) -> list[str]:
        """The kinds of the requests sent since the last time, CLOSE left out."""
        kinds = [type(request).__name__ for request in self.process.stream.requests()]
        self.process.stream.forget()
        return [kind for kind in kinds if kind != "Close"]

    async def lookup(self, path: str) -> EntryAttributes:
        """Look up one name after the other; the last one's entry."""
        number, entry = ROOT_NUMBER, None
        for name in path.split("/"):
            entry = await self.operations.lookup(number, os.fsencode(name), CTX)
            number = entry.st_ino
        assert entry is not None
        return entry

    async def number(self, path: str) -> int:
        return (await self.lookup(path)).st_ino

    def inode(self, number: int) -> Inode:
        return self.tree.inode(number)

    async def getattr(self, number: int) -> EntryAttributes:
        return await self.operations.getattr(number, CTX)

    async def setattr(self, number: int, *, fh: int | None = None, **values: int) -> EntryAttributes:
        """Set `mode`, `size`, `uid`, `gid`, `atime_ns` or `mtime_ns`."""
        attributes = EntryAttributes()
        for name, value in values.items():
            setattr(attributes, f"st_{name}", value)
        named = {f"update_{name.removesuffix('_ns')}": True for name in values}
        return await self.operations.setattr(number, attributes, cast(SetattrFields, Fields(**named)), fh, CTX)

    async def open(self, number: int, flags: int = os.O_RDONLY) -> int:
        return (await self.operations.open(number, flags, CTX)).fh

    async def create(
        self, name: str, mode: int = 0o644, flags: int = os.O_RDWR, parent: int = ROOT_NUMBER
    ) -> tuple[int, EntryAttributes]:
        """The handle and the entry of a new file."""
        info, entry = await self.operations.create(
            parent, os.fsencode(name), stat.S_IFREG | mode, flags | os.O_CREAT, CTX
        )
        return info.fh, entry

    async def contents(self, number: int) -> bytes:
        """Open, read, close."""
        handle = await self.open(number)
        found = b""
        while piece := bytes(await self.operations.read(handle, len(found), 1 << 17)):
            found += piece
        await self.operations.flush(handle)
        await self.operations.release(handle)
        return found

    async def readdir(self, handle: int, position: int = 0, room: int = 1000) -> Reply:
        reply = Reply(room)
        await self.operations.readdir(handle, position, cast(ReaddirToken, reply))
        return reply

    async def list(self, number: int = ROOT_NUMBER) -> set[bytes]:
        """Open, read to the end, close; the names without dots."""
        handle = await self.operations.opendir(number, CTX)
        names: set[bytes] = set()
        position = 0
        while (reply := await self.readdir(handle, position)).entries:
            names |= set(reply.names())
            position = reply.entries[-1][2]
        await self.operations.releasedir(handle)
        return names - {b".", b".."}

    def jump(self, seconds: float) -> None:
        """Let time go by, in a world that is still."""
        assert self.clock is not None
        self.clock.now_s += seconds


async def refused(call: Awaitable[Any]) -> str:
    """The name of the errno that a call is refused with."""
    try:
        await call
    except FUSEError as error:
        return errno.errorcode[error.errno]
    return "it was not refused"


@asynccontextmanager
async def world(
    directory: Path,
    *,
    make_process: Callable[[], SftpProcess] = SftpProcess,
    open_stream: Callable[[World], Awaitable[SessionStream]] | None = None,
    deadline_s: float = 10.0,
    times: CacheTimes | None = None,
    view: View | None = None,
    symlinks: SymlinkPolicy | None = None,
    manners: Manners | None = None,
    follow: bool = False,
    max_idle: int = 10_000,
    still: bool = False,
) -> AsyncIterator[World]:
    """A file system on `directory`. `open_stream` may stand in for starting a server with `make_process`.

    In a `still` world time goes by only as `World.jump` says, for all that is remembered and all that is waited for.
    """
    base = os.fsencode(directory)
    clock = Clock() if still else None

    async def start_server() -> SessionStream:
        if open_stream is not None:
            return await open_stream(made)
        made.processes.append(make_process())
        return made.process.stream

    async with trio.open_nursery() as nursery, AsyncExitStack() as patches:
        for module in _WITH_CLOCKS if clock is not None else ():
            patches.enter_context(mock.patch.object(module, "monotonic", clock))
        link = Link(
            start_server,
            lambda stream: Client(stream, deadline_s=deadline_s),
            nursery,
            server="sftp-server",
            deadline_s=deadline_s,
        )
        tree = Tree(base, max_idle=max_idle)
        names = Names(link, tree, times or CacheTimes(), follow=follow)
        operations = Operations(
            names,
            view or View(IdentityMap()),
            symlinks or SymlinkPolicy(contain=True, transform=False, base=base),
            manners or Manners(),
        )
        made = World(operations, names, link, directory)
        made.clock = clock
        with (
            mock.patch.object(pyfuse3, "readdir_reply", _reply),
            mock.patch.object(pyfuse3, "invalidate_inode", lambda number, attr_only: made.invalidated.append(number)),
            mock.patch.object(pyfuse3, "notify_store", lambda *what: made.stored.append(what)),
        ):
            try:
                client = await link.start()
                tree.update(tree.root, await client.stat(base), (clock or monotonic)(), tree.changes)
                made.process.stream.forget()
                yield made
            finally:
                link.close()
                for process in made.processes:
                    process.end()
                nursery.cancel_scope.cancel()
