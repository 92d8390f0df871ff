"""Listings: many names, odd names, changing while they are read."""

from __future__ import annotations

import os
import random
import stat

import pytest

from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.syscalls import DirectoryStream

MANY = 10_000


def touch(directory: object, names: list[str]) -> None:
    """Make empty files."""
    for name in names:
        os.close(os.open(os.path.join(str(directory), name), os.O_CREAT | os.O_WRONLY))


@pytest.mark.deadline(180)
def test_ten_thousand_files(area: Area) -> None:
    """Half made here, half there; all of them listed, looked at, and removed here."""
    names = [f"file-{number:05}" for number in range(MANY)]
    touch(area.there, names[: MANY // 2])
    touch(area.here, names[MANY // 2 :])
    assert sorted(os.listdir(area.here)) == names
    with os.scandir(area.here) as entries:
        assert sum(entry.is_file() and entry.stat().st_size == 0 for entry in entries) == MANY
    for name in names[::100]:
        assert stat.S_ISREG(os.lstat(area.here / name).st_mode)
    for name in names:
        os.unlink(area.here / name)
    assert os.listdir(area.here) == os.listdir(area.there) == []


def test_a_listing_while_files_come_and_go(area: Area) -> None:
    """Every file that is there all the time is listed exactly once; the others at most once."""
    lasting = [f"lasting-{number}" for number in range(2000)]
    passing = [f"passing-{number}" for number in range(1000)]
    touch(area.there, lasting + passing)
    chance = random.Random(3)
    found: list[bytes] = []
    with DirectoryStream(area.here) as stream:
        while (entry := stream.read()) is not None:
            found.append(entry.name)
            if len(found) % 3 == 0 and passing:
                os.unlink(area.here / passing.pop(chance.randrange(len(passing))))
            if len(found) % 5 == 0:
                touch(area.here, [f"new-{len(found)}"])
    names = [os.fsdecode(name) for name in found if name not in (b".", b"..")]
    assert len(names) == len(set(names))
    assert set(lasting) <= set(names)
    assert sorted(os.listdir(area.here)) == sorted(os.listdir(area.there))


def test_emptying_a_directory_while_it_is_listed(area: Area) -> None:
    """As rm -r does it, without looking twice."""
    names = [f"{number}" for number in range(3000)]
    touch(area.there, names)
    removed = 0
    with DirectoryStream(area.here) as stream:
        while (entry := stream.read()) is not None:
            if entry.name not in (b".", b".."):
                os.unlink(os.path.join(os.fsencode(area.here), entry.name))
                removed += 1
    assert removed == len(names) and os.listdir(area.there) == []
    os.rmdir(area.here)


def test_going_back_to_a_place_in_a_listing(area: Area) -> None:
    touch(area.there, [f"{number}" for number in range(1500)])
    chance = random.Random(4)
    with DirectoryStream(area.here) as stream:
        places = [stream.tell()]
        names = []
        while (entry := stream.read()) is not None:
            names.append(entry.name)
            places.append(stream.tell())
        for index in chance.sample(range(len(names)), 100):
            stream.seek(places[index])
            following = [stream.read() for _ in range(3)]
            assert [entry.name if entry else None for entry in following] == (names[index : index + 3] + [None] * 3)[:3]
        stream.seek(places[0])
        assert stream.rest() == [name for name in names if name not in (b".", b"..")]


def test_going_back_to_a_place_after_changes(area: Area) -> None:
    touch(area.there, [f"{number}" for number in range(1000)])
    with DirectoryStream(area.here) as stream:
        before = [stream.read() for _ in range(500)]
        place = stream.tell()
        rest = stream.rest()
        for name in rest[:100]:
            os.unlink(os.path.join(os.fsencode(area.here), name))
        touch(area.here, ["new"])
        stream.seek(place)
        again = stream.rest()
    assert set(rest[100:]) <= set(again)
    assert not {entry.name for entry in before if entry} & set(again)


def test_beginning_again_sees_what_is_new(area: Area) -> None:
    touch(area.here, ["one", "two"])
    with DirectoryStream(area.here) as stream:
        assert sorted(stream.rest()) == [b"one", b"two"]
        touch(area.here, ["three"])
        os.unlink(area.here / "one")
        stream.rewind()
        assert sorted(stream.rest()) == [b"three", b"two"]
        os.unlink(area.here / "three")
        stream.rewind()
        assert stream.rest() == [b"two"]


def test_two_listings_of_one_directory_at_a_time(area: Area) -> None:
    names = [f"{number}" for number in range(700)]
    touch(area.there, names)
    with DirectoryStream(area.here) as one, DirectoryStream(area.here) as two:
        found: tuple[list[bytes], list[bytes]] = ([], [])
        for _ in range(300):
            for stream, into in zip((one, two), found, strict=True):
                entry = stream.read()
                assert entry is not None
                into.append(entry.name)
        for stream, into in zip((one, two), found, strict=True):
            into.extend(stream.rest())
            assert sorted(set(into) - {b".", b".."}) == sorted(map(os.fsencode, names))


def names_of_one_byte() -> list[bytes]:
    """Every byte but '/' and NUL; '.' is the directory itself."""
    return [bytes([number]) for number in range(1, 256) if bytes([number]) not in (b"/", b".")]


ODD_NAMES = [
    b"...",
    b"..a",
    b".hidden",
    b"-rf",
    b"~",
    b"a b",
    b" leading and trailing ",
    b"line\nfeed",
    b"\x1b[31mred\x1b[0m",
    b"bell\x07",
    b"back\\slash",
    b"'quoted\"`$(id)`",
    b"*?[glob]",
    "grün 猫 🐈".encode(),
    "e\u0301 and \u00e9".encode(),
    b"\xff\xfe invalid \x80\xc3\x28",
    b"\xed\xa0\x80 half a surrogate",
    b"n" * 255,
    b"\xff" * 255,
    "é".encode() * 127,
]


@pytest.mark.parametrize("made", ["here", "there"])
@pytest.mark.parametrize("names", [names_of_one_byte(), ODD_NAMES], ids=["one byte", "odd"])
def test_names_of_any_bytes(area: Area, names: list[bytes], made: str) -> None:
    here, there = os.fsencode(area.here), os.fsencode(area.there)
    for name in names:
        with open(os.path.join(here if made == "here" else there, name), "wb") as file:
            file.write(b"text of " + name)
    assert sorted(os.listdir(there)) == sorted(names)
    assert sorted(os.listdir(here)) == sorted(names)
    for name in names:
        path = os.path.join(here, name)
        with open(path, "rb") as file:
            assert file.read() == b"text of " + name
        assert stat.S_ISREG(os.lstat(path).st_mode)
    for name in names:
        os.rename(os.path.join(here, name), os.path.join(here, b"passing"))
        os.link(os.path.join(here, b"passing"), os.path.join(here, name))
        os.unlink(os.path.join(here, b"passing"))
    assert sorted(os.listdir(there)) == sorted(names)
    for name in names:
        os.unlink(os.path.join(here, name))
        os.mkdir(os.path.join(here, name))
        os.symlink(name, os.path.join(here, name, b"link"))
        assert os.readlink(os.path.join(here, name, b"link")) == name
    for name in names:
        os.unlink(os.path.join(here, name, b"link"))
        os.rmdir(os.path.join(here, name))
    assert os.listdir(there) == []


def test_link_targets_of_any_bytes(area: Area) -> None:
    here, there = os.fsencode(area.here), os.fsencode(area.there)
    for number, target in enumerate(names_of_one_byte() + ODD_NAMES):
        os.symlink(target, os.path.join(here, b"%d" % number))
        assert os.readlink(os.path.join(there, b"%d" % number)) == target
        assert os.readlink(os.path.join(here, b"%d" % number)) == target


def test_deep_directories(area: Area) -> None:
    path = area.here
    for number in range(60):
        path = path / f"level-{number}"
        path.mkdir()
    (path / "file").write_text("text")
    os.rename(area.here / "level-0", area.here / "top")
    moved = area.here / "top" / path.relative_to(area.here / "level-0")
    assert (moved / "file").read_text() == "text"
    assert sum(len(files) for _, _, files in os.walk(area.here)) == 1


def test_dot_and_dot_dot(area: Area) -> None:
    (area.here / "sub" / "deeper").mkdir(parents=True)
    assert os.path.samefile(area.here / "sub" / "deeper" / "..", area.here / "sub")
    assert os.path.samefile(area.here / "sub" / ".", area.here / "sub")
    assert os.listdir(area.here / "sub" / "deeper" / ".." / "..") == ["sub"]
    assert errno_of(lambda: os.rmdir(area.here / "sub" / "deeper" / "..")) == "ENOTEMPTY"


def test_kinds_are_listed(area: Area) -> None:
    (area.there / "file").write_text("text")
    (area.there / "dir").mkdir()
    (area.there / "link").symlink_to("file")
    os.mkfifo(area.there / "fifo")
    kinds = {"file": "file", "dir": "dir", "link": "symlink"}
    with os.scandir(area.here) as entries:
        for entry in entries:
            for name, kind in kinds.items():
                if entry.name == name:
                    assert getattr(entry, f"is_{kind}")() and entry.is_symlink() == (name == "link")


def test_a_listing_that_the_server_changes(area: Area) -> None:
    """Names of others may come late, but ours are there at once, and a name the server removed can be made again."""
    touch(area.here, ["ours"])
    assert os.listdir(area.here) == ["ours"]
    touch(area.there, ["theirs"])
    touch(area.here, ["ours-too"])
    assert {"ours", "ours-too"} <= set(os.listdir(area.here))
    os.unlink(area.there / "ours")
    touch(area.here, ["ours"])
    assert os.path.exists(area.there / "ours")
    if not area.differs(Difference.NAMES_MAY_BE_STALE):
        assert sorted(os.listdir(area.here)) == ["ours", "ours-too", "theirs"]
    os.unlink(area.here / "theirs")
    assert sorted(os.listdir(area.there)) == ["ours", "ours-too"]
