"""What a mount tells of link targets: contained by default, all of them, transformed, or followed on the server."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

NO_CONTAIN = Setup("mount", ("no_contain_symlinks",))

INSIDE = ["file", "dir/file", "./file", "dir/./file", "missing", "..hidden", "dir/..hidden", "...", "a..b/c"]
OUTSIDE = ["/etc/hostname", "/", "..", "../", "../file", "dir/..", "dir/../file", "a/b/../../..", "./..", "//file"]


def contain_default() -> pytest.MarkDecorator:
    """Containment is the default, and can be asked for; the last of two options counts."""
    return pytest.mark.variants(
        MOUNT,
        Setup("mount", ("contain_symlinks",)),
        Setup("mount", ("no_contain_symlinks", "contain_symlinks")),
    )


@contain_default()
@pytest.mark.parametrize("target", INSIDE)
def test_targets_inside_are_told(area: Area, target: str) -> None:
    (area.there / "link").symlink_to(target)
    assert os.readlink(area.here / "link") == target


@contain_default()
@pytest.mark.parametrize("target", OUTSIDE)
def test_targets_outside_are_refused(area: Area, target: str) -> None:
    os.symlink(target, area.there / "link")
    assert errno_of(lambda: os.readlink(area.here / "link")) == "EPERM"
    assert errno_of(lambda: os.stat(area.here / "link")) == "EPERM"
    assert errno_of(lambda: os.open(area.here / "link", os.O_RDONLY)) == "EPERM"
    assert stat.S_ISLNK(os.lstat(area.here / "link").st_mode)
    assert os.listdir(area.here) == ["link"]
    os.rename(area.here / "link", area.here / "renamed")
    os.unlink(area.here / "renamed")
    assert os.listdir(area.there) == []


@contain_default()
def test_a_link_through_a_link_that_leads_outside(area: Area) -> None:
    os.symlink("/etc", area.there / "outside")
    os.symlink("outside/hostname", area.there / "innocent")
    assert os.readlink(area.here / "innocent") == "outside/hostname"
    assert errno_of(lambda: os.open(area.here / "innocent", os.O_RDONLY)) == "EPERM"


@contain_default()
def test_a_target_that_the_server_changes(area: Area) -> None:
    (area.there / "file").write_text("text")
    os.symlink("file", area.there / "link")
    assert (area.here / "link").read_text() == "text"
    os.unlink(area.there / "link")
    os.symlink("/etc/hostname", area.there / "link")
    assert errno_of(lambda: (area.here / "link").read_text()) in ("success", "EPERM")


@pytest.mark.variants(PLAIN, NO_CONTAIN, Setup("mount", ("contain_symlinks", "no_contain_symlinks")))
@pytest.mark.parametrize("target", INSIDE + OUTSIDE)
def test_all_targets_are_told(area: Area, target: str) -> None:
    os.symlink(target, area.here / "link")
    assert os.readlink(area.there / "link") == target
    assert os.readlink(area.here / "link") == target


@pytest.mark.variants(PLAIN, NO_CONTAIN)
def test_links_upwards_and_out_are_followed(area: Area) -> None:
    (area.here / "dir").mkdir()
    (area.here / "file").write_text("text")
    os.symlink("../file", area.here / "dir" / "up")
    os.symlink(area.there / "file", area.here / "absolute")
    os.symlink("/", area.here / "root")
    assert (area.here / "dir" / "up").read_text() == "text"
    assert (area.here / "absolute").read_text() == "text"
    assert os.path.samefile(area.here / "root", "/")


@pytest.mark.variants(Setup("mount", ("transform_symlinks", "no_contain_symlinks")))
def test_absolute_targets_are_transformed(area: Area) -> None:
    (area.there / "a" / "b").mkdir(parents=True)
    (area.there / "file").write_text("text")
    links = {
        "a/b/link": (area.there / "file", "../../file"),
        "a/link": (area.there / "a" / "b", "b"),
        "link": (area.there / "file", "file"),
        "outside": (Path("/etc/hostname"), "/etc/hostname"),
        "relative": (Path("a/b"), "a/b"),
    }
    for name, (target, told) in links.items():
        os.symlink(target, area.there / name)
        assert os.readlink(area.here / name) == told, name
    assert (area.here / "a" / "b" / "link").read_text() == "text"


@pytest.mark.variants(Setup("mount", ("transform_symlinks",)))
def test_transformed_targets_are_contained(area: Area) -> None:
    """What is inside without going up is told, the rest is not."""
    (area.there / "dir").mkdir()
    (area.there / "file").write_text("text")
    os.symlink(area.there / "file", area.there / "down")
    os.symlink(area.there / "file", area.there / "dir" / "up")
    os.symlink("/etc/hostname", area.there / "outside")
    assert (area.here / "down").read_text() == "text"
    for name in ("dir/up", "outside"):
        assert errno_of(os.readlink, area.here / name) == "EPERM"


@pytest.mark.variants(Setup("mount", ("follow_symlinks",)))
def test_links_followed_on_the_server(area: Area) -> None:
    (area.there / "file").write_text("text")
    (area.there / "dir").mkdir()
    (area.there / "dir" / "inside").write_text("inside")
    os.symlink("file", area.there / "to-file")
    os.symlink(area.there / "dir", area.there / "to-dir")
    os.symlink("/etc/passwd", area.there / "outside")
    assert stat.S_ISREG(os.lstat(area.here / "to-file").st_mode)
    assert (area.here / "to-file").read_text() == "text"
    assert os.listdir(area.here / "to-dir") == ["inside"]
    assert (area.here / "outside").read_text() == Path("/etc/passwd").read_text()
    assert sorted(os.listdir(area.here)) == ["dir", "file", "outside", "to-dir", "to-file"]
    os.chmod(area.here / "to-file", 0o640)
    assert stat.S_IMODE(os.stat(area.there / "file").st_mode) == 0o640


@pytest.mark.variants(Setup("mount", ("follow_symlinks",)))
def test_a_link_to_nothing_when_links_are_followed(area: Area) -> None:
    os.symlink("missing", area.there / "dangling")
    (area.there / "file").write_text("text")
    assert "file" in os.listdir(area.here)
    assert errno_of(lambda: os.stat(area.here / "dangling")) == "ENOENT"
    assert (area.here / "file").read_text() == "text"
