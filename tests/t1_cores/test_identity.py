"""Owners on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.tree.identity import NO_ID, NOBODY, IdentityMap, Unmappable, identity_map

LOCAL = (1000, 100)
REMOTE = (5005, 600)


def user_map(shown: tuple[int | None, int | None] = (None, None)) -> IdentityMap:
    return identity_map("user", remote=REMOTE, local=LOCAL, shown=shown)


def test_none_shows_the_numbers_of_the_server() -> None:
    plain = identity_map("none", remote=REMOTE, local=LOCAL)
    assert plain.to_local(5005, 600) == (5005, 600)
    assert plain.to_local(0, 0) == (0, 0)
    assert plain.to_remote(1000, 100) == (1000, 100)


def test_user_shows_the_login_as_the_one_who_mounted() -> None:
    mapped = user_map()
    assert mapped.to_local(5005, 600) == (1000, 100)
    assert mapped.to_local(5005, 0) == (1000, 0)
    assert mapped.to_local(0, 600) == (0, 100)
    assert mapped.to_local(42, 43) == (42, 43)


def test_user_maps_back() -> None:
    mapped = user_map()
    assert mapped.to_remote(1000, 100) == (5005, 600)
    assert mapped.to_remote(0, 43) == (0, 43)
    assert mapped.to_remote(1000, None) == (5005, None)
    assert mapped.to_remote(None, 100) == (None, 600)
    assert mapped.to_remote(None, None) == (None, None)


@pytest.mark.parametrize(("uid", "gid"), [(5005, None), (None, 600), (5005, 600)])
def test_the_login_s_own_number_means_somebody_else_here(uid: int | None, gid: int | None) -> None:
    with pytest.raises(Unmappable, match="is the login's id on the server, which is shown as"):
        user_map().to_remote(uid, gid)


def test_equal_numbers_on_both_sides_are_no_conflict() -> None:
    same = identity_map("user", remote=LOCAL, local=LOCAL)
    assert same.to_local(1000, 100) == LOCAL
    assert same.to_remote(1000, 100) == LOCAL


def test_a_server_without_owners_leaves_nothing_to_map() -> None:
    mapped = identity_map("user", remote=(None, None), local=LOCAL)
    assert mapped.to_local(7, 8) == (7, 8)
    assert mapped.to_remote(1000, 100) == (1000, 100)


@pytest.mark.parametrize("idmap", ["none", "user"])
def test_one_owner_is_shown_for_everything(idmap: str) -> None:
    shown = identity_map(idmap, remote=REMOTE, local=LOCAL, shown=(77, None))
    assert shown.to_local(0, 0) == (77, 0)
    assert shown.to_local(5005, 1) == (77, 1)
    assert shown.to_local(NO_ID, 1) == (77, 1)


def test_a_change_to_the_owner_shown_changes_nothing() -> None:
    shown = identity_map("none", local=LOCAL, shown=(1000, 100))
    assert shown.to_remote(1000, 100) == (None, None)
    assert shown.to_remote(1001, 101) == (1001, 101)
    assert user_map(shown=(1000, None)).to_remote(1000, 100) == (None, 600)
    assert user_map(shown=(77, None)).to_remote(1000, 100) == (5005, 600)


def test_root_can_be_shown() -> None:
    assert identity_map("none", local=LOCAL, shown=(0, 0)).to_local(5, 5) == (0, 0)


def test_no_file_has_the_owner_minus_one() -> None:
    assert IdentityMap().to_local(NO_ID, NO_ID) == (NOBODY, NOBODY)
    for bad in (NO_ID, NO_ID + 1, -1):
        with pytest.raises(Unmappable, match="is no id a file can have"):
            IdentityMap().to_remote(bad, None)


ids = st.integers(0, NO_ID - 1)


@given(ids, ids, st.sampled_from([IdentityMap(), user_map()]))
def test_what_is_shown_maps_back_or_was_somebody_else_s(uid: int, gid: int, identity: IdentityMap) -> None:
    local = identity.to_local(uid, gid)
    back = identity.to_remote(*local)
    for number, here, there, login, mounter in zip((uid, gid), local, back, REMOTE, LOCAL, strict=True):
        # The one number that two owners share: the mounter's own, when somebody else has it on the server.
        assert there == number or (number == here == mounter and there == login)


@given(ids, ids)
def test_every_number_can_be_shown(uid: int, gid: int) -> None:
    assert all(0 <= number < NO_ID for number in user_map().to_local(uid, gid))
