"""Errors carry what a command ends with, and text of a peer is made harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import ConnectionLost, ExitCode, JoinError, RemoteProtocolError, WireError, printable


def test_an_error_is_its_message_and_knows_its_exit_code() -> None:
    error = JoinError("nothing there", ExitCode.NOTHING_TO_JOIN, hint="start one")
    assert (str(error), error.exit_code, error.hint) == ("nothing there", 3, "start one")
    assert [cls("x").exit_code for cls in (JoinError, ConnectionLost)] == [ExitCode.FAILURE] * 2
    assert [cls("x").exit_code for cls in (WireError, RemoteProtocolError)] == [ExitCode.PROTOCOL] * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        (b"caf\xc3\xa9 \xff\r\n", "café \\xff"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("two\nlines", "two\\nlines"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("  around  ", "around"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_peers_text(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_cut() -> None:
    assert printable("x" * 600) == "x" * 497 + "..."
    assert printable("x" * 10, limit=10) == "x" * 10
    assert printable("\0" * 10, limit=10) == "\\x00\\x0..."


@given(st.one_of(st.text(), st.binary()), st.integers(4, 50))
def test_nothing_shown_is_obeyed_by_a_terminal(text: str | bytes, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
