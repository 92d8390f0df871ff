"""From a status and what is known of the paths to an errno: every answer, as a table."""

from __future__ import annotations

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.diagnosis import FAT_MAX_BYTES, Facts, decide, decide_write
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.protocol import NO_ATTRIBUTES, Attributes, OpenFlag, Request, Status, StatusError, Statvfs

FILE = Attributes(size=1, permissions=stat.S_IFREG | 0o644)
PROGRAM = Attributes(size=1, permissions=stat.S_IFREG | 0o755)
LINK = Attributes(permissions=stat.S_IFLNK | 0o777)
DIRECTORY = Attributes(permissions=stat.S_IFDIR | 0o755)
STICKY = Attributes(permissions=stat.S_IFDIR | stat.S_ISVTX | 0o777)

SPACE = Statvfs(4096, 4096, 1000, 500, 500, 1000, 500, 500, fsid=1, flag=0, namemax=255)
READ_ONLY = SPACE._replace(flag=sftp.STATVFS_READ_ONLY)
NO_BLOCKS = SPACE._replace(bfree=10, bavail=0)
NO_INODES = SPACE._replace(ffree=0, favail=0)
UNCOUNTED = SPACE._replace(files=0, ffree=0, favail=0)  # a file system that makes inodes as they are needed
ELSEWHERE = SPACE._replace(fsid=2)

OLD, NEW = b"/d/old", b"/d/new"
READ = sftp.Open(NEW, OpenFlag.READ, NO_ATTRIBUTES)
WRITE = sftp.Open(NEW, OpenFlag.WRITE, NO_ATTRIBUTES)
CREATE = sftp.Open(NEW, OpenFlag.WRITE | OpenFlag.CREAT | OpenFlag.EXCL, NO_ATTRIBUTES)
MKDIR = sftp.Mkdir(NEW, NO_ATTRIBUTES)
SYMLINK = sftp.Symlink(b"target", NEW)
HARDLINK = sftp.Hardlink(OLD, NEW)
RENAME = sftp.Rename(OLD, NEW)
POSIX_RENAME = sftp.PosixRename(OLD, NEW)
REMOVE = sftp.Remove(NEW)
RMDIR = sftp.Rmdir(NEW)
OPENDIR = sftp.Opendir(NEW)
CHMOD = sftp.Setstat(NEW, Attributes(permissions=0o600))
TRUNCATE = sftp.Setstat(NEW, Attributes(size=0))
LCHOWN = sftp.Lsetstat(NEW, Attributes(uid=1, gid=1))
EVERY_REQUEST = [
    *(READ, WRITE, CREATE, MKDIR, SYMLINK, HARDLINK, RENAME, POSIX_RENAME, REMOVE, RMDIR, OPENDIR),
    *(CHMOD, TRUNCATE, LCHOWN, sftp.Lstat(NEW), sftp.Stat(NEW), sftp.Readlink(NEW)),
]
MAKING = [CREATE, MKDIR, SYMLINK, HARDLINK, RENAME, POSIX_RENAME]


def known(
    target: Attributes | None = None,
    source: Attributes | None = None,
    space: Statvfs | None = SPACE,
    source_space: Statvfs | None = SPACE,
    parent: Attributes | None = DIRECTORY,
    source_parent: Attributes | None = DIRECTORY,
    names: int | None = None,
    gives_handles: bool | None = True,
) -> Facts:
    return Facts(
        target=target,
        source=source,
        target_parent=parent,
        source_parent=source_parent,
        names=names,
        gives_handles=gives_handles,
        space=space,
        source_space=source_space,
    )


NO_SUCH_FILE: list[tuple[Request, Facts, int]] = [
    *((request, known(), errno.ENOENT) for request in EVERY_REQUEST),
    *((request, known(parent=FILE), errno.ENOTDIR) for request in EVERY_REQUEST),
    *((request, known(parent=None), errno.ENOENT) for request in EVERY_REQUEST),
    (OPENDIR, known(FILE), errno.ENOTDIR),
    (RMDIR, known(FILE), errno.ENOTDIR),
    (RMDIR, known(LINK), errno.ENOTDIR),
    (REMOVE, known(FILE), errno.ENOENT),  # gone when it was asked for, and made again since
    (POSIX_RENAME, known(FILE, DIRECTORY), errno.ENOTDIR),
    (RENAME, known(FILE, DIRECTORY), errno.ENOTDIR),
    (POSIX_RENAME, known(FILE, None), errno.ENOENT),
    (POSIX_RENAME, known(FILE, FILE), errno.ENOENT),
    (POSIX_RENAME, known(DIRECTORY, None), errno.ENOENT),
]

PERMISSION_DENIED: list[tuple[Request, Facts, int]] = [
    *((request, known(FILE), errno.EACCES) for request in (READ, WRITE, CREATE, MKDIR, SYMLINK, OPENDIR)),
    (sftp.Lstat(NEW), known(parent=None), errno.EACCES),
    # Who may change a mode or an owner depends on who one is, not on a permission.
    (CHMOD, known(FILE), errno.EPERM),
    (LCHOWN, known(LINK), errno.EPERM),
    (sftp.Setstat(NEW, Attributes(uid=1, gid=1)), known(FILE), errno.EPERM),
    (sftp.Setstat(NEW, Attributes(atime=1, mtime=1)), known(FILE), errno.EPERM),
    (TRUNCATE, known(FILE), errno.EACCES),
    (REMOVE, known(FILE), errno.EACCES),
    (REMOVE, known(FILE, parent=STICKY), errno.EPERM),
    (RMDIR, known(DIRECTORY, parent=STICKY), errno.EPERM),
    (POSIX_RENAME, known(FILE, FILE), errno.EACCES),
    (POSIX_RENAME, known(FILE, FILE, parent=STICKY), errno.EPERM),
    (POSIX_RENAME, known(None, FILE, parent=STICKY), errno.EACCES),  # nobody's file is replaced there
    (POSIX_RENAME, known(None, FILE, source_parent=STICKY), errno.EPERM),
    (HARDLINK, known(source=FILE), errno.EACCES),
    (HARDLINK, known(source=DIRECTORY), errno.EPERM),
]

FAILURE: list[tuple[Request, Facts, int]] = [
    # Something is there already.
    *((request, known(FILE, FILE), errno.EEXIST) for request in (CREATE, MKDIR, SYMLINK, HARDLINK, RENAME)),
    *((request, known(DIRECTORY, FILE), errno.EEXIST) for request in (CREATE, MKDIR, SYMLINK, HARDLINK, RENAME)),
    *((request, known(LINK, FILE, space=READ_ONLY), errno.EEXIST) for request in (CREATE, MKDIR, SYMLINK, HARDLINK)),
    *((request, known(FILE, FILE, None, None), errno.EEXIST) for request in (CREATE, MKDIR, SYMLINK, HARDLINK)),
    # It is a directory, or a full one.
    (WRITE, known(DIRECTORY), errno.EISDIR),
    (REMOVE, known(DIRECTORY), errno.EISDIR),
    (POSIX_RENAME, known(DIRECTORY, FILE), errno.EISDIR),
    (POSIX_RENAME, known(DIRECTORY, DIRECTORY), errno.ENOTEMPTY),
    (RMDIR, known(DIRECTORY), errno.ENOTEMPTY),
    (RMDIR, known(DIRECTORY, space=None), errno.ENOTEMPTY),
    (RMDIR, known(DIRECTORY, space=NO_BLOCKS), errno.ENOTEMPTY),
    (RMDIR, known(DIRECTORY, names=3), errno.ENOTEMPTY),
    (RMDIR, known(DIRECTORY, names=0), errno.EBUSY),  # something is mounted there
    # More than a file can hold.
    (sftp.Setstat(NEW, Attributes(size=2**62)), known(FILE), errno.EFBIG),
    (TRUNCATE, known(FILE), errno.EIO),
    # Nothing can be changed there.
    *((request, known(space=READ_ONLY), errno.EROFS) for request in (CREATE, MKDIR, SYMLINK, HARDLINK, POSIX_RENAME)),
    *((request, known(FILE, space=READ_ONLY), errno.EROFS) for request in (WRITE, REMOVE, CHMOD, TRUNCATE, LCHOWN)),
    (RMDIR, known(DIRECTORY, space=READ_ONLY), errno.EROFS),
    (POSIX_RENAME, known(FILE, FILE, READ_ONLY, READ_ONLY), errno.EROFS),
    # Another file system.
    (POSIX_RENAME, known(None, FILE, ELSEWHERE), errno.EXDEV),
    (POSIX_RENAME, known(DIRECTORY, DIRECTORY, ELSEWHERE), errno.EXDEV),
    (RENAME, known(None, FILE, ELSEWHERE), errno.EXDEV),
    (HARDLINK, known(None, FILE, ELSEWHERE), errno.EXDEV),
    # rename(2) looks at the file systems first of all, link(2) at whether it may write.
    (POSIX_RENAME, known(None, FILE, READ_ONLY._replace(fsid=2)), errno.EXDEV),
    (HARDLINK, known(None, FILE, READ_ONLY._replace(fsid=2)), errno.EROFS),
    # No room.
    *((request, known(None, FILE, NO_BLOCKS), errno.ENOSPC) for request in MAKING),
    *((request, known(None, FILE, NO_INODES), errno.ENOSPC) for request in MAKING),
    (TRUNCATE, known(FILE, space=NO_BLOCKS), errno.ENOSPC),
    (REMOVE, known(FILE, space=NO_BLOCKS), errno.EIO),
    (OPENDIR, known(DIRECTORY, space=NO_INODES), errno.EIO),
    # It is being executed there.
    (WRITE, known(PROGRAM), errno.ETXTBSY),
    (WRITE, known(PROGRAM, space=NO_BLOCKS), errno.ETXTBSY),
    (TRUNCATE, known(PROGRAM), errno.ETXTBSY),
    (WRITE, known(PROGRAM, gives_handles=None), errno.ETXTBSY),
    (WRITE, known(PROGRAM, space=READ_ONLY), errno.EROFS),
    (CREATE, known(PROGRAM), errno.EEXIST),
    (READ, known(PROGRAM), errno.EIO),
    (CHMOD, known(PROGRAM), errno.EIO),
    (WRITE, known(DIRECTORY), errno.EISDIR),
    (WRITE, known(FILE), errno.EIO),
    (WRITE, known(PROGRAM, space=None), errno.EIO),
    # The server has no handle left for anything.
    *((request, known(FILE, gives_handles=False), errno.ENFILE) for request in (READ, WRITE)),
    (WRITE, known(PROGRAM, gives_handles=False), errno.ENFILE),
    (CREATE, known(gives_handles=False), errno.ENFILE),
    (READ, known(FILE, space=NO_BLOCKS), errno.EIO),
    # What cannot be told stays what it is.
    *((request, known(None, FILE), errno.EIO) for request in MAKING),
    *((request, known(None, FILE, UNCOUNTED), errno.EIO) for request in MAKING),
    *((request, known(None, FILE, None, None), errno.EIO) for request in MAKING),
    *((request, known(None, FILE, ELSEWHERE, None), errno.EIO) for request in MAKING),
    *((request, Facts(), errno.EIO) for request in EVERY_REQUEST),
    (READ, known(FILE), errno.EIO),
    (CHMOD, known(FILE), errno.EIO),
]


def label(value: object) -> str:
    if isinstance(value, Request):
        return type(value).__name__
    return errno.errorcode[value] if isinstance(value, int) else "when"


@pytest.mark.parametrize(("request_", "facts", "expected"), NO_SUCH_FILE, ids=label)
def test_no_such_file(request_: Request, facts: Facts, expected: int) -> None:
    assert errno.errorcode[decide(request_, StatusError(Status.NO_SUCH_FILE), facts)] == errno.errorcode[expected]


@pytest.mark.parametrize(("request_", "facts", "expected"), PERMISSION_DENIED, ids=label)
def test_permission_denied(request_: Request, facts: Facts, expected: int) -> None:
    assert errno.errorcode[decide(request_, StatusError(Status.PERMISSION_DENIED), facts)] == errno.errorcode[expected]


@pytest.mark.parametrize(("request_", "facts", "expected"), FAILURE, ids=label)
def test_failure(request_: Request, facts: Facts, expected: int) -> None:
    assert errno.errorcode[decide(request_, StatusError(Status.FAILURE), facts)] == errno.errorcode[expected]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status.BAD_MESSAGE, errno.EINVAL),
        (Status.OP_UNSUPPORTED, errno.EOPNOTSUPP),
        (Status.NO_CONNECTION, errno.ENOTCONN),
        (Status.CONNECTION_LOST, errno.EIO),
        (Status.EOF, errno.EIO),
        (9, errno.EIO),
        (0xFFFFFFFF, errno.EIO),
    ],
)
def test_a_status_that_needs_no_facts(status: int, expected: int) -> None:
    for request in EVERY_REQUEST:
        assert decide(request, StatusError(status), known(FILE, FILE)) == expected


ROOM = 500 * 4096
WRITES: dict[str, tuple[Attributes | None, Statvfs | None, int, int | None, int]] = {
    "longer, and there is room": (FILE, SPACE, 10, 1, errno.EDQUOT),
    "longer by a bit": (FILE, SPACE, 2, 0, errno.EDQUOT),
    "a program": (PROGRAM, SPACE, 10, 1, errno.EDQUOT),
    "no longer": (FILE._replace(size=10), SPACE, 10, 0, errno.EIO),
    "no room": (FILE, NO_BLOCKS, 10, 1, errno.ENOSPC),
    "not enough room": (FILE, SPACE, ROOM + 1, 1, errno.ENOSPC),
    "just enough room": (FILE, SPACE, ROOM, 1, errno.EDQUOT),
    "no room, and no longer": (FILE._replace(size=10), NO_BLOCKS, 10, 0, errno.ENOSPC),
    "may not be written": (FILE, READ_ONLY, 10, 1, errno.EROFS),
    "as long as FAT allows": (FILE._replace(size=FAT_MAX_BYTES), SPACE, 10, FAT_MAX_BYTES - 1, errno.EFBIG),
    "fsync": (FILE, SPACE, 1, None, errno.EIO),
    "fsync without room": (FILE, NO_BLOCKS, 1, None, errno.ENOSPC),
    "a device": (FILE._replace(permissions=stat.S_IFCHR | 0o666), SPACE, 10, 1, errno.EIO),
    "nothing is known of it": (None, SPACE, 10, 1, errno.EIO),
    "nothing is known of the file system": (FILE, None, 10, 1, errno.EIO),
}


@pytest.mark.parametrize("case", WRITES)
def test_a_write_that_failed(case: str) -> None:
    file, space, length, offset, expected = WRITES[case]
    assert errno.errorcode[decide_write(file, space, length, offset)] == errno.errorcode[expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"Disk quota exceeded", errno.EDQUOT),
        (b"write /home/me/file: disk quota exceeded\n", errno.EDQUOT),
        (b"Text file busy", errno.ETXTBSY),
        (b"Invalid cross-device link", errno.EXDEV),
        (b"Failure", errno.EIO),
        (b"", errno.EIO),
        (b"\xff\xfe", errno.EIO),
        (b"Disk quota exceeded, or not", errno.EIO),
    ],
)
def test_a_server_that_says_what_it_was(text: bytes, expected: int) -> None:
    assert decide(WRITE, StatusError(Status.FAILURE, text), known(FILE)) == expected
    assert decide(WRITE, StatusError(Status.PERMISSION_DENIED, text), known(FILE)) == errno.EACCES


attributes = st.sampled_from([None, FILE, PROGRAM, LINK, DIRECTORY, STICKY, NO_ATTRIBUTES])
spaces = st.sampled_from([None, SPACE, READ_ONLY, NO_BLOCKS, NO_INODES, UNCOUNTED, ELSEWHERE])


facts_of_all_kinds = st.builds(
    Facts,
    *(attributes, attributes, attributes),
    source_parent=attributes,
    names=st.sampled_from([None, 0, 1]),
    gives_handles=st.sampled_from([None, False, True]),
    space=spaces,
    source_space=spaces,
)


@given(st.sampled_from(EVERY_REQUEST), st.integers(0, 40), facts_of_all_kinds)
def test_whatever_is_known_there_is_an_errno(request: Request, status: int, facts: Facts) -> None:
    assert decide(request, StatusError(status), facts) in errno.errorcode
