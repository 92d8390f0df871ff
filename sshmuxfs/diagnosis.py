"""What a failure really was: version 3 has nine status codes, a file system has fifty errnos.

The rule of this file: it is asked only after a request failed, asks the server once (all questions in one send), and
then decides by pure functions of what was found, in the order in which a local kernel would have checked. What cannot
be told stays what the status says by itself.

OpenSSH's mapping, read backwards (sftp-server.c, errno_to_portable): NO_SUCH_FILE is ENOENT, ENOTDIR, EBADF or ELOOP;
PERMISSION_DENIED is EPERM, EACCES or EFAULT; BAD_MESSAGE is ENAMETOOLONG or EINVAL; FAILURE is all the rest.

Imported by `sshmuxfs.operations`.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import Any

from sshmuxfs.errors import errno_of
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Attributes, OpenFlag, Request, Status, StatusError, Statvfs

NAME_MAX = 255
PATH_MAX = 4096  # with the NUL that ends it


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server answered about the paths of a failed request; None: it is not there, or was not asked.

    `target` is what the request was to change or make, `source` the old name of a rename or link; `*_space` are the
    file systems of their directories.
    """

    target: Attributes | None = None
    source: Attributes | None = None
    target_parent: Attributes | None = None
    space: Statvfs | None = None
    source_space: Statvfs | None = None
    source_parent: Attributes | None = None
    names: int | None = None  # how many there are in the directory `target`


async def diagnose(client: Client, request: Request, error: StatusError) -> int:
    """Return the errno for `request`, which failed with `error`. Asks the server; raises as any request does."""
    paths = _paths(request)
    if paths is None:
        return errno_of(error) or errno.EIO
    too_long = _too_long(*paths)
    if too_long and error.code in (Status.BAD_MESSAGE, Status.FAILURE):
        return errno.ENAMETOOLONG
    target, source = paths
    requests: list[Request] = [sftp.Lstat(target), sftp.Stat(_parent(target))]
    if source:
        requests += [sftp.Lstat(source), sftp.Stat(_parent(source))]
    if error.code == Status.FAILURE and sftp.StatvfsPath.EXTENSION in client.extensions:
        requests.append(sftp.StatvfsPath(_parent(target)))
        requests += [sftp.StatvfsPath(_parent(source))] if source else []
    names = (
        await _names_in(client, target) if error.code == Status.FAILURE and isinstance(request, sftp.Rmdir) else None
    )
    answers = [await _answer(client, pending) for pending in client.submit(*requests)]
    spaces = [None if each is None else sftp.decode_statvfs(each) for each in answers[4 if source else 2 :]]
    facts = Facts(
        target=answers[0],
        target_parent=answers[1],
        source=answers[2] if source else None,
        source_parent=answers[3] if source else None,
        names=names,
        space=spaces[0] if spaces else None,
        source_space=spaces[1] if len(spaces) > 1 else None,
    )
    return decide(request, error, facts)


async def diagnose_write(client: Client, handle: bytes, length: int, error: Exception) -> int:
    """Return the errno for a WRITE that failed with `error`; `length` is what was to be written."""
    if not isinstance(error, StatusError) or error.code != Status.FAILURE:
        return errno_of(error) or errno.EIO
    try:
        space = await client.fstatvfs(handle)
    except StatusError:
        return errno.EIO
    if space.bavail * (space.frsize or space.bsize) < max(length, 1):
        return errno.ENOSPC
    return errno.EROFS if space.flag & sftp.STATVFS_READ_ONLY else errno.EIO


def decide(request: Request, error: StatusError, facts: Facts) -> int:
    """The errno for a failed request, by what is known about its paths. Pure."""
    if error.code == Status.NO_SUCH_FILE:
        return errno.ENOTDIR if _lacks_a_directory(request, facts) else errno.ENOENT
    if error.code == Status.PERMISSION_DENIED:
        return _denied(request, facts)
    if error.code == Status.FAILURE:
        return _failed(request, facts)
    return errno_of(error) or errno.EIO


def _lacks_a_directory(request: Request, facts: Facts) -> bool:
    """Whether all is there, and something of it had to be a directory and is none."""
    if facts.target_parent is not None and _kind(facts.target_parent) != stat.S_IFDIR:
        return True
    if facts.target is None or _kind(facts.target) == stat.S_IFDIR:
        return False
    if isinstance(request, sftp.Rename | sftp.PosixRename):
        return facts.source is not None and _kind(facts.source) == stat.S_IFDIR
    return isinstance(request, sftp.Opendir | sftp.Rmdir)


def _denied(request: Request, facts: Facts) -> int:
    """EPERM where the kernel asks who the caller is, EACCES where it asks for a permission bit."""
    match request:
        case sftp.Setstat(attributes=attributes) | sftp.Fsetstat(attributes=attributes):
            return errno.EACCES if attributes.size is not None else errno.EPERM
        case sftp.Lsetstat():
            return errno.EPERM
        case sftp.Remove() | sftp.Rmdir():
            return errno.EPERM if _sticky(facts.target_parent) else errno.EACCES
        case sftp.Rename() | sftp.PosixRename():
            replaces = facts.target is not None and _sticky(facts.target_parent)
            return errno.EPERM if replaces or _sticky(facts.source_parent) else errno.EACCES
        case sftp.Hardlink():
            return errno.EPERM if facts.source is not None and _kind(facts.source) == stat.S_IFDIR else errno.EACCES
    return errno.EACCES


def _sticky(directory: Attributes | None) -> bool:
    return directory is not None and bool((directory.permissions or 0) & stat.S_ISVTX)


def _failed(request: Request, facts: Facts) -> int:
    exists = facts.target is not None
    is_directory = facts.target is not None and _kind(facts.target) == stat.S_IFDIR
    match request:
        case sftp.Open(pflags=pflags):
            if exists and pflags & OpenFlag.EXCL:
                return errno.EEXIST
            if is_directory and pflags & OpenFlag.WRITE:
                return errno.EISDIR
        case sftp.Mkdir() | sftp.Symlink() | sftp.Hardlink() | sftp.Rename() if exists:
            return errno.EEXIST
        case sftp.Rmdir() if exists and not _read_only(facts.space):
            return errno.EBUSY if facts.names == 0 else errno.ENOTEMPTY
        case sftp.Remove() if is_directory:
            return errno.EISDIR
    elsewhere = (
        facts.space is not None and facts.source_space is not None and facts.space.fsid != facts.source_space.fsid
    )
    if elsewhere and isinstance(request, sftp.PosixRename):
        return errno.EXDEV  # rename(2) looks at this first of all
    if _read_only(facts.space):
        return errno.EROFS
    if isinstance(request, sftp.Rename | sftp.PosixRename | sftp.Hardlink):
        if elsewhere:
            return errno.EXDEV
        if is_directory:
            source_is_directory = facts.source is not None and _kind(facts.source) == stat.S_IFDIR
            return errno.ENOTEMPTY if source_is_directory else errno.EISDIR
    if _makes_something(request) and _full(facts.space):
        return errno.ENOSPC
    if isinstance(request, sftp.Setstat) and (request.attributes.size or 0) > (
        (facts.target and facts.target.size) or 0
    ):
        return errno.EFBIG
    return errno.EIO


def _makes_something(request: Request) -> bool:
    return not isinstance(request, sftp.Remove | sftp.Rmdir | sftp.Opendir | sftp.Readlink | sftp.Lstat | sftp.Stat)


def _read_only(space: Statvfs | None) -> bool:
    return space is not None and bool(space.flag & sftp.STATVFS_READ_ONLY)


def _full(space: Statvfs | None) -> bool:
    """No block left, or no inode on a file system that counts them."""
    return space is not None and (space.bavail == 0 or (space.files > 0 and space.favail == 0))


def _kind(attributes: Attributes) -> int:
    return stat.S_IFMT(attributes.permissions or 0)


def _paths(request: Request) -> tuple[bytes, bytes] | None:
    """The path a request was to change, and the one it starts from (empty if none); None if it names a handle."""
    match request:
        case sftp.Rename(old=old, new=new) | sftp.PosixRename(old=old, new=new) | sftp.Hardlink(old=old, new=new):
            return new, old
        case sftp.Symlink(link=link):
            return link, b""
    path = getattr(request, "path", None)
    return (path, b"") if isinstance(path, bytes) else None


def _too_long(*paths: bytes) -> bool:
    return any(len(path) >= PATH_MAX or any(len(part) > NAME_MAX for part in path.split(b"/")) for path in paths)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"


async def _names_in(client: Client, path: bytes) -> int | None:
    """How many names a directory has, as far as its first reply tells; None if it cannot be read."""
    try:
        handle = await client.call(sftp.Opendir(path))
        try:
            return sum(entry.filename not in (b".", b"..") for entry in await client.call(sftp.Readdir(handle)))
        finally:
            client.close_nowait(handle)
    except StatusError as error:
        return 0 if error.code == Status.EOF else None


async def _answer(client: Client, pending: Pending) -> Any:
    """The answer, or None if the server has none."""
    try:
        return await client.wait(pending)
    except StatusError:
        return None
