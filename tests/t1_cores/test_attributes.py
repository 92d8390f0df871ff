"""From what the server says of a file to what the kernel is told."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp.protocol import Attributes
from sshmuxfs.tree.attributes import MAX_TIME_S, NS_PER_S, BadAttributes, Stat, View, checked, seconds
from sshmuxfs.tree.identity import IdentityMap, IdRule
from sshmuxfs.tree.inodes import Inode, Tree

KINDS = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
SAME = View(IdentityMap())


def inode(attributes: Attributes) -> Inode:
    tree = Tree(b"/")
    made = tree.learn(tree.root, b"x", attributes, 0.0, 0)
    assert made is not None
    return made


# -- what no file can have --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_one(kind: int) -> None:
    attributes = Attributes(size=0, permissions=kind | 0o7777)
    assert checked(attributes) is attributes


@pytest.mark.parametrize("mode", [None, 0, 0o644, 0o7777, 0o030000, 0o050000, 0o110000, 0o160000, 0o170000, 0o200000])
def test_what_has_no_kind_is_no_file(mode: int | None) -> None:
    with pytest.raises(BadAttributes, match="no kind of file"):
        checked(Attributes(size=0, permissions=mode))


@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_no_file_is_larger_than_an_offset_can_say(size: int) -> None:
    with pytest.raises(BadAttributes, match="more than any file"):
        checked(Attributes(size=size, permissions=stat.S_IFREG))
    checked(Attributes(size=2**63 - 1, permissions=stat.S_IFREG))
    checked(Attributes(permissions=stat.S_IFREG))


@given(st.builds(Attributes, *(st.none() | st.integers(0, bits) for bits in (2**64 - 1, *[2**32 - 1] * 5))))
def test_what_passes_can_be_shown(attributes: Attributes) -> None:
    try:
        shown = SAME.stat(inode(checked(attributes)))
    except BadAttributes:
        return
    assert stat.S_IFMT(shown.mode) in KINDS
    assert shown.mode < 2**16
    assert 0 <= shown.size < 2**63
    assert all(0 <= each < 2**63 for each in shown)


# -- what the kernel is told ------------------------------------------------------------------------------------------


def test_all_is_told_as_the_server_has_it() -> None:
    attributes = Attributes(1025, 1000, 100, stat.S_IFREG | 0o4755, 1, 2)
    assert SAME.stat(inode(attributes)) == Stat(
        mode=stat.S_IFREG | 0o4755,
        nlink=1,
        uid=1000,
        gid=100,
        size=1025,
        blocks=3,
        atime_ns=1 * NS_PER_S,
        mtime_ns=2 * NS_PER_S,
    )


def test_what_the_server_leaves_out_is_zero() -> None:
    shown = SAME.stat(inode(Attributes(permissions=stat.S_IFREG | 0o600)))
    assert shown == Stat(stat.S_IFREG | 0o600, 1, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2), (2**62, 2**53)])
def test_blocks_are_of_512_bytes(size: int, blocks: int) -> None:
    assert SAME.stat(inode(Attributes(size=size, permissions=stat.S_IFREG))).blocks == blocks


def test_bits_beyond_a_mode_are_dropped() -> None:
    assert SAME.stat(inode(Attributes(permissions=0xFFFF0000 | stat.S_IFDIR | 0o755))).mode == stat.S_IFDIR | 0o755


@pytest.mark.parametrize(("umask", "shown"), [(None, 0o4640), (0, 0o777), (0o022, 0o755), (0o777, 0)])
@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])
def test_a_umask_takes_the_place_of_the_permissions(kind: int, umask: int | None, shown: int) -> None:
    view = View(IdentityMap(), umask=umask)
    assert view.stat(inode(Attributes(permissions=kind | 0o4640))).mode == kind | shown


def test_owners_are_translated() -> None:
    view = View(IdentityMap(IdRule(remote=0, local=1000), IdRule(shown=7)))
    shown = view.stat(inode(Attributes(uid=0, gid=0, permissions=stat.S_IFREG)))
    assert (shown.uid, shown.gid) == (1000, 7)


def test_names_made_here_are_counted() -> None:
    tree = Tree(b"/")
    file = tree.learn(tree.root, b"a", Attributes(permissions=stat.S_IFREG), 0.0, 0)
    assert file is not None
    tree.refer(file)
    counts = [SAME.stat(file).nlink]
    tree.link(file, tree.root, b"b")
    counts.append(SAME.stat(file).nlink)
    for name in (b"a", b"b"):
        tree.remove(tree.root, name)
        counts.append(SAME.stat(file).nlink)
    assert counts == [1, 2, 1, 0]


# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_ns", "second"),
    [
        (0, 0),
        (1, 0),
        (NS_PER_S - 1, 0),
        (NS_PER_S, 1),
        (MAX_TIME_S * NS_PER_S, 2**32 - 1),
        (MAX_TIME_S * NS_PER_S + NS_PER_S - 1, 2**32 - 1),
        ((MAX_TIME_S + 1) * NS_PER_S, None),
        (-1, None),
        (-NS_PER_S, None),
        (2**70, None),
    ],
)
def test_the_second_of_a_time(time_ns: int, second: int | None) -> None:
    assert seconds(time_ns) == second
