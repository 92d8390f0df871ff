"""Every request of SFTP version 3 and of OpenSSH's extensions: exact bytes both ways, and nothing but DecodeError else.

The bytes are written out by hand from draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL, section 4, not made by the
encoder under test.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.protocol import Attributes, DecodeError, OpenFlag, Request

ALL = Attributes(0x0102030405060708, 1000, 100, 0o100755, 1, 0xFFFFFFFF)


def wire(*parts: str | bytes) -> bytes:
    """Hex digits, with names as they are between them."""
    return b"".join(part if isinstance(part, bytes) else bytes.fromhex(part) for part in parts)


# Each has the request id 7. Length, type and id come first, then the fields.
PLAIN: list[tuple[Request, bytes]] = [
    (
        sftp.Open(b"/a", OpenFlag.WRITE | OpenFlag.CREAT | OpenFlag.TRUNC, Attributes(permissions=0o644)),
        wire("00000017 03 00000007", "00000002 2f61", "0000001a", "00000004 000001a4"),
    ),
    (
        sftp.Open(b"/a", OpenFlag.READ | OpenFlag.APPEND | OpenFlag.EXCL, sftp.NO_ATTRIBUTES),
        wire("00000013 03 00000007", "00000002 2f61", "00000025", "00000000"),
    ),
    (sftp.Close(b"h1"), wire("0000000b 04 00000007", "00000002 6831")),
    (
        sftp.Read(b"h1", 0x0000000100000002, 261120),
        wire("00000017 05 00000007", "00000002 6831", "0000000100000002", "0003fc00"),
    ),
    (
        sftp.Write(b"h1", 5, b"abc"),
        wire("0000001a 06 00000007", "00000002 6831", "0000000000000005", "00000003 616263"),
    ),
    (sftp.Lstat(b"/a"), wire("0000000b 07 00000007", "00000002 2f61")),
    (sftp.Fstat(b"h1"), wire("0000000b 08 00000007", "00000002 6831")),
    (
        sftp.Setstat(b"/a", ALL),
        wire(
            *("0000002b 09 00000007", "00000002 2f61"),
            "0000000f 0102030405060708 000003e8 00000064 000081ed 00000001 ffffffff",
        ),
    ),
    (
        sftp.Fsetstat(b"h1", Attributes(size=0)),
        wire("00000017 0a 00000007", "00000002 6831", "00000001 0000000000000000"),
    ),
    (sftp.Opendir(b"/a"), wire("0000000b 0b 00000007", "00000002 2f61")),
    (sftp.Readdir(b"h1"), wire("0000000b 0c 00000007", "00000002 6831")),
    (sftp.Remove(b"/a"), wire("0000000b 0d 00000007", "00000002 2f61")),
    (
        sftp.Mkdir(b"/a", Attributes(permissions=0o755)),
        wire("00000013 0e 00000007", "00000002 2f61", "00000004 000001ed"),
    ),
    (sftp.Rmdir(b"/a"), wire("0000000b 0f 00000007", "00000002 2f61")),
    (sftp.Realpath(b"."), wire("0000000a 10 00000007", "00000001 2e")),
    (sftp.Stat(b""), wire("00000009 11 00000007", "00000000")),
    (sftp.Rename(b"/a", b"/b"), wire("00000011 12 00000007", "00000002 2f61", "00000002 2f62")),
    (sftp.Readlink(b"/a"), wire("0000000b 13 00000007", "00000002 2f61")),
    # OpenSSH's order: what the link says, then where it is.
    (sftp.Symlink(b"t", b"/l"), wire("00000010 14 00000007", "00000001 74", "00000002 2f6c")),
]

EXTENDED: list[tuple[Request, bytes]] = [
    (
        sftp.PosixRename(b"/a", b"/b"),
        wire(
            *("0000002d c8 00000007", "00000018", b"posix-rename@openssh.com"),
            *("00000002 2f61", "00000002 2f62"),
        ),
    ),
    (
        sftp.StatvfsPath(b"/a"),
        wire("00000022 c8 00000007", "00000013", b"statvfs@openssh.com", "00000002 2f61"),
    ),
    (
        sftp.StatvfsHandle(b"h1"),
        wire("00000023 c8 00000007", "00000014", b"fstatvfs@openssh.com", "00000002 6831"),
    ),
    (
        sftp.Hardlink(b"/a", b"/b"),
        wire(
            *("00000029 c8 00000007", "00000014", b"hardlink@openssh.com"),
            *("00000002 2f61", "00000002 2f62"),
        ),
    ),
    (sftp.Fsync(b"h1"), wire("00000020 c8 00000007", "00000011", b"fsync@openssh.com", "00000002 6831")),
    (
        sftp.Lsetstat(b"/a", Attributes(atime=1, mtime=2)),
        wire(
            *("0000002f c8 00000007", "00000014", b"lsetstat@openssh.com"),
            *("00000002 2f61", "00000008 00000001 00000002"),
        ),
    ),
    (sftp.GetLimits(), wire("0000001b c8 00000007", "00000012", b"limits@openssh.com")),
    (sftp.ExpandPath(b"~"), wire("00000025 c8 00000007", "00000017", b"expand-path@openssh.com", "00000001 7e")),
    (
        sftp.CopyData(b"h1", 1, 2, b"h2", 3),
        wire(
            *("00000036 c8 00000007", "00000009", b"copy-data"),
            *("00000002 6831", "0000000000000001", "0000000000000002", "00000002 6832", "0000000000000003"),
        ),
    ),
    (sftp.HomeDirectory(b"u"), wire("0000001c c8 00000007", "0000000e", b"home-directory", "00000001 75")),
    (
        sftp.UsersGroupsById(bytes.fromhex("00000000 000003e8"), bytes.fromhex("00000064")),
        wire(
            *("0000003b c8 00000007", "0000001e", b"users-groups-by-id@openssh.com"),
            *("00000008 00000000 000003e8", "00000004 00000064"),
        ),
    ),
]
REQUESTS = PLAIN + EXTENDED


def name_of(value: object) -> str:
    return type(value).__name__ if isinstance(value, Request) else ""


every_request = pytest.mark.parametrize(("request_", "packet"), REQUESTS, ids=name_of)


def test_the_table_holds_every_request() -> None:
    known = {*sftp.PLAIN_REQUESTS.values(), *sftp.EXTENDED_REQUESTS.values()}
    assert {type(request) for request, _ in REQUESTS} == known
    assert set(sftp.PLAIN_REQUESTS) == set(range(sftp.Type.OPEN, sftp.Type.SYMLINK + 1))


def test_the_session_begins_with_version_3() -> None:
    assert bytes.fromhex("00000005 01 00000003") == sftp.INIT_PACKET


@every_request
def test_a_request_is_these_bytes(request_: Request, packet: bytes) -> None:
    assert request_.encode(7) == packet


@every_request
def test_these_bytes_are_the_request(request_: Request, packet: bytes) -> None:
    assert sftp.decode_request(packet) == (7, request_)


@every_request
def test_a_request_cut_short_is_no_request(request_: Request, packet: bytes) -> None:
    for end in range(len(packet)):
        with pytest.raises(DecodeError):
            sftp.decode_request(packet[:end])
        if end >= 4:  # and with a length word that agrees
            shorter = (end - 4).to_bytes(4, "big") + packet[4:end]
            with pytest.raises(DecodeError):
                sftp.decode_request(shorter)


@every_request
def test_bytes_behind_a_request_are_refused(request_: Request, packet: bytes) -> None:
    with pytest.raises(DecodeError):
        sftp.decode_request(packet + b"\0")
    longer = (len(packet) - 3).to_bytes(4, "big") + packet[4:] + b"\0"
    with pytest.raises(DecodeError, match="1 bytes are left over"):
        sftp.decode_request(longer)


@pytest.mark.parametrize(
    "packet",
    [
        bytes.fromhex("00000009 00 00000007 00000000"),
        bytes.fromhex("00000009 01 00000007 00000000"),
        bytes.fromhex("00000009 15 00000007 00000000"),
        bytes.fromhex("00000009 65 00000007 00000000"),
        bytes.fromhex("00000009 ff 00000007 00000000"),
        wire("0000000d c8 00000007", "00000004", b"none"),
    ],
)
def test_an_unknown_type_is_no_request(packet: bytes) -> None:
    with pytest.raises(DecodeError, match="no request has type"):
        sftp.decode_request(packet)


def test_a_read_made_fast_is_the_same_packet() -> None:
    for request, packet in PLAIN:
        if isinstance(request, sftp.Read):
            assert sftp.read_packet(7, request.handle, request.offset, request.length) == packet


def test_the_header_of_a_write_stands_before_its_data() -> None:
    for request, packet in PLAIN:
        if isinstance(request, sftp.Write):
            header = sftp.write_header(7, request.handle, request.offset, len(request.data))
            assert header + request.data == packet


@pytest.mark.parametrize(
    ("attributes", "encoded"),
    [
        (Attributes(), "00000000"),
        (Attributes(size=2**64 - 1), "00000001 ffffffffffffffff"),
        (Attributes(uid=0, gid=2**32 - 1), "00000002 00000000 ffffffff"),
        (Attributes(permissions=0o1777), "00000004 000003ff"),
        (Attributes(atime=0, mtime=2**32 - 1), "00000008 00000000 ffffffff"),
        (Attributes(size=1, atime=2, mtime=3), "00000009 0000000000000001 00000002 00000003"),
        (ALL, "0000000f 0102030405060708 000003e8 00000064 000081ed 00000001 ffffffff"),
    ],
)
def test_attributes_are_flags_and_what_they_announce(attributes: Attributes, encoded: str) -> None:
    assert sftp.ATTRIBUTES.put(attributes) == bytes.fromhex(encoded)
    assert sftp.ATTRIBUTES.get(bytes.fromhex(encoded), 0) == (attributes, len(bytes.fromhex(encoded)))


def test_extended_attributes_are_skipped() -> None:
    encoded = wire("80000004 000081a4 00000002", "00000001 61 00000000", "00000000 00000002 6263")
    assert sftp.ATTRIBUTES.get(encoded, 0) == (Attributes(permissions=0o100644), len(encoded))


u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
FIELDS: dict[sftp.Field, st.SearchStrategy[Any]] = {sftp.U32: u32, sftp.U64: u64, sftp.STRING: st.binary(max_size=300)}


@st.composite
def attributes(draw: st.DrawFn) -> Attributes:
    """Owner and group come together, and so do the two times: the wire has no other form."""
    owner = draw(st.none() | st.tuples(u32, u32)) or (None, None)
    times = draw(st.none() | st.tuples(u32, u32)) or (None, None)
    size, permissions = draw(st.none() | u64), draw(st.none() | u32)
    return Attributes(size, owner[0], owner[1], permissions, times[0], times[1])


@st.composite
def requests(draw: st.DrawFn) -> Request:
    classes = [*sftp.PLAIN_REQUESTS.values(), *sftp.EXTENDED_REQUESTS.values()]
    cls = draw(st.sampled_from(classes))
    return cls(*(draw(attributes() if field is sftp.ATTRIBUTES else FIELDS[field]) for field in cls.FIELDS))


@given(requests(), u32)
def test_a_request_survives_the_wire(request: Request, request_id: int) -> None:
    assert sftp.decode_request(request.encode(request_id)) == (request_id, request)


@given(st.binary(max_size=200))
def test_garbage_is_no_request(garbage: bytes) -> None:
    framed = len(garbage).to_bytes(4, "big") + garbage
    for packet in (garbage, framed):
        try:
            sftp.decode_request(packet)
        except DecodeError:
            pass


@given(requests(), st.data())
def test_a_damaged_request_is_another_or_none(request: Request, data: st.DataObject) -> None:
    packet = bytearray(request.encode(7))
    at = data.draw(st.integers(0, len(packet) - 1))
    packet[at] ^= data.draw(st.integers(1, 255))
    try:
        sftp.decode_request(bytes(packet))
    except DecodeError:
        pass
