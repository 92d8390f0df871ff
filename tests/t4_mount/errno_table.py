"""Which errno each operation on a path gives in each situation, as data.

OPERATIONS names what is done with a path; SITUATIONS names a path in the layout that `make_layout` builds, the errno
that every operation gives there, and where operations differ. An operation that would succeed is not in the table.
All of it is what Linux does on a local file system: the plain directory is tested with the same table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from pathlib import Path

LONG_NAME = "n" * 256
PATH_MAX = 4096


def _open(flags: int) -> Callable[[str], None]:
    return lambda path: os.close(os.open(path, flags, 0o600))


# Every function gets the path; those with a second one take it from the current directory, which is the layout.
OPERATIONS: dict[str, Callable[[str], object]] = {
    "lstat": os.lstat,
    "stat": os.stat,
    "access": lambda path: _access(path),
    "readlink": os.readlink,
    "listdir": os.listdir,
    "chdir": lambda path: _change_directory(path),
    "statvfs": os.statvfs,
    "open to read": _open(os.O_RDONLY),
    "open to write": _open(os.O_WRONLY),
    "open truncating": _open(os.O_WRONLY | os.O_TRUNC),
    "open creating": _open(os.O_WRONLY | os.O_CREAT),
    "open exclusively": _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open a directory": _open(os.O_RDONLY | os.O_DIRECTORY),
    "open no link": _open(os.O_RDONLY | os.O_NOFOLLOW),
    "mkdir": os.mkdir,
    "mknod": lambda path: os.mknod(path, 0o600),
    "symlink": lambda path: os.symlink("target", path),
    "link from": lambda path: os.link(path, "new"),
    "link to": lambda path: os.link("file", path),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename from": lambda path: os.rename(path, "new"),
    "rename file to": lambda path: os.rename("file2", path),
    "rename directory to": lambda path: os.rename("dir2", path),
    "truncate": lambda path: os.truncate(path, 3),
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "lchown": lambda path: os.lchown(path, os.getuid(), os.getgid()),
    "utime": lambda path: os.utime(path, (1, 1)),
    "utime of a link": lambda path: os.utime(path, (1, 1), follow_symlinks=False),
}

CREATING = {
    "open creating",
    "open exclusively",
    "mkdir",
    "mknod",
    "symlink",
    "link to",
    "rename file to",
    "rename directory to",
}
# What is done with a symbolic link itself, not with what it points to.
WITH_LINKS = {
    "lstat",
    "readlink",
    "link from",
    "unlink",
    "rename from",
    "rename file to",
    "rename directory to",
    "lchown",
    "utime of a link",
}


def _access(path: str) -> None:
    if not os.access(path, os.F_OK):
        # os.access tells no errno; faccessat of the same path fails as stat does.
        os.stat(path)


def _change_directory(path: str) -> None:
    descriptor = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
    finally:
        os.fchdir(descriptor)
        os.close(descriptor)


@dataclass(frozen=True)
class Situation:
    """A path, the errno of all operations there (None: they succeed and are not tried), and the exceptions."""

    path: str
    everywhere: int | None
    but: dict[str, int | None] = field(default_factory=dict)

    def failing(self) -> dict[str, int]:
        """The operations that fail here, each with its errno."""
        numbers = {operation: self.but.get(operation, self.everywhere) for operation in OPERATIONS}
        return {operation: number for operation, number in numbers.items() if number is not None}


def _only(*names: str, number: int) -> dict[str, int | None]:
    return dict.fromkeys(names, number)


def _all_but(names: set[str], number: int) -> dict[str, int | None]:
    return {name: number for name in OPERATIONS if name not in names}


_NAME_IS_TAKEN = _only("open exclusively", "mkdir", "mknod", "symlink", "link to", number=EEXIST)
_NO_DIRECTORY = _only("rmdir", "listdir", "chdir", "open a directory", "rename directory to", number=ENOTDIR)

SITUATIONS: dict[str, Situation] = {
    "missing": Situation("missing", ENOENT, dict.fromkeys(CREATING, None)),
    "empty path": Situation("", ENOENT),
    "in a missing directory": Situation("missing/name", ENOENT),
    "in a link to nothing": Situation("dangling/name", ENOENT),
    "below a file": Situation("file/name", ENOTDIR),
    "far below a file": Situation("file/one/two/three", ENOTDIR),
    "below a link to a file": Situation("link/name", ENOTDIR),
    "name of 256 bytes": Situation(LONG_NAME, ENAMETOOLONG),
    "in a name of 256 bytes": Situation(f"{LONG_NAME}/name", ENAMETOOLONG),
    "name of 256 bytes in a directory": Situation(f"dir/{LONG_NAME}", ENAMETOOLONG),
    "path of 4096 bytes": Situation(("d" * 255 + "/") * 16, ENAMETOOLONG),
    "in a loop": Situation("loop/name", ELOOP),
    "in a loop of two": Situation("loop-one/name", ELOOP),
    "loop": Situation(
        "loop",
        None,
        {**_all_but(WITH_LINKS, ELOOP), **_NAME_IS_TAKEN, "rmdir": ENOTDIR, "rename directory to": ENOTDIR}
        | {"open a directory": ELOOP},
    ),
    "link to nothing": Situation(
        "dangling",
        None,
        {**_all_but(WITH_LINKS | {"open creating"}, ENOENT), **_NAME_IS_TAKEN}
        | {"open no link": ELOOP, "rmdir": ENOTDIR, "rename directory to": ENOTDIR},
    ),
    "link to a file": Situation("link", None, {**_NAME_IS_TAKEN, **_NO_DIRECTORY, "open no link": ELOOP}),
    "link to a directory": Situation(
        "dirlink",
        None,
        _NAME_IS_TAKEN
        | {"open no link": ELOOP, "rmdir": ENOTDIR, "rename directory to": ENOTDIR}
        | _only("open to write", "open truncating", "open creating", "truncate", number=EISDIR),
    ),
    "file": Situation("file", None, {**_NAME_IS_TAKEN, **_NO_DIRECTORY, "readlink": EINVAL}),
    "empty directory": Situation(
        "dir",
        None,
        _NAME_IS_TAKEN
        | _only("open to write", "open truncating", "open creating", number=EISDIR)
        | _only("truncate", "unlink", "rename file to", number=EISDIR)
        | {"readlink": EINVAL, "link from": EPERM},
    ),
    "directory with something in it": Situation(
        "full", None, {"rmdir": ENOTEMPTY, "rename directory to": ENOTEMPTY, "unlink": EISDIR, "rename file to": EISDIR}
    ),
    "the directory itself": Situation("dir/.", None, {"rmdir": EINVAL, "mkdir": EEXIST, "symlink": EEXIST}),
}


def make_layout(directory: Path) -> None:
    """Build what the situations are about."""
    for name in ("dir", "dir2", "full", "full/inside"):
        (directory / name).mkdir()
    for name in ("file", "file2"):
        (directory / name).write_text("text")
    for name, target in (
        ("link", "file"),
        ("dirlink", "dir"),
        ("dangling", "nothing"),
        ("loop", "loop"),
        ("loop-one", "loop-two"),
        ("loop-two", "loop-one"),
    ):
        (directory / name).symlink_to(target)


def snapshot(directory: Path) -> list[tuple[str, int, int]]:
    """Name, mode and size of everything in it: what a failed operation must not change."""
    found = [directory, *sorted(directory.rglob("*"))]
    return [(str(path), path.lstat().st_mode, path.lstat().st_size * path.is_file()) for path in found]
