"""Mount options that change what is seen: read-only, owners, modes, and what the kernel is told of the mount."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import mounts
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup, Tree
from tests.t4_mount.worlds import NOBODY


def on(*options: str) -> pytest.MarkDecorator:
    """Run on a mount with these options."""
    return pytest.mark.variants(Setup("mount", options))


@on("ro")
def test_read_only(area: Area) -> None:
    (area.there / "file").write_text("text")
    (area.there / "dir").mkdir()
    assert (area.here / "file").read_text() == "text"
    assert sorted(os.listdir(area.here)) == ["dir", "file"]
    changes: dict[str, Callable[[], object]] = {
        "write": lambda: os.open(area.here / "file", os.O_WRONLY),
        "create": lambda: os.open(area.here / "new", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(area.here / "new"),
        "unlink": lambda: os.unlink(area.here / "file"),
        "rmdir": lambda: os.rmdir(area.here / "dir"),
        "rename": lambda: os.rename(area.here / "file", area.here / "new"),
        "link": lambda: os.link(area.here / "file", area.here / "new"),
        "symlink": lambda: os.symlink("target", area.here / "new"),
        "chmod": lambda: os.chmod(area.here / "file", 0o600),
        "truncate": lambda: os.truncate(area.here / "file", 0),
        "times": lambda: os.utime(area.here / "file"),
    }
    assert {name: errno_of(change) for name, change in changes.items()} == dict.fromkeys(changes, "EROFS")
    assert sorted(os.listdir(area.there)) == ["dir", "file"]
    assert os.statvfs(area.here).f_flag & os.ST_RDONLY


@on("uid=1234", "gid=4321")
def test_one_owner_for_everything(area: Area) -> None:
    (area.there / "file").write_text("text")
    (area.here / "new").write_text("text")
    os.symlink("file", area.there / "link")
    for name in ("file", "new", "link", "."):
        found = os.lstat(area.here / name)
        assert (found.st_uid, found.st_gid) == (1234, 4321), name
    assert os.stat(area.there / "new").st_uid == os.getuid()


@on("umask=027")
def test_shown_modes(area: Area) -> None:
    """As sshfs and libfuse have it: permissions are 0777 without these bits, whatever they are on the server."""
    (area.there / "file").write_text("text")
    (area.there / "file").chmod(0o600)
    (area.there / "dir").mkdir()
    for name, kind in (("file", stat.S_ISREG), ("dir", stat.S_ISDIR)):
        found = os.stat(area.here / name)
        assert stat.S_IMODE(found.st_mode) == 0o750 and kind(found.st_mode), name


@on("idmap=user")
def test_ids_of_the_login(area: Area) -> None:
    """The login there is the user here, in both directions."""
    (area.here / "file").write_text("text")
    assert os.stat(area.here / "file").st_uid == os.getuid()
    os.chown(area.here / "file", os.getuid(), os.getgid())
    assert os.stat(area.there / "file").st_uid == os.getuid()


@on("disable_hardlink")
def test_no_hard_links(area: Area) -> None:
    (area.here / "file").write_text("text")
    assert errno_of(lambda: os.link(area.here / "file", area.here / "link")) in ("ENOSYS", "EPERM", "ENOTSUP")
    assert os.listdir(area.there) == ["file"]


@on("max_read=16384", "max_write=8192")
def test_smaller_requests(area: Area) -> None:
    text = os.urandom(500_000)
    (area.here / "file").write_bytes(text)
    assert (area.there / "file").read_bytes() == text
    assert (area.here / "file").read_bytes() == text


@on()
def test_no_set_user_id_and_no_devices(tree: Tree) -> None:
    found = mounts.mounted_at(tree.path)
    assert found is not None and {"nosuid", "nodev"} <= set(found.options)
    assert found.kind.startswith("fuse.")
    assert str(tree.served) in found.source


@pytest.mark.parametrize(
    "name", [b"M\xc3\xbcller", b"M\xfcller", b"\xe2\x82\xac, \\ \n"], ids=["utf-8", "latin-1", "odd"]
)
def test_a_remote_directory_of_any_name(start: Callable[..., Tree], tmp_path: Path, name: bytes) -> None:
    served = tmp_path / os.fsdecode(name)
    served.mkdir()
    (served / "file").write_text("text")
    tree = start(MOUNT, served)
    assert (tree.path / "file").read_text() == "text"
    found = mounts.mounted_at(tree.path)
    assert found is not None and found.source.endswith(f":{os.fsencode(served).decode(errors='replace')}")


@on("fsname=M\u00fcller")
def test_a_name_of_any_letters(tree: Tree) -> None:
    found = mounts.mounted_at(tree.path)
    assert found is not None and found.source == "M\u00fcller"


@on("fsname=something", "noatime", "noexec")
def test_options_of_the_kernel(tree: Tree) -> None:
    found = mounts.mounted_at(tree.path)
    assert found is not None
    assert found.source == "something" and {"noatime", "noexec"} <= set(found.options)
    (tree.path / "script").write_text("#!/bin/sh\n")
    (tree.path / "script").chmod(0o755)
    assert errno_of(lambda: subprocess.run([str(tree.path / "script")], check=False)) == "EACCES"


@on("attr_timeout=0", "entry_timeout=0", "negative_timeout=0", "dir_cache=no")
def test_without_caches_nothing_is_stale(area: Area) -> None:
    for number in range(10):
        assert errno_of(lambda: os.stat(area.here / "file")) == "ENOENT"
        (area.there / "file").write_text("x" * number)
        assert os.stat(area.here / "file").st_size == number
        (area.there / "file").write_text("x" * (number + 100))
        (area.there / "file").chmod(0o640)
        assert os.stat(area.here / "file").st_size == number + 100
        assert stat.S_IMODE(os.stat(area.here / "file").st_mode) == 0o640
        assert os.listdir(area.here) == ["file"]
        os.unlink(area.there / "file")
        assert os.listdir(area.here) == []


def test_the_kernel_reads_ahead_more_from_next_door(start: Callable[..., Tree]) -> None:
    """What it is told before it knows the mount it forgets. A server on a machine that is busy may look far, once."""
    for _ in range(5):
        tree = start(MOUNT)
        os.listdir(tree.path)
        device = os.stat(tree.path).st_dev
        if Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text() == "512\n":
            return
    pytest.fail("it reads ahead as ever")


@pytest.mark.variants(PLAIN, MOUNT)
def test_df(tree: Tree) -> None:
    def figures(path: Path) -> list[str]:
        command = ["df", "--block-size=1G", "--output=size,itotal", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()

    assert figures(tree.path) == figures(tree.served)


@on()
def test_other_users_are_kept_out(area: Area) -> None:
    (area.there / "file").write_text("text")
    found = mounts.mounted_at(area.tree.path)
    assert found is not None and "allow_other" not in found.options
    if os.geteuid() == 0:
        command = [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "cat",
            str(area.here / "file"),
        ]
        assert subprocess.run(command, capture_output=True, timeout=20).returncode != 0
