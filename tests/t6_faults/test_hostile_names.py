"""Names, attributes and link targets that no server should send: dropped one by one, or an error; never shown wrong."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.bounded import Stuck
from tests.support.evil_answers import BAD_NAMES, TARGETS
from tests.support.mounted import Mount
from tests.t6_faults.faults import CONTENT, DISCONNECTED, make, names, outcome, read, serves_others, size, sound

HONEST = [b"first", b"last"]
SHOWN = {
    "path": [],
    "empty": [],
    "dots": [],
    "nul": [],
    "long": [],
    "longest": [b"x" * 255],
    "control": [b"\x1b[2Jescape", b" ", b"-rf", b"new\nline", b"\xff\xfe not utf-8"],
    "again": [b"one"],
}
DROPPED = ("path", "empty", "nul", "long")


def entries(path: Path) -> list[bytes]:
    """What a program gets to see, by names and by entries."""
    found = sorted(os.listdir(os.fsencode(path)))
    with os.scandir(os.fsencode(path)) as scanned:
        assert sorted(entry.name for entry in scanned) == found
    return found


def head(path: Path, count: int) -> int:
    with os.scandir(path) as scanned:
        return sum(1 for _ in itertools.islice(scanned, count))


def test_names_no_directory_can_hold(
    evil: Callable[..., Mount], expect_log: Callable[[str], None], remote_dir: Path
) -> None:
    """Each is dropped by itself and named, escaped, in the log; the others stay."""
    made = {key: make(remote_dir, f"bad_names:{key}", "directory") for key in BAD_NAMES}
    for pattern in (r"\.\./\.\./etc/evil", "a/b", r"a\\x00b", "xxx"):
        expect_log(f"a name from the server is not shown: {pattern}")
    expect_log("a name from the server is not shown:")
    mount = evil()
    found = {key: outcome(entries, mount.path / name) for key, name in made.items()}
    assert found == {key: sorted([*HONEST, *SHOWN[key]]) for key in BAD_NAMES}
    assert not set(mount.log_text()) & {"\x1b", "\0"}
    sound(mount, remote_dir)


def test_every_reply_is_bad(evil: Callable[..., Mount], expect_log: Callable[[str], None], remote_dir: Path) -> None:
    """The log is not filled by one bad directory."""
    name = make(remote_dir, "bad_names:path", "directory")
    for number in range(1000):
        (remote_dir / name / f"{number}").write_bytes(b"")
    expect_log("a name from the server is not shown")
    mount = evil()
    assert len(outcome(entries, mount.path / name)) == 1002
    assert mount.log_text().count("is not shown") <= 10
    sound(mount, remote_dir)


def test_the_head_of_a_directory_without_end(evil: Callable[..., Mount], remote_dir: Path) -> None:
    """Who takes the head of it gets it, and may go at any time; we keep our size."""
    name = make(remote_dir, "endless:new", "directory")
    mount = evil()
    assert outcome(head, mount.path / name, 50) == 50
    sound(mount, remote_dir)


def test_a_directory_without_end_is_left_in_the_middle(evil: Callable[..., Mount], remote_dir: Path) -> None:
    """`ls` wants it all, and is killed."""
    name = make(remote_dir, "endless:new", "directory")
    mount = evil()
    with pytest.raises(Stuck):
        outcome(names, mount.path / name, within_s=1.0)
    serves_others(mount, remote_dir)
    assert mount.running


@pytest.mark.parametrize("way", ["same", "empty"])
def test_a_directory_that_never_comes_to_an_end(
    evil: Callable[..., Mount], allow_log: Callable[[str], None], remote_dir: Path, way: str
) -> None:
    """The same names again and again, or none, are an error before long."""
    allow_log("is not shown: name-[0-4]$")
    name = make(remote_dir, f"endless:{way}", "directory")
    mount = evil()
    assert outcome(names, mount.path / name) == "EIO"
    sound(mount, remote_dir)


# What a file is then, and whether a listing shows it.
ATTRIBUTES: dict[str, tuple[tuple[object, ...], bool]] = {
    "kind": (("EIO",), False),
    "size": (("EIO", "EOVERFLOW"), False),
    "none": (("EIO",), False),
    "permissions": (("EIO",), False),
    "extended": (((stat.S_IFREG | 0o644, len(CONTENT)),), True),
    "bits": (((stat.S_IFREG | 0o644, len(CONTENT)),), True),
    "times": (((stat.S_IFREG | 0o644, len(CONTENT)),), True),
    "ids": (((stat.S_IFREG | 0o644, len(CONTENT)),), True),
}


def kind_and_size(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_mode, found.st_size


def test_attributes_no_file_can_have(
    evil: Callable[..., Mount], expect_log: Callable[[str], None], remote_dir: Path
) -> None:
    """That file is an error; after a listing, in which it does not appear, it is not there. The others are."""
    (remote_dir / "content").chmod(0o644)
    made = {key: make(remote_dir, f"attributes:{key}") for key in ATTRIBUTES}
    expect_log("is not shown: mode ")
    expect_log("is not shown: a size of ")
    mount = evil()
    found = {key: outcome(kind_and_size, mount.path / name) for key, name in made.items()}
    wrong = {key: each for key, each in found.items() if each not in ATTRIBUTES[key][0]}
    assert not wrong
    shown = outcome(names, mount.path)
    assert shown == sorted(["content", "good", "others", *(made[key] for key, (_, seen) in ATTRIBUTES.items() if seen)])
    after = {key: outcome(size, mount.path / name) for key, name in made.items()}
    assert {each for key, each in after.items() if not ATTRIBUTES[key][1]} <= {"EIO", "ENOENT"}
    times = outcome(lambda: os.stat(mount.path / made["times"]).st_mtime)
    assert times == 2**32 - 1
    sound(mount, remote_dir)


def test_attributes_that_come_with_more(evil: Callable[..., Mount], remote_dir: Path) -> None:
    name = make(remote_dir, "attributes:extended")
    mount = evil()
    assert outcome(read, mount.path / name) == CONTENT
    sound(mount, remote_dir)


@pytest.mark.parametrize("contained", [True, False])
def test_targets(evil: Callable[..., Mount], remote_dir: Path, contained: bool) -> None:
    """Nothing leads out of the mount; what no link can hold is refused even where leading out is allowed."""
    made = {key: make(remote_dir, f"bad_target:{key}", "link") for key in TARGETS}
    mount = evil(*([] if contained else ["no_contain_symlinks"]))
    found = {key: outcome(os.readlink, os.fsencode(mount.path / name)) for key, name in made.items()}
    expected: dict[str, object] = dict.fromkeys(TARGETS, "EPERM")
    if not contained:
        expected |= {key: TARGETS[key] for key in ("absolute", "up", "inside", "end")}
    assert found == expected
    if contained:
        opened = {key: outcome(read, mount.path / name) for key, name in made.items()}
        assert set(opened.values()) == {"EPERM"}
    sound(mount, remote_dir)


def test_a_target_that_is_none_or_several(evil: Callable[..., Mount], remote_dir: Path) -> None:
    made = [make(remote_dir, f"target_count:{count}", "link") for count in (0, 2, 3)]
    mount = evil()
    assert {outcome(os.readlink, mount.path / name) for name in made} <= {"EIO", "EINVAL"}
    sound(mount, remote_dir)


@pytest.mark.parametrize("becomes", ["directory", "link"])
def test_a_file_that_becomes_something_else(evil: Callable[..., Mount], remote_dir: Path, becomes: str) -> None:
    """Between being looked up and being opened. It is opened as what it is by then, or not at all."""
    name = make(remote_dir, f"swap:{becomes}")
    mount = evil()
    assert outcome(lambda: os.stat(mount.path / name).st_size) == len(CONTENT)
    assert outcome(read, mount.path / name) in (("EISDIR",) if becomes == "directory" else ("EPERM",))
    mode = outcome(lambda: os.lstat(mount.path / name).st_mode)
    assert stat.S_IFMT(mode) == (stat.S_IFDIR if becomes == "directory" else stat.S_IFLNK)
    sound(mount, remote_dir)


@pytest.mark.parametrize("way", ["short", "long", "zero", "huge"])
def test_space_that_cannot_be(
    evil: Callable[..., Mount], allow_log: Callable[[str], None], remote_dir: Path, way: str
) -> None:
    """Figures or an error, and `df` does not choke on them."""
    directory = remote_dir / make(remote_dir, f"bad_statvfs:{way}", "directory")
    mount = evil(directory=directory)
    found = outcome(lambda: os.statvfs(mount.path).f_namemax)
    assert found in (*DISCONNECTED, "EINVAL", "EOVERFLOW") or found <= 255
    outcome(os.system, f"df {mount.path} >/dev/null 2>&1")
    assert outcome(read, mount.path / "first") == b"first"
    assert mount.running
