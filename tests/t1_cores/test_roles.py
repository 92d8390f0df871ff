"""The ladder, for everything that can be found and everything that can be wished."""

from __future__ import annotations

from itertools import product
from types import MappingProxyType

import pytest

from mux.errors import ExitCode
from mux.rendezvous.roles import Become, Join, Private, Putty, Refuse, Wish, candidates, decide, nothing_to_join
from mux.rendezvous.sockets import Found, Probe
from mux.rendezvous.target import SshOptions, Target

PID = 4711

# What one probe alone leads to: (may join, may hold there, exit code when neither).
SINGLE = {
    Found.LIVE: (True, False, ExitCode.NOTHING_TO_JOIN),
    Found.ABSENT: (False, True, ExitCode.NOTHING_TO_JOIN),
    Found.STALE: (False, True, ExitCode.NOTHING_TO_JOIN),
    Found.FROZEN: (False, False, ExitCode.NO_ANSWER),
    Found.FULL: (False, False, ExitCode.NO_ANSWER),
    Found.FOREIGN: (False, False, ExitCode.UNSAFE_SOCKET),
    Found.UNSAFE: (False, False, ExitCode.UNSAFE_SOCKET),
    Found.NOT_A_SOCKET: (False, False, ExitCode.UNSAFE_SOCKET),
    Found.TOO_LONG: (False, False, ExitCode.UNSAFE_SOCKET),
    Found.DENIED: (False, False, ExitCode.DENIED),
    Found.NOT_A_MASTER: (False, False, ExitCode.PROTOCOL),
}
PAIRS = list(product(Found, Found))
SILENT = {Found.FROZEN, Found.FULL}
FREE = {Found.ABSENT, Found.STALE}
WISHES = [Wish(share, down, up) for share, down, up in product((True, False), repeat=3)]


def probes(*found: Found) -> list[Probe]:
    return [
        Probe(f"/c/{number}", what, f"At {number} is {what.name}.", PID if what is Found.LIVE else None)
        for number, what in enumerate(found)
    ]


def target(control_path: str | None = "/configured", own: str = "/own") -> Target:
    return Target("box", "me", "127.0.0.1", 22, control_path, own, MappingProxyType({}), ("--", "box"))


def test_the_table_is_complete() -> None:
    assert set(SINGLE) == set(Found)


@pytest.mark.parametrize("wish", [wish for wish in WISHES if not wish.share])
@pytest.mark.parametrize("found", Found)
def test_no_sharing_is_private_whatever_is_there(wish: Wish, found: Found) -> None:
    assert decide(wish, probes(found)) == Private()


@pytest.mark.parametrize("found", Found)
@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish.share])
def test_one_path(wish: Wish, found: Found) -> None:
    may_join, may_hold, exit_code = SINGLE[found]
    expected = (
        Join("/c/0", PID)
        if may_join and wish.may_downstream
        else Become("/c/0")
        if may_hold and wish.may_upstream
        else Private(f"At 0 is {found.name}.")
        if found in SILENT and wish.may_upstream
        else Refuse(f"At 0 is {found.name}.", exit_code)
    )
    assert decide(wish, probes(found)) == expected


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_live_connection_is_joined_whatever_else_is_found(first: Found, second: Found) -> None:
    for may_upstream in (True, False):
        decision = decide(Wish(may_upstream=may_upstream), probes(first, second))
        if first is Found.LIVE:
            assert decision == Join("/c/0", PID)
        elif second is Found.LIVE:
            assert decision == Join("/c/1", PID)
        else:
            assert not isinstance(decision, Join)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_an_upstream_takes_the_first_possible_path_or_none(first: Found, second: Found) -> None:
    decision = decide(Wish(may_downstream=False), probes(first, second))
    passed_by = [f"At {number} is {found.name}." for number, found in enumerate((first, second)) if found in SILENT]
    if first in FREE:
        assert decision == Become("/c/0")
    elif first in SILENT | {Found.TOO_LONG} and second in FREE:
        assert decision == Become("/c/1", " ".join(passed_by))
    elif {first, second} <= SILENT | {Found.TOO_LONG} and passed_by:
        assert decision == Private(" ".join(passed_by))
    else:
        assert isinstance(decision, Refuse)


@pytest.mark.parametrize("length", [90, 91, 107])
@pytest.mark.parametrize("found", [Found.ABSENT, Found.STALE])
def test_a_path_that_is_too_long_to_be_published(found: Found, length: int) -> None:
    long = Probe("/" + "x" * (length - 1), found, "There is room.")
    own = Probe("/own", Found.ABSENT, "Nothing is there.")
    if length <= 90:
        assert decide(Wish(), [long, own]) == Become(long.path)
        return
    assert decide(Wish(), [long, own]) == Become("/own")
    decision = decide(Wish(explicit=True), [long])
    assert isinstance(decision, Refuse)
    assert decision.exit_code is ExitCode.UNSAFE_SOCKET
    assert "can have 90 bytes" in decision.message
    assert "shorter" in nothing_to_join(Wish(explicit=True), target(long.path), [long]).hint


def test_the_length_is_counted_in_bytes() -> None:
    assert isinstance(decide(Wish(), [Probe("/" + "\u00e4" * 45, Found.ABSENT, "")]), Refuse)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_refusal_tells_all_and_the_code_is_of_the_first_that_is_more_than_nothing(
    first: Found, second: Found
) -> None:
    decision = decide(Wish(may_downstream=False, may_upstream=False), probes(first, second))
    assert isinstance(decision, Refuse)
    assert decision.message == f"At 0 is {first.name}. At 1 is {second.name}."
    nothing = ExitCode.NOTHING_TO_JOIN
    codes = [SINGLE[first][2], SINGLE[second][2]]
    assert decision.exit_code is (codes[0] if codes[0] is not nothing else codes[1])


def test_without_any_path_an_upstream_is_private_and_a_downstream_is_refused() -> None:
    assert decide(Wish(), []) == Private()
    decision = decide(Wish(may_upstream=False), [])
    assert isinstance(decision, Refuse)
    assert decision.exit_code is ExitCode.NOTHING_TO_JOIN


@pytest.mark.parametrize(
    ("wish", "place", "expected"),
    [
        (Wish(), target(), ("/configured", "/own")),
        (Wish(), target(None), ("/own",)),
        (Wish(), target(own=""), ("/configured",)),
        (Wish(), target(None, ""), ()),
        (Wish(), target("/same", "/same"), ("/same",)),
        (Wish(explicit=True), target("/given"), ("/given",)),
        (Wish(share=False), target(), ()),
        (Wish(may_downstream=False), target(), ("/configured", "/own")),
    ],
)
def test_candidates(wish: Wish, place: Target, expected: tuple[str, ...]) -> None:
    assert candidates(wish, place) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SshOptions(), Wish()),
        (SshOptions(control_path="/x"), Wish(explicit=True)),
        (SshOptions(options=("ControlPath=/x",)), Wish(explicit=True)),
        (SshOptions(control_path="none"), Wish(share=False)),
        (SshOptions(control_path="NONE"), Wish(share=False)),
        (SshOptions(options=("controlpath none",)), Wish(share=False)),
        (SshOptions(control_path="/x", options=("ControlPath=none",)), Wish(explicit=True)),
    ],
)
def test_wishes_of_a_command_line(options: SshOptions, expected: Wish) -> None:
    assert Wish.of(options) == expected
    assert Wish.of(options, share=False).share is False
    assert Wish.of(options, may_upstream=False).may_upstream is False


def test_the_hint_starts_a_connection_where_it_was_looked_for() -> None:
    error = nothing_to_join(Wish(), target("/tmp/c"), [Probe("/tmp/c", Found.ABSENT, "Nothing is at /tmp/c.")])
    assert str(error) == "no connection to box can be joined. Nothing is at /tmp/c."
    assert error.hint == "start a connection to share: ssh -fNM -- box"
    assert error.exit_code is ExitCode.NOTHING_TO_JOIN


def test_the_hint_for_our_own_path_makes_its_directory_and_escapes_tokens() -> None:
    own = "/nowhere/run%1/sshmux/0a"
    error = nothing_to_join(Wish(), target(None, own), [Probe(own, Found.ABSENT, "Nothing.")])
    expected = "mkdir -p -m 700 /nowhere/run%1/sshmux && ssh -fNM -S /nowhere/run%%1/sshmux/0a -- box"
    assert error.hint == f"start a connection to share: {expected}"


@pytest.mark.parametrize("found", [found for found in Found if SINGLE[found][2] is not ExitCode.NOTHING_TO_JOIN])
def test_where_nothing_can_be_started_no_command_is_offered(found: Found) -> None:
    error = nothing_to_join(Wish(), target(own=""), probes(found))
    assert "ssh -fNM" not in error.hint
    assert "-S PATH" in error.hint
    assert error.exit_code is SINGLE[found][2]


# -- PuTTY's connections ----------------------------------------------------------------------------------------------


def putty(*found: Found) -> list[Probe]:
    return [
        Probe(f"/p/{number}", what, f"PuTTY {number} is {what.name}.", PID if what is Found.LIVE else None, putty=True)
        for number, what in enumerate(found)
    ]


@pytest.mark.parametrize("first", Found)
def test_a_putty_is_joined_where_no_control_path_offers_a_connection(first: Found) -> None:
    expected = Join("/c/0", PID) if first is Found.LIVE else Join("/p/1", PID, putty=True)
    assert decide(Wish(), probes(first) + putty(Found.ABSENT, Found.LIVE)) == expected


@pytest.mark.parametrize("found", [found for found in Found if found is not Found.LIVE])
def test_a_putty_that_cannot_be_joined_is_in_nobodys_way(found: Found) -> None:
    passed_by = f"PuTTY 0 is {found.name}." if found in SILENT else ""
    assert decide(Wish(), probes(Found.ABSENT) + putty(found)) == Become("/c/0", passed_by)
    assert decide(Wish(), putty(found)) == Private(passed_by)
    refused = decide(Wish(), probes(Found.FOREIGN) + putty(found))
    assert isinstance(refused, Refuse)
    assert refused.exit_code is ExitCode.UNSAFE_SOCKET


def test_that_there_is_no_putty_is_not_worth_a_word() -> None:
    wish = Wish(may_upstream=False)
    found = decide(wish, probes(Found.ABSENT) + putty(Found.ABSENT, Found.STALE))
    assert found == Refuse("At 0 is ABSENT. PuTTY 1 is STALE.", ExitCode.NOTHING_TO_JOIN)
    assert "No ControlPath" in nothing_to_join(wish, target(None, ""), putty(Found.ABSENT)).message


@pytest.mark.parametrize("found", [found for found in Found if found is not Found.LIVE])
def test_only_a_putty(found: Found) -> None:
    wish = Wish(putty=Putty.ONLY)
    assert candidates(wish, target()) == ()
    assert decide(wish, putty(Found.LIVE)) == Join("/p/0", PID, putty=True)
    assert decide(wish, putty(found)) == Refuse(f"PuTTY 0 is {found.name}.", SINGLE[found][2])
    error = nothing_to_join(wish, target(), putty(found))
    assert error.hint == "start one: plink -share -N me@127.0.0.1"


@pytest.mark.parametrize(
    ("wish", "asks"),
    [
        (Wish(), True),
        (Wish(putty=Putty.ONLY), True),
        (Wish(putty=Putty.NO), False),
        (Wish(share=False), False),
        (Wish(may_downstream=False), False),
        (Wish(explicit=True), False),
    ],
)
def test_who_asks_putty(wish: Wish, asks: bool) -> None:
    assert wish.asks_putty is asks
