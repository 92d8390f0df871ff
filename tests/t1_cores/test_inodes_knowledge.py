"""What was heard from the server against what was changed here: own changes win."""

from __future__ import annotations

import stat

import pytest

from sshmuxfs.sftp.protocol import Attributes
from sshmuxfs.tree.inodes import MAX_ABSENT, NEVER_S, Inode, Tree
from tests.t1_cores.test_inodes_names import DIRECTORY, FILE, learn

LIFE_S = 20.0


def known() -> tuple[Tree, Inode]:
    """A root that was listed at 1 s, with the file `a` in it."""
    tree = Tree(b"/")
    a = learn(tree, tree.root, b"a", FILE, 1.0)
    tree.refer(a)
    tree.learn_complete(tree.root, {b"a"}, 1.0, tree.changes)
    return tree, a


def children(tree: Tree) -> set[bytes]:
    assert tree.root.directory is not None
    return set(tree.root.directory.children)


# -- attributes -------------------------------------------------------------------------------------------------------


def test_an_answer_to_a_question_asked_before_a_change_is_not_believed() -> None:
    tree, a = known()
    as_of = tree.changes
    tree.touch(a)
    a.attributes = FILE._replace(size=100)
    assert a.fetched_at_s == NEVER_S
    tree.update(a, FILE._replace(size=1), 2.0, as_of)
    assert (a.attributes.size, a.fetched_at_s) == (100, NEVER_S)
    tree.learn(tree.root, b"a", FILE._replace(size=1), 2.0, as_of)
    assert (a.attributes.size, a.fetched_at_s) == (100, NEVER_S)
    tree.update(a, FILE._replace(size=101), 3.0, tree.changes)
    assert (a.attributes.size, a.fetched_at_s) == (101, 3.0)


def test_a_change_to_one_file_leaves_answers_about_others_believed() -> None:
    tree, a = known()
    b = learn(tree, tree.root, b"b")
    as_of = tree.changes
    tree.touch(a)
    tree.update(b, FILE._replace(size=7), 2.0, as_of)
    assert b.attributes.size == 7


def test_an_old_answer_about_the_kind_does_not_take_the_name_from_what_was_just_made() -> None:
    tree, _ = known()
    as_of = tree.changes
    tree.remove(tree.root, b"a")
    made = tree.add(tree.root, b"a")
    tree.update(made, DIRECTORY, 2.0, tree.changes)
    tree.learn(tree.root, b"a", FILE, 3.0, as_of)
    assert not made.gone
    assert made.attributes == DIRECTORY


# -- names removed and made here --------------------------------------------------------------------------------------


def test_a_late_answer_does_not_bring_back_what_was_removed() -> None:
    tree, _ = known()
    with tree.asking(tree.root) as as_of:
        tree.remove(tree.root, b"a")
        assert tree.learn(tree.root, b"a", FILE, 2.0, as_of) is None
    assert children(tree) == set()
    assert tree.is_absent(tree.root, b"a", 3.0, LIFE_S)


def test_a_late_answer_does_not_bring_back_what_was_moved_away() -> None:
    tree, _ = known()
    with tree.asking(tree.root) as as_of:
        tree.rename(tree.root, b"a", tree.root, b"b")
        assert tree.learn(tree.root, b"a", FILE, 2.0, as_of) is None
    assert children(tree) == {b"b"}


def test_an_answer_to_a_question_asked_after_the_removal_does() -> None:
    """Somebody else made it again meanwhile."""
    tree, a = known()
    with tree.asking(tree.root):
        tree.remove(tree.root, b"a")
        with tree.asking(tree.root) as as_of:
            again = tree.learn(tree.root, b"a", FILE, 2.0, as_of)
    assert again is not None
    assert again is not a


def test_removals_are_remembered_only_while_questions_are_under_way() -> None:
    tree, _ = known()
    directory = tree.root.directory
    assert directory is not None
    with tree.asking(tree.root):
        with tree.asking(tree.root):
            tree.remove(tree.root, b"a")
        assert set(directory.removed) == {b"a"}
    assert directory.removed == {}
    tree.remove(tree.root, b"b")
    assert directory.removed == {}


def test_a_late_absence_does_not_take_away_what_was_made() -> None:
    tree, _ = known()
    with tree.asking(tree.root) as as_of:
        made = tree.add(tree.root, b"new")
        tree.learn_absent(tree.root, b"new", 2.0, as_of)
    assert not made.gone
    assert not tree.is_absent(tree.root, b"new", 2.0, LIFE_S)


def test_a_question_that_fails_is_no_longer_under_way() -> None:
    tree, _ = known()
    with pytest.raises(ZeroDivisionError), tree.asking(tree.root):
        raise ZeroDivisionError
    tree.remove(tree.root, b"a")
    assert tree.root.directory is not None
    assert tree.root.directory.removed == {}


# -- absence ----------------------------------------------------------------------------------------------------------


def test_absence_is_believed_for_its_time_and_no_longer() -> None:
    tree = Tree(b"/")
    assert not tree.is_absent(tree.root, b"x", 0.0, LIFE_S)
    tree.learn_absent(tree.root, b"x", 100.0, tree.changes)
    assert tree.is_absent(tree.root, b"x", 119.9, LIFE_S)
    assert not tree.is_absent(tree.root, b"x", 120.0, LIFE_S)
    assert not tree.is_absent(tree.root, b"x", 100.0, 0.0), "a life of 0 switches it off"
    assert not tree.is_absent(tree.root, b"y", 100.0, LIFE_S)


@pytest.mark.parametrize("how", ["add", "learn", "link", "rename"])
def test_what_appears_is_not_absent(how: str) -> None:
    tree, a = known()
    tree.learn_absent(tree.root, b"x", 2.0, tree.changes)
    assert tree.is_absent(tree.root, b"x", 2.0, LIFE_S)
    match how:
        case "add":
            tree.add(tree.root, b"x")
        case "learn":
            tree.learn(tree.root, b"x", FILE, 2.0, tree.changes)
        case "link":
            tree.link(a, tree.root, b"x")
        case "rename":
            tree.rename(tree.root, b"a", tree.root, b"x")
    assert not tree.is_absent(tree.root, b"x", 2.0, LIFE_S)
    tree.remove(tree.root, b"x")
    assert tree.is_absent(tree.root, b"x", 2.0, LIFE_S), "from the listing, which stands"


def test_absent_names_are_bounded() -> None:
    tree = Tree(b"/")
    for number in range(3 * MAX_ABSENT):
        tree.learn_absent(tree.root, b"%d" % number, 1.0, tree.changes)
        assert tree.is_absent(tree.root, b"%d" % number, 1.0, LIFE_S)
    assert tree.root.directory is not None
    assert len(tree.root.directory.absent) <= MAX_ABSENT


# -- listings ---------------------------------------------------------------------------------------------------------


def test_a_complete_listing_tells_what_is_absent() -> None:
    tree, _ = known()
    assert tree.is_absent(tree.root, b"b", 20.9, LIFE_S)
    assert not tree.is_absent(tree.root, b"a", 20.9, LIFE_S)
    assert not tree.is_absent(tree.root, b"b", 21.0, LIFE_S)


def test_a_complete_listing_takes_away_what_others_removed() -> None:
    tree, a = known()
    b = learn(tree, tree.root, b"b", FILE, 5.0)
    tree.learn_complete(tree.root, {b"b"}, 5.0, tree.changes)
    assert a.gone
    assert not b.gone
    assert children(tree) == {b"b"}
    assert tree.is_absent(tree.root, b"a", 6.0, LIFE_S)


def test_a_listing_begun_before_a_name_was_made_does_not_take_it_away() -> None:
    tree, _ = known()
    as_of = tree.begin_asking(tree.root)
    made = tree.add(tree.root, b"new")
    tree.learn_complete(tree.root, {b"a"}, 5.0, as_of)
    tree.end_asking(tree.root)
    assert not made.gone
    assert children(tree) == {b"a", b"new"}


def test_a_listing_does_not_take_away_what_was_heard_of_after_it_began() -> None:
    """Somebody else made it meanwhile, and a lookup found it; READDIR had passed the place."""
    tree, _ = known()
    as_of = tree.begin_asking(tree.root)
    seen = learn(tree, tree.root, b"late", FILE, 7.0)
    tree.learn_complete(tree.root, {b"a"}, 5.0, as_of)
    tree.end_asking(tree.root)
    assert not seen.gone


def test_own_changes_keep_a_listing_complete() -> None:
    tree, a = known()
    tree.add(tree.root, b"b")
    tree.rename(tree.root, b"b", tree.root, b"c")
    tree.link(a, tree.root, b"d")
    tree.remove(tree.root, b"a")
    assert children(tree) == {b"c", b"d"}
    for name in (b"a", b"b", b"x"):
        assert tree.is_absent(tree.root, name, 2.0, LIFE_S)


def test_a_change_of_others_that_is_noticed_ends_the_trust_in_a_listing() -> None:
    tree, _ = known()
    tree.learn_absent(tree.root, b"a", 2.0, tree.changes)
    assert not tree.is_absent(tree.root, b"b", 2.0, LIFE_S)
    assert tree.is_absent(tree.root, b"a", 2.0, LIFE_S)


def test_doubt_ends_the_trust_in_everything_about_the_place() -> None:
    tree, a = known()
    tree.learn_absent(tree.root, b"x", 2.0, tree.changes)
    as_of = tree.changes
    tree.distrust(tree.root, b"a")
    assert a.fetched_at_s == NEVER_S
    assert not a.gone
    for name in (b"a", b"b", b"x"):
        assert not tree.is_absent(tree.root, name, 2.0, LIFE_S)
    tree.update(a, FILE._replace(size=55), 3.0, as_of)
    assert a.attributes.size != 55, "an answer that was under way may be of before"


def test_a_listing_during_which_a_doubt_arose_is_not_complete() -> None:
    """A CREATE that met silence: whether the name is there, and whether READDIR saw it, nobody can tell."""
    tree, _ = known()
    as_of = tree.begin_asking(tree.root)
    tree.distrust(tree.root, b"perhaps")
    tree.learn_complete(tree.root, {b"a"}, 5.0, as_of)
    tree.end_asking(tree.root)
    assert not tree.is_absent(tree.root, b"perhaps", 6.0, LIFE_S)


def test_a_directory_just_made_is_known_to_be_empty() -> None:
    tree, _ = known()
    made = tree.add(tree.root, b"d")
    tree.update(made, DIRECTORY, 2.0, tree.changes)
    tree.made_directory(made, 2.0)
    assert tree.is_absent(made, b"x", 3.0, LIFE_S)
    assert made.kind == stat.S_IFDIR


def test_attributes_without_a_kind_change_no_kind() -> None:
    tree, a = known()
    assert learn(tree, tree.root, b"a", Attributes(size=3)) is a
