"""Who refers to an inode, and which one is dropped when too many are kept for their knowledge alone."""

from __future__ import annotations

import pytest

from sshmuxfs.tree.inodes import Gone, Inode, Tree
from tests.t1_cores.test_inodes_names import DIRECTORY, FILE, learn


def is_known(tree: Tree, inode: Inode) -> bool:
    try:
        return tree.inode(inode.number) is inode
    except Gone:
        return False


def test_an_inode_is_kept_exactly_as_long_as_the_kernel_refers_to_it() -> None:
    tree = Tree(b"/")
    a = learn(tree, tree.root, b"a")
    for _ in range(3):
        tree.refer(a)
    tree.remove(tree.root, b"a")
    tree.forget(a.number, 2)
    assert is_known(tree, a)
    tree.forget(a.number, 1)
    assert not is_known(tree, a)


def test_forgetting_more_than_was_given_is_no_harm() -> None:
    tree = Tree(b"/")
    a = learn(tree, tree.root, b"a")
    tree.refer(a)
    tree.forget(a.number, 99)
    assert a.lookups == 0
    tree.refer(a)
    assert a.lookups == 1
    tree.forget(1, 1)
    assert tree.inode(1) is tree.root


def test_a_forgotten_inode_is_kept_for_its_knowledge() -> None:
    tree = Tree(b"/")
    a = learn(tree, tree.root, b"a", FILE, 5.0)
    tree.refer(a)
    tree.forget(a.number, 1)
    assert is_known(tree, a)
    assert a.fetched_at_s == 5.0


def test_the_longest_idle_is_dropped_first_and_the_others_stay() -> None:
    tree = Tree(b"/", max_idle=3)
    inodes = [learn(tree, tree.root, b"%d" % number) for number in range(3)]
    tree.refer(inodes[0])
    tree.forget(inodes[0].number, 1)  # used last
    learn(tree, tree.root, b"new")
    assert [is_known(tree, inode) for inode in inodes] == [True, False, True]
    learn(tree, tree.root, b"newer")
    assert [is_known(tree, inode) for inode in inodes] == [True, False, False]
    assert len(tree) == 1 + 3


def test_what_is_referred_to_open_or_a_parent_is_never_dropped() -> None:
    tree = Tree(b"/", max_idle=1)
    directory = learn(tree, tree.root, b"d", DIRECTORY)
    child = learn(tree, directory, b"child")
    tree.refer(child)
    opened = learn(tree, tree.root, b"opened")
    tree.open_file(opened, object())
    for number in range(50):
        learn(tree, tree.root, b"%d" % number)
    assert is_known(tree, directory)
    assert is_known(tree, child)
    assert is_known(tree, opened)
    assert len(tree) == 1 + 3 + 1


def test_dropping_one_of_a_listing_ends_the_trust_in_it() -> None:
    tree = Tree(b"/", max_idle=2)
    names = {b"a", b"b"}
    for name in sorted(names):
        learn(tree, tree.root, name, FILE, 1.0)
    tree.learn_complete(tree.root, names, 1.0, tree.changes)
    assert tree.is_absent(tree.root, b"x", 2.0, 20.0)
    other = learn(tree, tree.root, b"c")
    assert is_known(tree, other)
    assert not tree.is_absent(tree.root, b"a", 2.0, 20.0), "it exists, and is only forgotten"
    assert not tree.is_absent(tree.root, b"x", 2.0, 20.0)


def test_a_listing_longer_than_what_is_kept_is_never_complete() -> None:
    """The first names are dropped while the last are heard of: they must not look absent."""
    tree = Tree(b"/", max_idle=10)
    names = [b"%d" % number for number in range(30)]
    as_of = tree.begin_asking(tree.root)
    for name in names:
        learn(tree, tree.root, name, FILE, 1.0)
    tree.learn_complete(tree.root, set(names), 1.0, as_of)
    tree.end_asking(tree.root)
    for name in names:
        assert not tree.is_absent(tree.root, name, 2.0, 20.0), name


def test_dropping_the_last_child_lets_its_directory_go_too() -> None:
    tree = Tree(b"/", max_idle=1)
    a = learn(tree, tree.root, b"a", DIRECTORY)
    b = learn(tree, a, b"b", DIRECTORY)
    c = learn(tree, b, b"c")
    assert len(tree) == 4
    learn(tree, tree.root, b"x")
    learn(tree, tree.root, b"y")
    learn(tree, tree.root, b"z")
    assert not is_known(tree, c)
    assert not is_known(tree, b)
    assert not is_known(tree, a)
    assert len(tree) == 2


def test_thousands_of_directories_with_one_forgotten_file_each() -> None:
    """Each drop makes a directory idle, which makes one too many again: as deep as it is long, if done by recursion."""
    tree = Tree(b"/", max_idle=3000)
    for number in range(3000):
        directory = learn(tree, tree.root, b"%d" % number, DIRECTORY)
        learn(tree, directory, b"file")
    assert len(tree) == 1 + 6000
    for number in range(3000):
        learn(tree, tree.root, b"more%d" % number)
    assert len(tree) == 1 + 3000


def test_a_hard_link_that_is_dropped_leaves_no_name_behind() -> None:
    tree = Tree(b"/", max_idle=1)
    directory = learn(tree, tree.root, b"d", DIRECTORY)
    tree.refer(directory)
    file = learn(tree, tree.root, b"f")
    tree.link(file, directory, b"g")
    learn(tree, tree.root, b"other")
    assert not is_known(tree, file)
    assert directory.directory is not None
    assert directory.directory.children == {}
    assert tree.root.directory is not None
    assert set(tree.root.directory.children) == {b"d", b"other"}


def test_closing_twice_is_no_harm() -> None:
    tree = Tree(b"/")
    a = learn(tree, tree.root, b"a")
    first, second = object(), object()
    tree.open_file(a, first)
    tree.open_file(a, second)
    tree.close_file(a, first)
    tree.close_file(a, first)
    assert a.files == [second]
    tree.close_file(a, second)
    assert a.files is None


def test_a_number_is_whole_again_after_a_storm() -> None:
    """Many lookups and forgets in any order leave the count exact."""
    tree = Tree(b"/", max_idle=5)
    a = learn(tree, tree.root, b"a")
    for _ in range(1000):
        tree.refer(a)
    for _ in range(100):
        tree.forget(a.number, 9)
    assert a.lookups == 100
    with pytest.raises(AssertionError):
        assert not is_known(tree, a)
    tree.forget(a.number, 100)
    assert a.lookups == 0


def test_what_is_held_is_not_dropped() -> None:
    tree = Tree(b"/", max_idle=1)
    a = learn(tree, tree.root, b"a")
    with tree.held(a):
        for name in (b"b", b"c"):
            learn(tree, tree.root, name)
        assert is_known(tree, a)
    assert is_known(tree, a), "idle now, and the latest to be"
    learn(tree, tree.root, b"d")
    assert not is_known(tree, a)
