"""Link targets: sshfs's rule word by word, and that nothing leads out of the mount."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sshmuxfs.tree.symlinks import LONGEST_TARGET_BYTES, SymlinkPolicy, target_for_kernel

BASE = b"/srv/data"
RAW = SymlinkPolicy(contain=False, transform=False, base=BASE)
CONTAIN = SymlinkPolicy(contain=True, transform=False, base=BASE)
TRANSFORM = SymlinkPolicy(contain=False, transform=True, base=BASE)
BOTH = SymlinkPolicy(contain=True, transform=True, base=BASE)
ALL = (RAW, CONTAIN, TRANSFORM, BOTH)
LINK = b"/srv/data/a/b/link"


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize(
    "target",
    [
        b"file",
        b"./file",
        b"dir/file",
        b"dir//file",
        b"dir/",
        b".",
        b"...",
        b"..a",
        b"a..",
        b"a/..b/c",
        b"a/b../c",
        b"-o",
        b"\xff\xfe",
        b"new\nline",
        b"..\\..\\etc",
        b"x" * LONGEST_TARGET_BYTES,
    ],
)
def test_a_harmless_target_passes_unchanged(policy: SymlinkPolicy, target: bytes) -> None:
    assert target_for_kernel(policy, LINK, target) == target


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("target", [b"", b"\0", b"file\0", b"x" * (LONGEST_TARGET_BYTES + 1)])
def test_what_no_file_system_can_hold_is_refused_by_all(policy: SymlinkPolicy, target: bytes) -> None:
    assert target_for_kernel(policy, LINK, target) is None


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"//",
        b"/etc/passwd",
        b"/srv/data/a/file",
        b"..",
        b"../",
        b"../file",
        b"a/..",
        b"a/../file",
        b"a/../../file",
        b"./..",
        b"a//..//b",
        b"x/../y/../..",
    ],
)
def test_contain_refuses_absolute_and_upward(target: bytes) -> None:
    assert target_for_kernel(CONTAIN, LINK, target) is None
    assert target_for_kernel(RAW, LINK, target) == target


@pytest.mark.parametrize(
    ("link", "target", "relative"),
    [
        (b"/srv/data/link", b"/srv/data/file", b"file"),
        (b"/srv/data/link", b"/srv/data/a/b", b"a/b"),
        (b"/srv/data/link", b"/srv/data", b"."),
        (b"/srv/data/link", b"/srv/data/", b"."),
        (b"/srv/data/link", b"//srv//data/./file", b"file"),
        (b"/srv/data/link", b"/srv/data/link", b"link"),
        (b"/srv/data/link", b"/srv/data/dir/", b"dir/"),
        (b"/srv/data/link", b"/srv/data/dir/.", b"dir/"),
        (b"/srv/data/a/b/link", b"/srv/data/a/b/file", b"file"),
        (b"/srv/data/a/b/link", b"/srv/data/a/b", b"."),
        (b"/srv/data/a/b/link", b"/srv/data/a/b/c/d", b"c/d"),
    ],
)
def test_transform_makes_targets_below_the_link_relative(link: bytes, target: bytes, relative: bytes) -> None:
    assert target_for_kernel(TRANSFORM, link, target) == relative
    assert target_for_kernel(BOTH, link, target) == relative


@pytest.mark.parametrize(
    ("link", "target", "relative"),
    [
        (b"/srv/data/a/b/link", b"/srv/data/file", b"../../file"),
        (b"/srv/data/a/b/link", b"/srv/data", b"../.."),
        (b"/srv/data/a/b/link", b"/srv/data/a", b".."),
        (b"/srv/data/a/b/link", b"/srv/data/a/", b"../"),
        (b"/srv/data/a/b/link", b"/srv/data/a/bc", b"../bc"),
        (b"/srv/data/a/b/link", b"/srv/data/a/c/d", b"../c/d"),
        (b"/srv/data/a/link", b"/srv/data/b/link", b"../b/link"),
    ],
)
def test_transform_upwards_is_still_judged(link: bytes, target: bytes, relative: bytes) -> None:
    assert target_for_kernel(TRANSFORM, link, target) == relative
    assert target_for_kernel(BOTH, link, target) is None


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/etc/passwd",
        b"/srv",
        b"/srv/database",
        b"/srv/dat",
        b"/data/file",
        b"/srv/data/../../etc/passwd",
        b"/srv/data/a/../file",
        b"/srv/x/../data/file",
    ],
)
def test_transform_leaves_what_is_not_surely_inside(target: bytes) -> None:
    assert target_for_kernel(TRANSFORM, LINK, target) == target
    assert target_for_kernel(BOTH, LINK, target) is None


def test_transform_leaves_relative_targets() -> None:
    assert target_for_kernel(TRANSFORM, LINK, b"../x") == b"../x"
    assert target_for_kernel(BOTH, LINK, b"../x") is None


def test_the_whole_server_as_base_makes_every_absolute_target_relative() -> None:
    policy = SymlinkPolicy(contain=False, transform=True, base=b"/")
    assert target_for_kernel(policy, b"/home/me/link", b"/etc/passwd") == b"../../etc/passwd"
    assert target_for_kernel(policy, b"/link", b"/etc") == b"etc"
    assert target_for_kernel(policy, b"/link", b"/") == b"."


@pytest.mark.parametrize("base", [b"", b"relative", b"/srv/../srv/data", b"/other"])
def test_transform_needs_a_base_that_holds_the_link(base: bytes) -> None:
    policy = SymlinkPolicy(contain=False, transform=True, base=base)
    assert target_for_kernel(policy, LINK, b"/srv/data/file") == b"/srv/data/file"


def test_a_target_that_grows_too_long_is_refused() -> None:
    link = BASE + b"/d" * 1000 + b"/link"
    assert target_for_kernel(TRANSFORM, link, b"/srv/data/" + b"x" * 2000) is None


names = st.sampled_from([b"a", b"b", b"..", b".", b"", b"srv", b"data", b"etc", b"\xc3\xa4", b"..."])
paths = st.builds(
    lambda root, parts: root + b"/".join(parts), st.sampled_from([b"", b"/"]), st.lists(names, max_size=8)
)
links = st.builds(lambda parts: b"/".join([BASE, *parts]), st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1))
policies = st.sampled_from([CONTAIN, BOTH])


@given(policies, links, paths | st.binary(max_size=40))
@example(BOTH, b"/srv/data/a/l", b"/srv/data/../x")
def test_under_contain_nothing_leads_out(policy: SymlinkPolicy, link: bytes, target: bytes) -> None:
    shown = target_for_kernel(policy, link, target)
    if shown is None:
        return
    # Wherever the client has the mount, and whatever the directories on the way are.
    for directory in (b"/mnt", posixpath.dirname(link).replace(BASE, b"/mnt", 1)):
        reached = posixpath.normpath(posixpath.join(directory, shown))
        assert reached == b"/mnt" or reached.startswith(b"/mnt/")
    assert b".." not in shown.split(b"/")


@given(links, paths)
def test_transformed_means_the_same_place(link: bytes, target: bytes) -> None:
    shown = target_for_kernel(TRANSFORM, link, target)
    if shown is None:
        assert not target
        return
    assert _place(link, shown) == _place(link, target)


def _place(link: bytes, target: bytes) -> bytes:
    """Where a link leads, by its text. Linux has no second root, which POSIX allows as `//` and normpath keeps."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), target)).replace(b"//", b"/")
