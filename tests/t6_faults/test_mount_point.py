"""Mount points that cannot be used, each by name; dead mounts, ours and others'."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support import mounts, processes
from tests.support.master import Master
from tests.support.mounted import Mount, sshmuxfs
from tests.support.sshd import HOST, Sshd
from tests.t6_faults.faults import attempt, outcome, read
from tests.t6_faults.launched import END_S, arguments, unmounted_after

OTHER_MOUNT = Path(__file__).with_name("other_mount.py")


@pytest.fixture
def refused(sshd: Sshd, shared_master: Master) -> Callable[..., str]:
    """`refused(mountpoint, ...)`: the command ends because of its mount point; what it says."""

    def run(
        mountpoint: str | Path,
        directory: Path = sshd.root,
        *options: str,
        control_path: str = "",
        cwd: Path = sshd.root,
    ) -> str:
        place = os.path.join(cwd, mountpoint)
        before = mounts.mounted_at(place)
        done = subprocess.run(
            arguments(sshd, directory, Path(mountpoint), control_path or shared_master.control_path, options),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=END_S,
            env=sshd.environment(),
            cwd=cwd,
        )
        said = done.stdout + done.stderr
        assert done.returncode == ExitCode.BAD_MOUNT_POINT, said
        assert mounts.mounted_at(place) == before
        assert "Traceback" not in said
        return said

    return run


def test_what_is_no_mount_point(refused: Callable[..., str], tmp_path: Path) -> None:
    """Missing, a file, not empty, a link that leads nowhere."""
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    missing = str(tmp_path / "missing")
    assert f"{missing} does not exist" in refused(missing)
    assert f"mkdir -p {missing}" in refused(missing)
    assert "does not exist" in refused(tmp_path / "dangling")
    assert "does not exist" in refused(tmp_path / "missing" / "below")
    assert "is not a directory" in refused(tmp_path / "file")
    assert refused(tmp_path / "file" / "below")
    assert "is not empty" in refused(tmp_path / "full")
    assert "nonempty" in refused(tmp_path / "full")
    assert refused("")
    assert "\x1b" not in refused(tmp_path / "a\x1b[31mb\nc")


def test_a_directory_that_is_not_empty_if_it_is_wished(
    make_mount: Callable[..., Mount], remote_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "hidden").write_text("")
    mount = make_mount(remote_dir, mountpoint=tmp_path, options=["nonempty"])
    assert outcome(os.listdir, mount.path) == []
    mount.unmount()
    assert os.listdir(tmp_path) == ["hidden"]


def test_a_mount_point_that_is_busy(
    refused: Callable[..., str], make_mount: Callable[..., Mount], remote_dir: Path
) -> None:
    """By a mount of ours that works; what is there is named, and goes on."""
    (remote_dir / "file").write_text("text")
    mount = make_mount(remote_dir)
    said = refused(mount.path)
    assert "is busy" in said and f"{HOST}:{remote_dir}" in said
    assert outcome(read, mount.path / "file") == b"text"


def test_a_mount_point_inside_itself(
    refused: Callable[..., str], sshd: Sshd, make_master: Callable[..., Master], remote_dir: Path
) -> None:
    """What it lives on lies below it, or the server is this machine and shows the mount point itself."""
    place = remote_dir / "sub" / "mnt"
    place.mkdir(parents=True)
    link = remote_dir.parent / f"{remote_dir.name}-link"
    link.symlink_to(place)
    try:
        for directory in (remote_dir, place.parent, place, remote_dir.parent, Path("/"), Path("/tmp")):
            said = refused(place, directory)
            assert "is inside itself" in said and "this machine" in said
        assert "is inside itself" in refused(link, remote_dir)
        assert "is inside itself" in refused(place, link.parent / ".." / link.parent.name)
    finally:
        link.unlink()


def test_what_the_mount_needs_lies_below_it(
    refused: Callable[..., str], sshd: Sshd, make_master: Callable[..., Master]
) -> None:
    """The control path, and the log."""
    place = sshd.control_dir / "mnt"
    place.mkdir()
    try:
        with Master(sshd, control_path=place / "s") as master:
            said = refused(place, sshd.root, "nonempty", control_path=master.control_path)
            assert "is inside itself" in said and "control path" in said
        said = refused(place, sshd.root, f"log_file={place}/log")
        assert "is inside itself" in said and "log" in said
        assert os.listdir(place) == []
    finally:
        for left in place.iterdir():
            left.unlink()
        place.rmdir()


def test_a_log_that_cannot_be_written(sshd: Sshd, shared_master: Master, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    options = [f"log_file={tmp_path}/missing/log"]
    command = arguments(sshd, sshd.root, tmp_path / "mnt", shared_master.control_path, options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=END_S, env=sshd.environment())
    assert done.returncode == ExitCode.USAGE
    assert f"the log file {tmp_path}/missing/log cannot be written: No such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shape", ["relative", "slash", "dots", "link", "odd"])
def test_ways_to_name_a_mount_point(
    sshd: Sshd, shared_master: Master, remote_dir: Path, tmp_path: Path, shape: str
) -> None:
    """Relative, with a slash at the end, through a link, with odd characters."""
    (remote_dir / "file").write_text("text")
    place = tmp_path / ("odd \n,\\ \u00e9" if shape == "odd" else "mnt")
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    given = {
        "relative": "mnt",
        "slash": f"{place}//",
        "dots": f"{place}/../mnt/.",
        "link": str(tmp_path / "link"),
        "odd": str(place),
    }[shape]
    command = [*arguments(sshd, remote_dir, place, shared_master.control_path)[:-1], given]
    subprocess.run(command, env=sshd.environment(), timeout=END_S, check=True, cwd=tmp_path)
    with unmounted_after(place):
        assert outcome(read, place / "file") == b"text"
    # The command line names it otherwise than the table of mounts.
    serving = [each for each in processes.descendants(os.getpid()) if str(remote_dir) in each.command]
    assert processes.wait_ended(serving, END_S) == []


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A dead mount of somebody else's."""
    path = tmp_path / "mnt"
    path.mkdir()
    subprocess.run([sys.executable, str(OTHER_MOUNT), str(path)], timeout=END_S)
    yield path
    mounts.fusermount("-u", "-z", str(path))


def test_a_dead_mount_of_ours_is_replaced(make_mount: Callable[..., Mount], remote_dir: Path, tmp_path: Path) -> None:
    """kill -9, and the same command again; twice, for a mount on top of a dead one would show then."""
    (remote_dir / "file").write_text("text")
    place = tmp_path / "mnt"
    place.mkdir()
    for _ in range(2):
        mount = make_mount(remote_dir, mountpoint=place)
        assert outcome(read, place / "file") == b"text"
        mount.kill()
        assert attempt(lambda: os.stat(place)) == "ENOTCONN"
        again = make_mount(remote_dir, mountpoint=place, foreground=False)
        assert outcome(read, place / "file") == b"text"
        assert len([each for each in mounts.mounts() if each.path == str(place)]) == 1
        again.unmount()
        mount.close()


def test_a_dead_mount_of_others_is_left(refused: Callable[..., str], dead: Path) -> None:
    said = refused(dead)
    assert "dead mount" in said and "fusermount3 -uz" in said
    there = mounts.mounted_at(dead)
    assert there is not None and there.kind == "fuse.other"


def test_a_dead_mount_above_the_mount_point(refused: Callable[..., str], dead: Path) -> None:
    """The mount point itself cannot be reached."""
    assert refused(dead / "below")
    assert mounts.mounted_at(dead) is not None


def test_a_mount_point_is_looked_at_before_anybody_is_asked(tmp_path: Path) -> None:
    """Neither the network nor a master is needed to tell of it."""
    done = sshmuxfs("nowhere.invalid:/", str(tmp_path / "missing"))
    assert done.returncode == ExitCode.BAD_MOUNT_POINT
    assert "does not exist" in done.stderr
