"""Escapes: what is sent, what is obeyed, and that it does not matter how the typed bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.protocol.escapes import Action, Escapes, Unavailable, echo, help_text, unavailable
from tests.t0_protocol.feeding import every_way

Flat = list[bytes | Action | Unavailable]


def taken(chunks: list[bytes], character: int = ord("~")) -> Flat:
    """What comes of it, adjacent bytes joined."""
    found: Flat = []
    escapes = Escapes(character)
    for chunk in chunks:
        for piece in escapes.feed(memoryview(chunk)):
            if isinstance(piece, Action | Unavailable):
                found.append(piece)
            elif found and isinstance(found[-1], bytes):
                found[-1] += bytes(piece)
            else:
                found.append(bytes(piece))
    return found


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"ls ~\r", [b"ls ~\r"]),
        (b"~.", [Action.CLOSE]),
        (b"ls\r~.", [b"ls\r", Action.CLOSE]),
        (b"ls\n~.", [b"ls\n", Action.CLOSE]),
        (b"ls~.", [b"ls~."]),
        (b"~~.", [b"~."]),
        (b"\r~~\r~~~", [b"\r~\r~~"]),
        (b"~x", [b"~x"]),
        (b"~x~.", [b"~x~."]),
        (b"~\r~.", [b"~\r", Action.CLOSE]),
        (b"~?~#~.", [Action.HELP, Action.LIST, Action.CLOSE]),
        (b"~B~R~Ils", [Action.BREAK, Action.REKEY, Action.INFO, b"ls"]),
        (b"~C~vx", [Unavailable(ord("C")), Unavailable(ord("v")), b"x"]),
        (b"~V~&~\x1ax", [Unavailable(ord("V")), Unavailable(ord("&")), Unavailable(26), b"x"]),
        (b"~b", [b"~b"]),
        (b"", []),
    ],
)  # fmt: skip
def test_escapes_however_they_are_typed(typed: bytes, expected: Flat) -> None:
    for chunks in every_way(typed):
        assert taken(chunks) == expected


def test_another_character() -> None:
    assert taken([b"~.\r\x1d.\r\x1d\x1d\x1dB"], 0x1D) == [b"~.\r", Action.CLOSE, b"\r\x1d\x1dB"]


def test_each_session_knows_its_own_lines() -> None:
    one, other = Escapes(ord("~")), Escapes(ord("~"))
    one.feed(b"in a line")
    other.feed(b"at its end\r")
    assert one.feed(b"~.") == [b"~."]
    assert other.feed(b"~.") == [Action.CLOSE]


@given(st.lists(st.lists(st.sampled_from(list(b"~\r\nax.")), max_size=8).map(bytes), max_size=8))
def test_pieces_make_no_difference(chunks: list[bytes]) -> None:
    assert taken(chunks) == taken([b"".join(chunks)])


@given(st.binary(max_size=60).filter(lambda data: b"~" not in data))
def test_what_has_no_escape_character_goes_through(data: bytes) -> None:
    assert taken([data]) == ([data] if data else [])


def test_what_is_shown() -> None:
    tilde = ord("~")
    assert echo(tilde, Action.CLOSE) == b"~.\r\n"
    assert echo(tilde, Action.LIST) == b"~#\r\n"
    assert echo(tilde, Action.REKEY) == b""
    assert unavailable(tilde, Unavailable(ord("C"))) == b"~C escape not available to multiplexed sessions\r\n"
    assert unavailable(tilde, Unavailable(26)) == b"~^Z escape not available to multiplexed sessions\r\n"
    lines = help_text(tilde).split(b"\r\n")
    assert lines[:2] == [b"~?", b"Supported escape sequences:"]
    assert all(any(line.startswith(b" ~" + action.value) for line in lines) for action in Action)
    assert any(line.startswith(b" ~~ ") for line in lines)
    assert not any(line.startswith(b" ~C") for line in lines)
