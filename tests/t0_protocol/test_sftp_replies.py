"""Every reply of SFTP version 3 and of OpenSSH's extensions: what given bytes mean, and nothing but DecodeError else.

Bodies only, without length, type and id: those are the exchange's business. Written out by hand from the draft.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.protocol import Attributes, DecodeError, Entry, Limits, Status, StatusError, Statvfs, Type

REPLY_TYPES = [Type.STATUS, Type.HANDLE, Type.NAME, Type.ATTRS, Type.EXTENDED_REPLY]

# type, body, meaning, and the lengths to which the body may be cut without becoming nonsense
REPLIES: list[tuple[Type, bytes, Any, set[int]]] = [
    # Code, text and language; servers of older versions leave the last two out, and of the language nothing is read.
    (Type.STATUS, bytes.fromhex("00000000 00000002 4f4b 00000002 656e"), None, {4, *range(10, 16)}),
    (Type.HANDLE, bytes.fromhex("00000004 00000001"), bytes.fromhex("00000001"), set()),
    (Type.HANDLE, bytes.fromhex("00000000"), b"", set()),
    (Type.ATTRS, bytes.fromhex("00000000"), Attributes(), set()),
    (
        Type.ATTRS,
        bytes.fromhex("0000000f 0000000000000400 000003e8 00000064 000081a4 5f5e1000 5f5e1001"),
        Attributes(1024, 1000, 100, 0o100644, 0x5F5E1000, 0x5F5E1001),
        set(),
    ),
    (Type.ATTRS, bytes.fromhex("00000004 000041ed"), Attributes(permissions=0o040755), set()),
    (Type.NAME, bytes.fromhex("00000000"), [], set()),
    (
        Type.NAME,
        bytes.fromhex("00000002 00000001 61 00000003 2d2d2d 00000000 00000002 ff00 00000000 00000004 000081a4"),
        [Entry(b"a", Attributes()), Entry(b"\xff\0", Attributes(permissions=0o100644))],
        set(),
    ),
    (Type.EXTENDED_REPLY, b"anything", b"anything", set(range(8))),
]


def label(value: object) -> str:
    return value.name if isinstance(value, Type) else ""


every_reply = pytest.mark.parametrize(("kind", "body", "meaning", "also_whole"), REPLIES, ids=label)


@every_reply
def test_what_a_reply_means(kind: Type, body: bytes, meaning: Any, also_whole: set[int]) -> None:
    assert sftp.decode_reply(kind, body) == meaning


@every_reply
def test_a_reply_cut_short_is_none(kind: Type, body: bytes, meaning: Any, also_whole: set[int]) -> None:
    for end in range(len(body)):
        if end in also_whole:
            sftp.decode_reply(kind, body[:end])
        else:
            with pytest.raises(DecodeError):
                sftp.decode_reply(kind, body[:end])


def test_nothing_may_stand_behind_a_handle() -> None:
    with pytest.raises(DecodeError):
        sftp.decode_reply(Type.HANDLE, bytes.fromhex("00000001 68 00"))


@pytest.mark.parametrize("kind", [Type.STATUS, Type.ATTRS, Type.NAME])
def test_what_stands_behind_the_other_replies_is_skipped(kind: Type) -> None:
    """As OpenSSH's client does: some servers end a reply with more than version 3 has."""
    for each, body, meaning, _ in REPLIES:
        if each == kind:
            assert sftp.decode_reply(kind, body + b"more") == meaning


def test_a_handle_is_at_most_256_bytes() -> None:
    longest = bytes(256)
    assert sftp.decode_reply(Type.HANDLE, struct.pack(">I", 256) + longest) == longest
    with pytest.raises(DecodeError):
        sftp.decode_reply(Type.HANDLE, struct.pack(">I", 257) + bytes(257))


@pytest.mark.parametrize("code", [*list(Status)[1:], 9, 31, 0xFFFFFFFF])
def test_any_other_status_is_an_error_with_the_servers_words(code: int) -> None:
    error = sftp.decode_reply(Type.STATUS, struct.pack(">II", code, 4) + b"\x1b[2J" + bytes(4))
    assert isinstance(error, StatusError)
    assert (error.code, error.text) == (code, b"\x1b[2J")
    assert "\x1b" not in str(error)
    bare = sftp.decode_reply(Type.STATUS, struct.pack(">I", code))
    assert isinstance(bare, StatusError)
    assert (bare.code, bare.text) == (code, b"")


@pytest.mark.parametrize("count", [3, 0xFFFF, 0xFFFFFFFF])
def test_a_count_of_names_that_are_not_there_is_a_lie(count: int) -> None:
    one = bytes.fromhex("00000001 61 00000000 00000000")
    with pytest.raises(DecodeError):
        sftp.decode_reply(Type.NAME, struct.pack(">I", count) + 2 * one)


@pytest.mark.parametrize("length", [1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_long_name_that_runs_past_the_end_is_a_lie(length: int) -> None:
    body = bytes.fromhex("00000001 00000001 61") + struct.pack(">I", length) + bytes(4)
    with pytest.raises(DecodeError):
        sftp.decode_reply(Type.NAME, body)


@pytest.mark.parametrize("count", [1, 0xFFFFFFFF])
def test_a_count_of_extended_attributes_that_are_not_there_is_a_lie(count: int) -> None:
    with pytest.raises(DecodeError):
        sftp.decode_reply(Type.ATTRS, bytes.fromhex("80000000") + struct.pack(">I", count) + bytes(4))


# -- VERSION ----------------------------------------------------------------------------------------------------------

VERSION_BODY = bytes.fromhex("00000003 00000001 61 00000001 31 00000002 6262 00000000")


def test_the_greeting_has_a_version_and_extensions() -> None:
    assert sftp.decode_version(VERSION_BODY) == (3, {b"a": b"1", b"bb": b""})
    assert sftp.decode_version(bytes.fromhex("00000006")) == (6, {})


def test_a_greeting_cut_short_is_none() -> None:
    for end in range(len(VERSION_BODY)):
        if end in (4, 14):  # between two extensions
            continue
        with pytest.raises(DecodeError):
            sftp.decode_version(VERSION_BODY[:end])


# -- extended replies -------------------------------------------------------------------------------------------------

STATVFS_BODY = bytes.fromhex(
    "0000000000001000 0000000000000200 0000000000000003 0000000000000004 0000000000000005 0000000000000006"
    "0000000000000007 0000000000000008 ffffffffffffffff 0000000000000003 00000000000000ff"
)
LIMITS_BODY = bytes.fromhex("0000000000040000 000000000003fc00 000000000003fc01 00000000000003fb")
USERS_BODY = bytes.fromhex("0000000c 00000004 726f6f74 00000000 00000000")


def test_statvfs_is_eleven_numbers() -> None:
    expected = Statvfs(4096, 512, 3, 4, 5, 6, 7, 8, 2**64 - 1, 3, 255)
    assert sftp.decode_statvfs(STATVFS_BODY) == expected
    assert expected.flag == sftp.STATVFS_READ_ONLY | sftp.STATVFS_NO_SUID


def test_limits_are_four_numbers() -> None:
    assert sftp.decode_limits(LIMITS_BODY) == Limits(262144, 261120, 261121, 1019)


def test_names_of_ids_are_two_lists() -> None:
    assert sftp.decode_users_groups(USERS_BODY) == ([b"root", b""], [])


@pytest.mark.parametrize(
    ("decode", "body"), [(sftp.decode_statvfs, STATVFS_BODY), (sftp.decode_limits, LIMITS_BODY)], ids=["v", "l"]
)
def test_numbers_have_to_be_as_many_as_there_should_be(decode: Any, body: bytes) -> None:
    for wrong in [*(body[:end] for end in range(len(body))), body + b"\0"]:
        with pytest.raises(DecodeError):
            decode(wrong)


def test_names_of_ids_cut_short_are_none() -> None:
    for end in range(len(USERS_BODY)):
        with pytest.raises(DecodeError):
            sftp.decode_users_groups(USERS_BODY[:end])


# -- anything ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from(REPLY_TYPES), st.binary(max_size=200))
def test_garbage_is_a_reply_or_a_decode_error(kind: Type, garbage: bytes) -> None:
    try:
        sftp.decode_reply(kind, garbage)
    except DecodeError:
        pass


@given(st.binary(max_size=200))
def test_garbage_is_nothing_else_either(garbage: bytes) -> None:
    for decode in (sftp.decode_version, sftp.decode_statvfs, sftp.decode_limits, sftp.decode_users_groups):
        try:
            decode(garbage)
        except DecodeError:
            pass


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=80), st.integers(0, 2**32 - 1)), max_size=20))
def test_names_survive_the_wire(names: list[tuple[bytes, bytes, int]]) -> None:
    body = struct.pack(">I", len(names))
    for name, long_name, mode in names:
        body += sftp.STRING.put(name) + sftp.STRING.put(long_name) + struct.pack(">II", 4, mode)
    expected = [Entry(name, Attributes(permissions=mode)) for name, _, mode in names]
    assert sftp.decode_reply(Type.NAME, body) == expected
