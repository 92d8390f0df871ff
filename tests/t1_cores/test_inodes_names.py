"""The tree of known names: numbers, paths, renames, hard links, and what becomes of a file without a name."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp.protocol import Attributes
from sshmuxfs.tree.inodes import ROOT_NUMBER, Gone, Inode, Tree

FILE = Attributes(size=1, permissions=stat.S_IFREG | 0o644)
DIRECTORY = Attributes(permissions=stat.S_IFDIR | 0o755)


def learn(tree: Tree, parent: Inode, name: bytes, attributes: Attributes = FILE, now_s: float = 0.0) -> Inode:
    inode = tree.learn(parent, name, attributes, now_s, tree.changes)
    assert inode is not None
    return inode


def grown() -> tuple[Tree, Inode, Inode, Inode]:
    """/base with the directory `d`, in it the directory `e`, in that the file `f`; all referred to."""
    tree = Tree(b"/base")
    d = learn(tree, tree.root, b"d", DIRECTORY)
    e = learn(tree, d, b"e", DIRECTORY)
    f = learn(tree, e, b"f")
    for inode in (d, e, f):
        tree.refer(inode)
    return tree, d, e, f


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "root", "child", "deep"),
    [
        (b"/", b"/", b"/d", b"/d/e"),
        (b"/home/me", b"/home/me", b"/home/me/d", b"/home/me/d/e"),
    ],
)
def test_paths(base: bytes, root: bytes, child: bytes, deep: bytes) -> None:
    tree = Tree(base)
    assert tree.path(tree.root) == root
    assert tree.path(tree.root, b"d") == child
    d = learn(tree, tree.root, b"d", DIRECTORY)
    assert tree.path(d) == child
    assert tree.path(d, b"e") == deep


def test_an_unknown_number_is_gone() -> None:
    with pytest.raises(Gone):
        Tree(b"/").inode(12345)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_the_root_has_the_number_the_kernel_gives_it() -> None:
    tree = Tree(b"/base")
    assert tree.root.number == ROOT_NUMBER == 1
    assert tree.inode(1) is tree.root
    assert not tree.root.gone
    assert tree.root.link_count == 1


def test_a_number_is_the_same_after_it_was_forgotten_and_on_the_next_mount() -> None:
    numbers = []
    for _ in range(2):
        tree, d, e, f = grown()
        numbers.append((d.number, e.number, f.number))
        for inode in (f, e, d):
            tree.forget(inode.number, 1)
        again = Tree(b"/base", max_idle=1)
        again_d = learn(again, again.root, b"d", DIRECTORY)
        numbers.append((again_d.number, *numbers[-1][1:]))
    assert len(set(numbers)) == 1
    assert len(set(numbers[0])) == 3


def test_no_two_inodes_share_a_number_and_all_are_positive_when_signed() -> None:
    tree = Tree(b"/", max_idle=10_000)
    names = [b"%d" % number for number in range(2000)]
    inodes = [learn(tree, tree.root, name) for name in names]
    numbers = {inode.number for inode in inodes}
    assert len(numbers) == 2000
    assert all(ROOT_NUMBER < number < 2**63 for number in numbers)
    assert all(tree.inode(inode.number) is inode for inode in inodes)


def test_the_number_of_a_removed_file_is_not_given_to_another_while_anyone_refers_to_it() -> None:
    tree = Tree(b"/")
    first = learn(tree, tree.root, b"name")
    tree.refer(first)
    number = first.number
    for _ in range(5):
        tree.remove(tree.root, b"name")
        inode = tree.add(tree.root, b"name")
        tree.refer(inode)
        assert inode is not first
        assert inode.number != number
        assert tree.inode(number) is first
    tree.forget(number, 1)
    with pytest.raises(Gone):
        tree.inode(number)
    tree.remove(tree.root, b"name")
    assert tree.add(tree.root, b"name").number == number, "free again, and made from the name"


def test_a_file_that_became_a_directory_is_another_inode() -> None:
    tree = Tree(b"/")
    file = learn(tree, tree.root, b"x")
    tree.refer(file)
    directory = learn(tree, tree.root, b"x", DIRECTORY)
    assert directory is not file
    assert directory.number != file.number
    assert file.gone
    assert file.link_count == 0
    assert tree.path(directory) == b"/x"
    with pytest.raises(Gone):
        tree.path(file)


def test_new_attributes_of_the_same_kind_are_of_the_same_inode() -> None:
    tree = Tree(b"/")
    file = learn(tree, tree.root, b"x")
    changed = FILE._replace(size=9, permissions=stat.S_IFREG | 0o600)
    assert learn(tree, tree.root, b"x", changed) is file
    assert file.attributes == changed


# -- renames ----------------------------------------------------------------------------------------------------------


def test_a_renamed_file_keeps_its_number_and_is_found_by_its_new_path() -> None:
    tree, d, e, f = grown()
    number = f.number
    tree.rename(e, b"f", d, b"g")
    assert (f.number, tree.path(f)) == (number, b"/base/d/g")
    assert tree.is_absent(e, b"f", 0.0, 20.0) is False, "nothing is known of what is absent from a directory not listed"
    assert b"f" not in e.directory.children if e.directory else False


def test_a_renamed_directory_takes_what_is_below_it_along() -> None:
    tree, d, e, f = grown()
    tree.rename(d, b"e", tree.root, b"moved")
    assert tree.path(f) == b"/base/moved/f"
    tree.rename(tree.root, b"moved", d, b"back")
    assert tree.path(f) == b"/base/d/back/f"
    assert tree.inode(e.number) is e


def test_what_stood_at_the_new_name_is_gone_but_stays_while_referred_to() -> None:
    tree, _, e, f = grown()
    other = learn(tree, e, b"other")
    tree.refer(other)
    tree.rename(e, b"other", e, b"f")
    assert f.gone
    assert tree.inode(f.number) is f
    assert tree.path(other) == b"/base/d/e/f"
    tree.forget(f.number, 1)
    with pytest.raises(Gone):
        tree.inode(f.number)


def test_a_name_moved_onto_itself_or_onto_another_name_of_the_same_file_stays() -> None:
    tree, d, e, f = grown()
    tree.rename(e, b"f", e, b"f")
    assert tree.path(f) == b"/base/d/e/f"
    tree.link(f, d, b"second")
    tree.rename(e, b"f", d, b"second")
    assert f.link_count == 2
    assert sorted(name for _, name in f.names()) == [b"f", b"second"]


def test_moving_what_is_not_known_leaves_nothing_believed_of_the_new_place() -> None:
    tree, d, e, _ = grown()
    tree.learn_complete(d, {b"e"}, 5.0, tree.changes)
    assert tree.is_absent(d, b"new", 6.0, 20.0)
    tree.rename(e, b"unknown", d, b"new")
    assert not tree.is_absent(d, b"new", 6.0, 20.0)


# -- hard links -------------------------------------------------------------------------------------------------------


def test_hard_links_share_an_inode_and_a_count() -> None:
    tree, d, e, f = grown()
    tree.link(f, d, b"second")
    tree.link(f, tree.root, b"third")
    assert f.link_count == 3
    for parent, name in ((e, b"f"), (d, b"second"), (tree.root, b"third")):
        assert learn(tree, parent, name) is f
    tree.remove(e, b"f")
    assert f.link_count == 2
    assert tree.path(f) in (b"/base/d/second", b"/base/third")
    tree.remove(d, b"second")
    assert tree.path(f) == b"/base/third"
    assert f.more_names is None
    tree.remove(tree.root, b"third")
    assert f.gone
    assert f.link_count == 0


def test_several_names_are_lost_together_when_somebody_else_changed_one() -> None:
    """The kernel may take each of them for the inode, and which one still is the file cannot be told."""
    for change in ("kind", "absent", "listed"):
        tree, d, e, f = grown()
        tree.link(f, d, b"second")
        tree.link(f, d, b"third")
        if change == "kind":
            learn(tree, d, b"second", DIRECTORY)
        elif change == "absent":
            tree.learn_absent(d, b"second", 1.0, tree.changes)
        else:
            tree.learn_complete(d, {b"e", b"unknown"}, 1.0, tree.changes)
            assert not tree.is_absent(e, b"f", 1.0, 20.0), "only unknown"
        assert f.gone, change
        assert f.link_count == 0
        assert tree.inode(f.number) is f
        assert learn(tree, e, b"f") is not f


def test_one_name_of_several_or_of_an_open_file_does_not_speak_for_it() -> None:
    other = FILE._replace(size=77)
    tree, d, e, f = grown()
    tree.link(f, d, b"second")
    assert learn(tree, d, b"second", other) is f
    assert f.attributes == FILE
    tree.remove(d, b"second")
    handle = object()
    tree.open_file(f, handle)
    assert learn(tree, e, b"f", other) is f
    assert f.attributes == FILE
    tree.close_file(f, handle)
    assert learn(tree, e, b"f", other).attributes == other


def test_every_way_to_a_file_or_none() -> None:
    tree, d, e, f = grown()
    tree.link(f, tree.root, b"second")
    assert tree.ways(f) == [(e, b"f", b"/base/d/e/f"), (tree.root, b"second", b"/base/second")]
    tree.learn_absent(d, b"e", 1.0, tree.changes)
    with pytest.raises(Gone):
        tree.ways(f)
    assert f.gone
    assert tree.ways(f) == []


def test_a_hard_link_can_be_renamed_whichever_name_it_is() -> None:
    tree, d, e, f = grown()
    tree.link(f, d, b"second")
    tree.rename(d, b"second", d, b"renamed")
    assert sorted(name for _, name in f.names()) == [b"f", b"renamed"]
    tree.rename(e, b"f", e, b"first")
    assert sorted(name for _, name in f.names()) == [b"first", b"renamed"]
    assert tree.path(f) == b"/base/d/e/first"


def test_a_link_replaces_what_was_known_under_its_name() -> None:
    tree, d, _, f = grown()
    old = learn(tree, d, b"old")
    tree.refer(old)
    tree.link(f, d, b"old")
    assert old.gone
    assert learn(tree, d, b"old") is f


# -- without a name ---------------------------------------------------------------------------------------------------


def test_a_removed_file_lives_while_it_is_open() -> None:
    tree, _, e, f = grown()
    handle = object()
    tree.open_file(f, handle)
    tree.remove(e, b"f")
    tree.forget(f.number, 1)
    assert tree.inode(f.number) is f
    assert f.link_count == 0
    with pytest.raises(Gone):
        tree.path(f)
    tree.close_file(f, handle)
    with pytest.raises(Gone):
        tree.inode(f.number)


def test_below_a_directory_without_a_name_there_is_no_path() -> None:
    tree, _, e, f = grown()
    tree.learn_absent(tree.root, b"d", 1.0, tree.changes)
    for inode in (e, f):
        with pytest.raises(Gone):
            tree.path(inode)
    for inode in (f, e):
        tree.forget(inode.number, 1)


def test_removing_what_is_not_known_is_no_error() -> None:
    tree, d, _, _ = grown()
    tree.remove(d, b"never heard of")
    tree.distrust(d, b"never heard of")
    tree.forget(987654321, 3)


def test_a_name_made_anew_is_another_file() -> None:
    tree, _, e, f = grown()
    again = tree.add(e, b"f")
    assert again is not f
    assert again.number != f.number
    assert f.gone


@given(st.lists(st.binary(min_size=1, max_size=5).filter(lambda name: b"/" not in name), unique=True, max_size=30))
def test_every_name_is_kept_as_it_is(names: list[bytes]) -> None:
    tree = Tree(b"/base")
    inodes = {name: learn(tree, tree.root, name) for name in names}
    assert {tree.path(inode) for inode in inodes.values()} == {b"/base/" + name for name in names}
    assert len({inode.number for inode in inodes.values()}) == len(names)
