"""What a failure really was: version 3 has nine status codes, a file system has fifty errnos.

The rule of this file: it is asked only after a request failed, asks the server once (all questions in one send), and
then decides by pure functions of what was found, in the order in which a local kernel would have checked. What cannot
be told stays what the status says by itself.

OpenSSH's mapping, read backwards (sftp-server.c, errno_to_portable): NO_SUCH_FILE is ENOENT, ENOTDIR, EBADF or ELOOP;
PERMISSION_DENIED is EPERM, EACCES or EFAULT; BAD_MESSAGE is ENAMETOOLONG or EINVAL; FAILURE is all the rest.

What a FAILURE is taken for without a proof, because nothing else is left that happens:

| request                        | and                                             | errno   | else it would be        |
|--------------------------------|-------------------------------------------------|---------|-------------------------|
| OPEN to write, SETSTAT of size | a regular file with an x bit; the server gives  | ETXTBSY | a mandatory lock        |
|                                | handles, and may write there                    |         |                         |
| WRITE that makes a file longer | the file system has room for it                 | EDQUOT  | a disk that breaks: but |
|                                |                                                 |         | fsync tells of that     |
| OPEN                           | the directory it is in cannot be opened either  | ENFILE  | a disk that breaks      |

What stays EIO, because several things are as likely: a WRITE within a file; MKDIR, SYMLINK and OPEN to create where
there is room (a quota, too many links, a name or kind of file that the disk below cannot hold); CLOSE and FSYNC.

Imported by `sshmuxfs.questions`, `sshmuxfs.operations`.
"""

from __future__ import annotations

import errno
import os
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
FAT_MAX_BYTES = 2**32 - 1  # the longest file there can be on FAT; a WRITE goes as far as that
_TOLD_IN_WORDS = (
    *(errno.EDQUOT, errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.ETXTBSY, errno.EMLINK, errno.EXDEV),
    *(errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.EBUSY, errno.ENAMETOOLONG),
)


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
    gives_handles: bool | None = None  # whether the server can open the directory of `target`


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
    gives_handles = (
        await _gives_handles(client, target)
        if error.code == Status.FAILURE and isinstance(request, sftp.Open)
        else None
    )
    answers = [await _answer(client, pending) for pending in client.submit(*requests)]
    spaces = [None if each is None else sftp.decode_statvfs(each) for each in answers[4 if source else 2 :]]
    facts = Facts(
        target=answers[0],
        target_parent=answers[1],
        source=answers[2] if source else None,
        source_parent=answers[3] if source else None,
        names=names,
        gives_handles=gives_handles,
        space=spaces[0] if spaces else None,
        source_space=spaces[1] if len(spaces) > 1 else None,
    )
    return decide(request, error, facts)


async def diagnose_write(
    client: Client, handle: bytes, length: int, error: Exception, offset: int | None = None
) -> int:
    """Return the errno for a WRITE (or FSYNC: without `offset`) that failed with `error`.

    `length` bytes were to be written at `offset`.
    """
    if not isinstance(error, StatusError) or error.code != Status.FAILURE:
        return errno_of(error) or errno.EIO
    said = _said(error)
    if said is not None:
        return said
    requests: list[Request] = [sftp.Fstat(handle)]
    if sftp.StatvfsHandle.EXTENSION in client.extensions:
        requests.append(sftp.StatvfsHandle(handle))
    answers = [await _answer(client, pending) for pending in client.submit(*requests)]
    space = sftp.decode_statvfs(answers[1]) if len(answers) > 1 and answers[1] is not None else None
    return decide_write(answers[0], space, length, offset)


def decide_write(file: Attributes | None, space: Statvfs | None, length: int, offset: int | None) -> int:
    """The errno for a WRITE of `length` bytes at `offset` that was a FAILURE, by what is known of the file. Pure."""
    if space is None:
        return errno.EIO
    if space.bavail * (space.frsize or space.bsize) < max(length, 1):
        return errno.ENOSPC
    if _read_only(space):
        return errno.EROFS
    if file is None or offset is None or _kind(file) != stat.S_IFREG or offset + length <= (file.size or 0):
        return errno.EIO
    return errno.EFBIG if file.size == FAT_MAX_BYTES else errno.EDQUOT


def decide(request: Request, error: StatusError, facts: Facts) -> int:
    """The errno for a failed request, by what is known about its paths. Pure."""
    if error.code == Status.NO_SUCH_FILE:
        return errno.ENOTDIR if _lacks_a_directory(request, facts) else errno.ENOENT
    if error.code == Status.PERMISSION_DENIED:
        return _denied(request, facts)
    if error.code == Status.FAILURE:
        return _said(error) or _failed(request, facts)
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


def _said(error: StatusError) -> int | None:
    """The errno that a server's own words stand for: many send those of the C library; OpenSSH says `Failure`."""
    text = error.text.strip().lower()
    return next((number for number in _TOLD_IN_WORDS if text.endswith(os.strerror(number).lower().encode())), None)


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
    if facts.gives_handles is False:
        return errno.ENFILE
    if _makes_something(request) and _full(facts.space):
        return errno.ENOSPC
    if isinstance(request, sftp.Setstat) and (request.attributes.size or 0) > (
        (facts.target and facts.target.size) or 0
    ):
        return errno.EFBIG
    if _is_program(facts.target) and facts.space is not None and _writes(request):
        return errno.ETXTBSY
    return errno.EIO


def _makes_something(request: Request) -> bool:
    if isinstance(request, sftp.Open):
        return bool(request.pflags & OpenFlag.CREAT)
    return not isinstance(request, sftp.Remove | sftp.Rmdir | sftp.Opendir | sftp.Readlink | sftp.Lstat | sftp.Stat)


def _writes(request: Request) -> bool:
    """Whether a request is to change what is in a file that is there."""
    match request:
        case sftp.Open(pflags=pflags):
            return bool(pflags & OpenFlag.WRITE)
        case sftp.Setstat(attributes=attributes):
            return attributes.size is not None
    return False


def _is_program(file: Attributes | None) -> bool:
    return file is not None and _kind(file) == stat.S_IFREG and bool((file.permissions or 0) & 0o111)


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


async def _gives_handles(client: Client, path: bytes) -> bool | None:
    """Whether the server has handles left, seen by opening the directory that `path` is in; None if it may not."""
    try:
        client.close_nowait(await client.call(sftp.Opendir(_parent(path))))
    except StatusError as error:
        return False if error.code == Status.FAILURE else None
    return True


async def _answer(client: Client, pending: Pending) -> Any:
    """The answer, or None if the server has none."""
    try:
        return await client.wait(pending)
    except StatusError:
        return None
