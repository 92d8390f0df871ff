"""Whether all that leads to an inode leads to one file, by what was answered twice."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp.protocol import Attributes, Status, StatusError
from sshmuxfs.tree.ways import Said

FILE = Attributes(size=5, uid=1, gid=2, permissions=stat.S_IFREG | 0o644, atime=7, mtime=9)
BARE = Attributes(permissions=stat.S_IFREG | 0o644)


def test_one_file_has_the_same_attributes_whichever_way_it_is_asked_for() -> None:
    read_meanwhile = FILE._replace(atime=8)
    assert Said([FILE], None).agrees
    assert Said([FILE, read_meanwhile], read_meanwhile).agrees
    for other in (FILE._replace(size=6), FILE._replace(mtime=10)):
        assert not Said([FILE, other], None).agrees
        assert not Said([FILE], other).agrees
    assert not Said([FILE, FILE._replace(permissions=stat.S_IFREG | 0o600)], None).agrees


def test_what_the_server_does_not_tell_of_a_handle_says_nothing() -> None:
    assert Said([FILE], BARE).agrees
    assert Said([FILE], FILE._replace(uid=5, gid=5, permissions=stat.S_IFREG)).agrees


def test_a_refusal_is_no_answer() -> None:
    refusal = StatusError(Status.NO_SUCH_FILE, b"")
    assert not Said([FILE, refusal], None).complete
    assert not Said([refusal], FILE).complete
    assert Said([FILE, FILE], None).complete


def test_where_names_and_handle_differ_the_handle_has_the_file() -> None:
    longer = FILE._replace(size=6)
    assert Said([FILE], longer).of_file is longer
    assert Said([FILE], None).of_file is FILE
    assert Said([FILE, longer], None).of_file is FILE


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_file_that_grows_never_differs_twice_in_the_same_way(steps: list[int]) -> None:
    sizes = [sum(steps[: at + 1]) for at in range(4)]
    first_name, first_handle, name, handle = (FILE._replace(size=size) for size in sizes)
    earlier, later = Said([first_name], first_handle), Said([name], handle)
    assert later.agrees or not later.repeats(earlier)
    earlier, later = Said([first_name, first_handle], None), Said([name, handle], None)
    assert later.agrees or not later.repeats(earlier)


def test_two_files_do() -> None:
    other = FILE._replace(size=6)
    for one in (Said([FILE], other), Said([FILE, other], None), Said([FILE, other], other)):
        assert one.repeats(one) and not one.agrees
    assert not Said([FILE], other).repeats(Said([FILE], None))
    assert Said([FILE], other).repeats(Said([FILE._replace(atime=70)], other._replace(atime=70)))
