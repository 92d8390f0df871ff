"""The errnos of special servers: no privileges, a read-only file system, a full one, several of them.

Bodies run in the tree's world, in a child (`Tree.inside`): for a plain directory the child enters the world, for a
mount the server did. A world may be a new one for each body, or one for all: names are this test's own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.syscalls import UTIME_NOW, UTIME_OMIT, utimensat
from tests.t4_mount.trees import Setup, Tree
from tests.t4_mount.worlds import Worlds


def in_world(world: Worlds) -> pytest.MarkDecorator:
    """Run on a plain directory and a mount of that world."""
    return pytest.mark.variants(Setup("plain", world=world), Setup("mount", world=world))


def closes(action: Callable[[], int]) -> Callable[[], None]:
    """The action without its descriptor."""
    return lambda: os.close(action())


# What nobody tries with another's files. Some of it is refused by their owner alone, not by their modes: that takes an
# owner who is not us, so it is tried when we are root.
OF_ANOTHER: dict[str, tuple[Callable[[Path], object], str]] = {
    "open to write": (lambda top: os.close(os.open(top / "theirs/file", os.O_WRONLY)), "EACCES"),
    "open to read and write": (lambda top: os.close(os.open(top / "theirs/file", os.O_RDWR)), "EACCES"),
    "open truncating": (lambda top: os.close(os.open(top / "theirs/file", os.O_WRONLY | os.O_TRUNC)), "EACCES"),
    "truncate": (lambda top: os.truncate(top / "theirs/file", 0), "EACCES"),
    "create": (lambda top: os.close(os.open(top / "theirs/new", os.O_WRONLY | os.O_CREAT)), "EACCES"),
    "mkdir": (lambda top: os.mkdir(top / "theirs/new"), "EACCES"),
    "mknod": (lambda top: os.mknod(top / "theirs/new"), "EACCES"),
    "symlink": (lambda top: os.symlink("target", top / "theirs/new"), "EACCES"),
    "unlink": (lambda top: os.unlink(top / "theirs/file"), "EACCES"),
    "rename out": (lambda top: os.rename(top / "theirs/file", top / "stolen"), "EACCES"),
    "rename within": (lambda top: os.rename(top / "theirs/file", top / "theirs/new"), "EACCES"),
}
ONLY_OF_ROOT: dict[str, tuple[Callable[[Path], object], str]] = {
    "chmod": (lambda top: os.chmod(top / "theirs/file", 0o666), "EPERM"),
    "chmod of a directory": (lambda top: os.chmod(top / "theirs", 0o777), "EPERM"),
    "chown": (lambda top: os.chown(top / "theirs/file", os.getuid(), -1), "EPERM"),
    "times": (lambda top: os.utime(top / "theirs/file", (1, 1)), "EPERM"),
    "one time": (lambda top: utimensat(top / "theirs/file", (0, UTIME_OMIT), (1, 0)), "EPERM"),
    "times to now": (lambda top: utimensat(top / "theirs/file", (0, UTIME_NOW), (0, UTIME_NOW)), "EACCES"),
    "giving away": (lambda top: os.chown(own_file(top), 1, -1), "EPERM"),
    "unlink in a sticky directory": (lambda top: os.unlink(top / "sticky/file"), "EPERM"),
    "rmdir in a sticky directory": (lambda top: os.rmdir(top / "sticky/dir"), "EPERM"),
    "rename in a sticky directory": (lambda top: os.rename(top / "sticky/file", top / "sticky/new"), "EPERM"),
    "rename over in a sticky directory": (lambda top: os.rename(own_file(top), top / "sticky/file"), "EPERM"),
}


def own_file(top: Path) -> Path:
    """A new file of the caller's."""
    path = top / f"own-{os.getpid()}"
    path.write_text("text")
    return path


@in_world(Worlds.UNPRIVILEGED)
@pytest.mark.parametrize("name", OF_ANOTHER | (ONLY_OF_ROOT if os.geteuid() == 0 else {}))
def test_what_is_anothers(tree: Tree, name: str) -> None:
    action, expected = (OF_ANOTHER | ONLY_OF_ROOT)[name]
    allowed = {expected}
    if tree.differs(Difference.ONE_CODE_FOR_EPERM_AND_EACCES) and ("sticky" in name or name == "times to now"):
        allowed |= {"EPERM", "EACCES"}
    found = tree.inside(lambda: errno_of(lambda: action(tree.path)))
    assert found in allowed
    assert tree.inside(lambda: (tree.path / "theirs/file").read_text()) == "text\n"


@in_world(Worlds.UNPRIVILEGED)
def test_own_things_that_are_locked(tree: Tree) -> None:
    def body() -> dict[str, str]:
        top = tree.path / "locked"
        top.mkdir()
        (top / "file").write_text("text")
        (top / "sub").mkdir()
        (top / "sub" / "file").write_text("text")
        (top / "file").chmod(0)
        (top / "sub").chmod(0)
        found = {
            "read": errno_of(closes(lambda: os.open(top / "file", os.O_RDONLY))),
            "write": errno_of(closes(lambda: os.open(top / "file", os.O_WRONLY))),
            "list": errno_of(lambda: os.listdir(top / "sub")),
            "create": errno_of(closes(lambda: os.open(top / "sub" / "new", os.O_CREAT | os.O_WRONLY))),
            "mkdir": errno_of(lambda: os.mkdir(top / "sub" / "new")),
            "search": errno_of(lambda: os.stat(top / "sub" / "unknown")),
            "search and read": errno_of(closes(lambda: os.open(top / "sub" / "file", os.O_RDONLY))),
            "remove": errno_of(lambda: os.unlink(top / "sub" / "file")),
        }
        (top / "file").chmod(0o600)
        (top / "sub").chmod(0o700)
        found["unlocked"] = (top / "sub" / "file").read_text() + (top / "file").read_text()
        return found

    found = tree.inside(body)
    assert found.pop("unlocked") == "texttext"
    assert found == dict.fromkeys(found, "EACCES")


@in_world(Worlds.UNPRIVILEGED)
@pytest.mark.parametrize("mode", [0o400, 0o444, 0o000, 0o200])
def test_a_new_file_may_be_written_whatever_its_mode(tree: Tree, mode: int) -> None:
    def body() -> tuple[int, str]:
        path = tree.path / f"new-{mode:o}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        os.write(descriptor, b"text")
        os.fsync(descriptor)
        text = os.pread(descriptor, 10, 0)
        os.close(descriptor)
        found = stat.S_IMODE(os.stat(path).st_mode)
        path.unlink()
        return found, text.decode()

    assert tree.inside(body) == (mode, "text")


@in_world(Worlds.UNPRIVILEGED)
def test_a_removed_permission_does_not_close_what_is_open(tree: Tree) -> None:
    def body() -> bytes:
        path = tree.path / "revoked"
        path.write_text("text")
        with open(path, "r+b", buffering=0) as file:
            path.chmod(0)
            file.write(b"TE")
            os.fsync(file.fileno())
            return os.pread(file.fileno(), 10, 0)

    assert tree.inside(body) == b"TExt"


CHANGING: dict[str, Callable[[Path], object]] = {
    "open to write": lambda top: os.close(os.open(top / "file", os.O_WRONLY)),
    "open truncating": lambda top: os.close(os.open(top / "file", os.O_WRONLY | os.O_TRUNC)),
    "create": lambda top: os.close(os.open(top / "new", os.O_WRONLY | os.O_CREAT)),
    "create exclusively": lambda top: os.close(os.open(top / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
    "truncate": lambda top: os.truncate(top / "file", 0),
    "mkdir": lambda top: os.mkdir(top / "new"),
    "mknod": lambda top: os.mknod(top / "new"),
    "symlink": lambda top: os.symlink("target", top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "unlink": lambda top: os.unlink(top / "file"),
    "unlink of a link": lambda top: os.unlink(top / "link"),
    "rmdir": lambda top: os.rmdir(top / "dir"),
    "rename": lambda top: os.rename(top / "file", top / "new"),
    "rename of a directory": lambda top: os.rename(top / "dir", top / "new"),
    "chmod": lambda top: os.chmod(top / "file", 0o600),
    "chown": lambda top: os.chown(top / "file", os.getuid(), os.getgid()),
    "times": lambda top: os.utime(top / "file", (1, 1)),
    "times of a link": lambda top: os.utime(top / "link", (1, 1), follow_symlinks=False),
}


@in_world(Worlds.READ_ONLY)
def test_a_read_only_server(tree: Tree) -> None:
    def body() -> dict[str, str]:
        return {name: errno_of(action, tree.path) for name, action in CHANGING.items()}

    assert tree.inside(body) == dict.fromkeys(CHANGING, "EROFS")
    assert tree.inside(lambda: (tree.path / "link").read_text()) == "text\n"
    assert tree.inside(lambda: sorted(os.listdir(tree.path))) == ["dir", "file", "link"]


@in_world(Worlds.READ_ONLY)
def test_a_name_that_is_taken_on_a_read_only_server(tree: Tree) -> None:
    def body() -> list[str]:
        return [
            errno_of(lambda: os.mkdir(tree.path / "dir")),
            errno_of(lambda: os.open(tree.path / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
            errno_of(lambda: os.link(tree.path / "file", tree.path / "dir")),
            errno_of(lambda: os.symlink("target", tree.path / "file")),
        ]

    assert tree.inside(body) == ["EEXIST"] * 4
    assert tree.inside(lambda: errno_of(lambda: os.chmod(tree.path / "missing", 0o600))) == "ENOENT"


def fill(path: Path, total_bytes: int) -> tuple[list[str], int]:
    """Write until it fails or that much is written, fsync, close: the outcome of each call, and the size at the end."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    calls = []
    for _ in range(total_bytes // 131072):
        calls.append(errno_of(lambda: os.write(descriptor, b"x" * 131072)))
        if calls[-1] != "success":
            break
    calls.append(errno_of(lambda: os.fsync(descriptor)))
    calls.append(errno_of(lambda: os.close(descriptor)))
    return calls, os.stat(path).st_size


@in_world(Worlds.FULL)
def test_a_full_server(tree: Tree) -> None:
    """4 MiB into 1 MiB: an error is told, it is the true one, and there is no other."""

    def body() -> tuple[list[str], int]:
        found = fill(tree.path / "file", 4 << 20)
        os.unlink(tree.path / "file")
        return found

    calls, size = tree.inside(body)
    assert "ENOSPC" in calls
    assert set(calls) <= {"success", "ENOSPC"}
    assert size <= 1 << 20


@in_world(Worlds.FULL)
def test_a_full_server_and_no_fsync(tree: Tree) -> None:
    def body() -> list[str]:
        descriptor = os.open(tree.path / "unsynced", os.O_CREAT | os.O_WRONLY, 0o600)
        calls = [errno_of(lambda: os.write(descriptor, b"x" * 65536)) for _ in range(32)]
        calls.append(errno_of(lambda: os.close(descriptor)))
        os.unlink(tree.path / "unsynced")
        return calls

    calls = tree.inside(body)
    assert "ENOSPC" in calls
    assert set(calls) <= {"success", "ENOSPC"}


@in_world(Worlds.FULL)
def test_room_again(tree: Tree) -> None:
    """After a full disk: another file works at once, and the same one when it is made smaller."""

    def body() -> bytes:
        fill(tree.path / "big", 2 << 20)
        os.truncate(tree.path / "big", 1000)
        (tree.path / "small").write_bytes(b"small")
        with open(tree.path / "big", "ab") as file:
            file.write(b"more")
        found = (tree.path / "small").read_bytes() + (tree.path / "big").read_bytes()[-6:]
        for name in ("big", "small"):
            os.unlink(tree.path / name)
        return found

    assert tree.inside(body) == b"smallxxmore"


@in_world(Worlds.FULL)
def test_writing_within_a_full_disk(tree: Tree) -> None:
    """What has its place already can be overwritten."""

    def body() -> bytes:
        path = tree.path / "placed"
        path.write_bytes(b"a" * 262144)
        fill(tree.path / "filler", 2 << 20)
        with open(path, "r+b") as file:
            file.write(b"b" * 262144)
        os.unlink(tree.path / "filler")
        found = path.read_bytes()
        path.unlink()
        return found

    assert tree.inside(body) == b"b" * 262144


@in_world(Worlds.FEW_INODES)
def test_no_inodes_left(tree: Tree) -> None:
    def body() -> dict[str, str]:
        made: list[Path] = []
        while errno_of(lambda: os.mkdir(tree.path / f"dir{len(made)}")) == "success":
            made.append(tree.path / f"dir{len(made)}")
        found = {
            "mkdir": errno_of(lambda: os.mkdir(tree.path / "one-more")),
            "create": errno_of(lambda: os.open(tree.path / "one-more", os.O_CREAT | os.O_WRONLY)),
            "mknod": errno_of(lambda: os.mknod(tree.path / "one-more")),
            "symlink": errno_of(lambda: os.symlink("target", tree.path / "one-more")),
        }
        for path in made:
            os.rmdir(path)
        return found

    assert set(tree.inside(body).values()) == {"ENOSPC"}


@in_world(Worlds.TWO_FILE_SYSTEMS)
def test_between_two_file_systems(tree: Tree) -> None:
    def body() -> dict[str, str]:
        one, two = tree.path / "one", tree.path / "two"
        (one / "file").write_text("text")
        (one / "dir").mkdir()
        (two / "there").write_text("text")
        found = {
            "rename": errno_of(lambda: os.rename(one / "file", two / "file")),
            "rename over": errno_of(lambda: os.rename(one / "file", two / "there")),
            "rename directory": errno_of(lambda: os.rename(one / "dir", two / "dir")),
            "link": errno_of(lambda: os.link(one / "file", two / "file")),
        }
        assert os.listdir(two) == ["there"] and sorted(os.listdir(one)) == ["dir", "file"]
        for path in (one / "file", two / "there"):
            path.unlink()
        (one / "dir").rmdir()
        return found

    assert set(tree.inside(body).values()) == {"EXDEV"}


@in_world(Worlds.TWO_FILE_SYSTEMS)
def test_errors_within_one_of_two_file_systems(tree: Tree) -> None:
    def body() -> list[str]:
        one = tree.path / "one"
        (one / "a").mkdir()
        (one / "b").mkdir()
        (one / "b" / "file").write_text("text")
        found = [
            errno_of(lambda: os.rename(one / "a", one / "b")),
            errno_of(lambda: os.rmdir(one / "b")),
            errno_of(lambda: os.rename(one / "a", one / "a" / "c")),
        ]
        os.unlink(one / "b" / "file")
        os.rmdir(one / "a")
        os.rmdir(one / "b")
        return [*found, errno_of(lambda: os.rmdir(one))]

    assert tree.inside(body) == ["ENOTEMPTY", "ENOTEMPTY", "EINVAL", "EBUSY"]


@in_world(Worlds.TWO_FILE_SYSTEMS)
def test_moving_files_between_file_systems(tree: Tree) -> None:
    """What mv does with EXDEV: copy, then remove."""

    def body() -> str:
        (tree.path / "one" / "moved").write_text("text")
        status = os.spawnlp(os.P_WAIT, "mv", "mv", str(tree.path / "one" / "moved"), str(tree.path / "two"))
        text = (tree.path / "two" / "moved").read_text()
        os.unlink(tree.path / "two" / "moved")
        return f"{status} {text} {os.listdir(tree.path / 'one')}"

    assert tree.inside(body) == "0 text []"
