"""PuTTY's greetings and frames, byte by byte, from both ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import LocalProtocolError, RemoteProtocolError
from mux.protocol import bare
from mux.protocol.bare import Greeting, Role
from mux.protocol.wire import string, u32

DOWN = b"SSHCONNECTION@putty.projects.tartarus.org-2.0-OpenSSH_9.2p1 Debian-2+deb12u10\r\n"
UP = b"SSHCONNECTION@putty.projects.tartarus.org-2.0-PuTTY_Release_0.78\r\n"
GOODBYE = b"\x00\x00\x00\x13\x01" + u32(11) + string(b"logout") + string(b"")


def greeted(role: Role, *pieces: bytes) -> Greeting:
    greeting = Greeting(role)
    for piece in pieces:
        greeting.receive(piece)
    return greeting


def test_what_is_said() -> None:
    assert bare.greeting_of_upstream(b"OpenSSH_9.2p1 Debian-2+deb12u10") == DOWN
    assert bare.greeting_of_downstream("PuTTY-Release 0.78") == UP


@pytest.mark.parametrize(
    ("role", "line", "software"),
    [
        (Role.DOWNSTREAM, DOWN, b"OpenSSH_9.2p1 Debian-2+deb12u10"),
        (Role.UPSTREAM, UP, b"PuTTY_Release_0.78"),
        (Role.UPSTREAM, UP.replace(b"\r", b""), b"PuTTY_Release_0.78"),
        (Role.UPSTREAM, bare.PREFIX + b"2.0-\r\n", b""),
    ],
)
def test_a_greeting_cut_anywhere_and_what_is_behind_it(role: Role, line: bytes, software: bytes) -> None:
    for cut in range(len(line) + 1):
        greeting = greeted(role, line[:cut])
        assert (greeting.software is not None) == (cut == len(line))
        greeting = greeted(role, line[:cut], line[cut:] + b"\x00\x00rest")
        assert (greeting.software, greeting.rest) == (software, b"\x00\x00rest")


def test_lines_before_the_greeting_of_an_upstream_are_passed_over() -> None:
    assert greeted(Role.DOWNSTREAM, b"hello\r\n\n" + DOWN).software is not None
    with pytest.raises(RemoteProtocolError, match="greets as something else: hello"):
        greeted(Role.UPSTREAM, b"hello\r\n" + UP)
    with pytest.raises(RemoteProtocolError, match="greets as something else"):
        greeted(Role.DOWNSTREAM, b"hello\n" * (bare.MOST_LINES_BEFORE + 1))


@pytest.mark.parametrize("version", [b"1.5", b"2.1", b"2.0x", b"", b"\x1b[31m"])
@pytest.mark.parametrize("role", list(Role))
def test_another_version_is_refused(role: Role, version: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"only 2\.0") as refused:
        greeted(role, bare.PREFIX + version + b"-software\r\n")
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("role", list(Role))
def test_a_line_without_an_end_is_not_kept(role: Role) -> None:
    longest = b"x" * bare.LARGEST_LINE_BYTES
    assert greeted(role, longest).software is None
    for pieces in ([longest, b"x"], [longest + b"x\n"]):
        with pytest.raises(RemoteProtocolError, match="16400 bytes"):
            greeted(role, *pieces)


def test_an_upstream_that_says_goodbye_instead() -> None:
    for cut in range(len(GOODBYE) - 1):
        with pytest.raises(RemoteProtocolError, match="hung up: logout"):
            greeted(Role.DOWNSTREAM, GOODBYE[:cut], GOODBYE[cut:])
        assert greeted(Role.DOWNSTREAM, GOODBYE[:cut]).software is None
    for data in (b"\x00\x00\x00\x05\x5a", b"\x00\x00\x90\x00\x01"):
        with pytest.raises(RemoteProtocolError, match="neither a greeting nor a goodbye"):
            greeted(Role.DOWNSTREAM, data)


def test_the_words_of_a_goodbye() -> None:
    assert bare.disconnect_text(u32(2) + string(b"\x1b[31mred\n") + string(b"en")) == "\\x1b[31mred"
    assert bare.disconnect_text(u32(2) + string(b"")) == "reason 2"
    assert bare.disconnect_text(b"\x00") == "without a word"
    assert bare.disconnect_body(11, "by\ne") == u32(11) + string(b"by\\ne") + string(b"")


def test_frames() -> None:
    assert bare.frame(94, u32(7), string(b"data")) == b"\x00\x00\x00\x0d\x5e\x00\x00\x00\x07\x00\x00\x00\x04data"
    assert len(bare.frame(94, bytes(bare.LARGEST_UP_BYTES - 1))) == 0x4010
    with pytest.raises(LocalProtocolError, match="16397 bytes, where 16396 are taken"):
        bare.frame(94, bytes(bare.LARGEST_UP_BYTES))


def test_lengths() -> None:
    for length, limit in ((1, 16396), (16396, bare.LARGEST_UP_BYTES), (0x8FFF, bare.LARGEST_DOWN_BYTES)):
        bare.check_length(length, limit)
    for length in (0, 16397, 0xFFFFFFFF):
        with pytest.raises(RemoteProtocolError, match=f"a packet of {length} bytes, outside of 1 to 16396"):
            bare.check_length(length, bare.LARGEST_UP_BYTES)


@given(st.sampled_from(Role), st.lists(st.binary(max_size=200), max_size=8))
def test_garbage_is_refused_or_waited_for(role: Role, pieces: list[bytes]) -> None:
    try:
        greeting = greeted(role, *pieces)
    except RemoteProtocolError:
        return
    assert greeting.software is None
