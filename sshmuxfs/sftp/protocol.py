"""SFTP version 3: every message of the protocol, as data.

The rule of this file: a message is declared once, as a field list, and both its encoder and its decoder are derived
from that list. No I/O, no state, no policy: what a status means, or which names are acceptable, is decided elsewhere.

Sources: draft-ietf-secsh-filexfer-02 (version 3) and the extensions in OpenSSH's PROTOCOL, section 4.
Imported by `sshmuxfs.sftp` only, and by whoever needs `Attributes` or a constant.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

VERSION = 3


class Type(enum.IntEnum):
    """Packet types (draft section 3)."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(enum.IntEnum):
    """Status codes (draft section 7)."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


class OpenFlag(enum.IntEnum):
    """SSH_FXF_* (draft section 6.3); to be joined with `|`, which gives plain numbers."""

    READ = 0x01
    WRITE = 0x02
    APPEND = 0x04
    CREAT = 0x08
    TRUNC = 0x10
    EXCL = 0x20


class AttrFlag(enum.IntEnum):
    """SSH_FILEXFER_ATTR_* (draft section 5); to be joined with `|`, which gives plain numbers."""

    SIZE = 0x01
    UIDGID = 0x02
    PERMISSIONS = 0x04
    ACMODTIME = 0x08
    EXTENDED = 0x80000000


class DecodeError(Exception):
    """The bytes are not a well-formed message of version 3."""


class StatusError(Exception):
    """The server answered a request with a status other than OK.

    `code` is the number on the wire (a `Status`, or one that version 3 does not know); `text` is the server's own
    words, undecoded and untrusted.
    """

    def __init__(self, code: int, text: bytes = b"") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        known = self.code in Status._value2member_map_
        return Status(self.code).name if known else f"status {self.code}"


class Attributes(NamedTuple):
    """File attributes (draft section 5). `None` means: not sent. Times are whole seconds since 1970, 0 to 2**32-1."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    permissions: int | None = None
    atime: int | None = None
    mtime: int | None = None


NO_ATTRIBUTES = Attributes()


class Entry(NamedTuple):
    """One name of a NAME reply. The long name is a picture for people and is not kept."""

    filename: bytes
    attributes: Attributes


class Statvfs(NamedTuple):
    """Reply of statvfs@openssh.com and fstatvfs@openssh.com (OpenSSH PROTOCOL, section 4.4)."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    fsid: int
    flag: int
    namemax: int


STATVFS_READ_ONLY = 0x1
STATVFS_NO_SUID = 0x2


class Limits(NamedTuple):
    """Reply of limits@openssh.com (OpenSSH PROTOCOL, section 4.8); 0 means that the server names no limit."""

    max_packet_bytes: int
    max_read_bytes: int
    max_write_bytes: int
    max_open_handles: int


# ---------------------------------------------------------------------------------------------------------------------
# Fields

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_ALL_ATTRS = struct.Struct(">QIIIII")  # size, uid, gid, permissions, atime, mtime: what every OpenSSH server sends
_ALL_FLAGS = AttrFlag.SIZE | AttrFlag.UIDGID | AttrFlag.PERMISSIONS | AttrFlag.ACMODTIME


def _put_string(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _get_string(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _U32.unpack_from(data, at)
    at += 4
    end = at + length
    if end > len(data):
        raise DecodeError(
            f"a string of {length} bytes at offset {at} runs past the end of the packet ({len(data)} bytes)"
        )
    return data[at:end], end


def _put_attributes(value: Attributes) -> bytes:
    size, uid, gid, permissions, atime, mtime = value
    flags = 0
    body = b""
    if size is not None:
        flags |= AttrFlag.SIZE
        body += _U64.pack(size)
    if uid is not None and gid is not None:
        flags |= AttrFlag.UIDGID
        body += struct.pack(">II", uid, gid)
    if permissions is not None:
        flags |= AttrFlag.PERMISSIONS
        body += _U32.pack(permissions)
    if atime is not None and mtime is not None:
        flags |= AttrFlag.ACMODTIME
        body += struct.pack(">II", atime, mtime)
    return _U32.pack(flags) + body


def _get_attributes(data: bytes, at: int) -> tuple[Attributes, int]:
    (flags,) = _U32.unpack_from(data, at)
    at += 4
    if flags == _ALL_FLAGS:
        return Attributes._make(_ALL_ATTRS.unpack_from(data, at)), at + _ALL_ATTRS.size
    size = uid = gid = permissions = atime = mtime = None
    if flags & AttrFlag.SIZE:
        (size,) = _U64.unpack_from(data, at)
        at += 8
    if flags & AttrFlag.UIDGID:
        uid, gid = struct.unpack_from(">II", data, at)
        at += 8
    if flags & AttrFlag.PERMISSIONS:
        (permissions,) = _U32.unpack_from(data, at)
        at += 4
    if flags & AttrFlag.ACMODTIME:
        atime, mtime = struct.unpack_from(">II", data, at)
        at += 8
    if flags & AttrFlag.EXTENDED:
        (count,) = _U32.unpack_from(data, at)
        at += 4
        for _ in range(2 * count):  # pairs of type and data; ends at the packet's end at the latest
            _, at = _get_string(data, at)
    return Attributes(size, uid, gid, permissions, atime, mtime), at


@dataclass(frozen=True, slots=True)
class Field:
    """How one field is put on the wire and taken from it; `get(data, offset)` gives the value and the next offset."""

    put: Callable[[Any], bytes]
    get: Callable[[bytes, int], tuple[Any, int]]


U32 = Field(_U32.pack, lambda data, at: (_U32.unpack_from(data, at)[0], at + 4))
U64 = Field(_U64.pack, lambda data, at: (_U64.unpack_from(data, at)[0], at + 8))
STRING = Field(_put_string, _get_string)
ATTRIBUTES = Field(_put_attributes, _get_attributes)


# ---------------------------------------------------------------------------------------------------------------------
# Requests

_HEADER = struct.Struct(">IBI")  # length of what follows, type, request id
HEADER_BYTES = _HEADER.size


class Request:
    """A request: `TYPE` and `FIELDS` are its wire form, `REPLY` the type that answers it (or STATUS, always)."""

    __slots__: ClassVar[tuple[str, ...]] = ()  # the names of the fields, in the order of FIELDS
    TYPE: ClassVar[Type]
    FIELDS: ClassVar[tuple[Field, ...]]
    REPLY: ClassVar[Type] = Type.STATUS
    EXTENSION: ClassVar[bytes] = b""

    def encode(self, request_id: int) -> bytes:
        """Return the whole packet, length word included."""
        body = b"".join(
            [field.put(getattr(self, name)) for name, field in zip(self.__slots__, self.FIELDS, strict=True)]
        )
        if self.EXTENSION:
            body = _put_string(self.EXTENSION) + body
        return _HEADER.pack(5 + len(body), self.TYPE, request_id) + body


@dataclass(frozen=True, slots=True)
class Open(Request):
    TYPE, REPLY, FIELDS = Type.OPEN, Type.HANDLE, (STRING, U32, ATTRIBUTES)
    path: bytes
    pflags: int
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Close(Request):
    TYPE, FIELDS = Type.CLOSE, (STRING,)
    handle: bytes


@dataclass(frozen=True, slots=True)
class Read(Request):
    TYPE, REPLY, FIELDS = Type.READ, Type.DATA, (STRING, U64, U32)
    handle: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write(Request):
    """The data follows as separate buffers on the hot path (`write_header`); whole only in tests and for small ones."""

    TYPE, FIELDS = Type.WRITE, (STRING, U64, STRING)
    handle: bytes
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Lstat(Request):
    TYPE, REPLY, FIELDS = Type.LSTAT, Type.ATTRS, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Fstat(Request):
    TYPE, REPLY, FIELDS = Type.FSTAT, Type.ATTRS, (STRING,)
    handle: bytes


@dataclass(frozen=True, slots=True)
class Setstat(Request):
    TYPE, FIELDS = Type.SETSTAT, (STRING, ATTRIBUTES)
    path: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Fsetstat(Request):
    TYPE, FIELDS = Type.FSETSTAT, (STRING, ATTRIBUTES)
    handle: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Opendir(Request):
    TYPE, REPLY, FIELDS = Type.OPENDIR, Type.HANDLE, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Readdir(Request):
    TYPE, REPLY, FIELDS = Type.READDIR, Type.NAME, (STRING,)
    handle: bytes


@dataclass(frozen=True, slots=True)
class Remove(Request):
    TYPE, FIELDS = Type.REMOVE, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Mkdir(Request):
    TYPE, FIELDS = Type.MKDIR, (STRING, ATTRIBUTES)
    path: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Rmdir(Request):
    TYPE, FIELDS = Type.RMDIR, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Realpath(Request):
    TYPE, REPLY, FIELDS = Type.REALPATH, Type.NAME, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Stat(Request):
    TYPE, REPLY, FIELDS = Type.STAT, Type.ATTRS, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Rename(Request):
    """Fails when the new name exists: OpenSSH links and unlinks (draft section 6.5)."""

    TYPE, FIELDS = Type.RENAME, (STRING, STRING)
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Readlink(Request):
    TYPE, REPLY, FIELDS = Type.READLINK, Type.NAME, (STRING,)
    path: bytes


@dataclass(frozen=True, slots=True)
class Symlink(Request):
    """Target first: OpenSSH's order, which is the reverse of the draft's (OpenSSH PROTOCOL, section 4.1)."""

    TYPE, FIELDS = Type.SYMLINK, (STRING, STRING)
    target: bytes
    link: bytes


@dataclass(frozen=True, slots=True)
class PosixRename(Request):
    TYPE, FIELDS, EXTENSION = Type.EXTENDED, (STRING, STRING), b"posix-rename@openssh.com"
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class StatvfsPath(Request):
    TYPE, REPLY, FIELDS, EXTENSION = Type.EXTENDED, Type.EXTENDED_REPLY, (STRING,), b"statvfs@openssh.com"
    path: bytes


@dataclass(frozen=True, slots=True)
class StatvfsHandle(Request):
    TYPE, REPLY, FIELDS, EXTENSION = Type.EXTENDED, Type.EXTENDED_REPLY, (STRING,), b"fstatvfs@openssh.com"
    handle: bytes


@dataclass(frozen=True, slots=True)
class Hardlink(Request):
    TYPE, FIELDS, EXTENSION = Type.EXTENDED, (STRING, STRING), b"hardlink@openssh.com"
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Fsync(Request):
    TYPE, FIELDS, EXTENSION = Type.EXTENDED, (STRING,), b"fsync@openssh.com"
    handle: bytes


@dataclass(frozen=True, slots=True)
class Lsetstat(Request):
    """Never follows a symbolic link; a size is a BAD_MESSAGE there (OpenSSH PROTOCOL, section 4.7)."""

    TYPE, FIELDS, EXTENSION = Type.EXTENDED, (STRING, ATTRIBUTES), b"lsetstat@openssh.com"
    path: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class GetLimits(Request):
    TYPE, REPLY, FIELDS, EXTENSION = Type.EXTENDED, Type.EXTENDED_REPLY, (), b"limits@openssh.com"


@dataclass(frozen=True, slots=True)
class ExpandPath(Request):
    """REALPATH that knows `~`, `~/x` and `~user` (OpenSSH PROTOCOL, section 4.9)."""

    TYPE, REPLY, FIELDS, EXTENSION = Type.EXTENDED, Type.NAME, (STRING,), b"expand-path@openssh.com"
    path: bytes


@dataclass(frozen=True, slots=True)
class CopyData(Request):
    """Server-side copy; length 0 is "to the end" (OpenSSH PROTOCOL, section 4.10). Nothing else is served meanwhile."""

    TYPE, FIELDS, EXTENSION = Type.EXTENDED, (STRING, U64, U64, STRING, U64), b"copy-data"
    read_handle: bytes
    read_offset: int
    length: int
    write_handle: bytes
    write_offset: int


@dataclass(frozen=True, slots=True)
class HomeDirectory(Request):
    TYPE, REPLY, FIELDS, EXTENSION = Type.EXTENDED, Type.NAME, (STRING,), b"home-directory"
    username: bytes


@dataclass(frozen=True, slots=True)
class UsersGroupsById(Request):
    """Both strings hold concatenated uint32 ids (OpenSSH PROTOCOL, section 4.12)."""

    TYPE, REPLY, FIELDS = Type.EXTENDED, Type.EXTENDED_REPLY, (STRING, STRING)
    EXTENSION = b"users-groups-by-id@openssh.com"
    uids: bytes
    gids: bytes


PLAIN_REQUESTS: dict[int, type[Request]] = {
    cls.TYPE: cls
    for cls in (
        *(Open, Close, Read, Write, Lstat, Fstat, Setstat, Fsetstat, Opendir, Readdir, Remove, Mkdir, Rmdir),
        *(Realpath, Stat, Rename, Readlink, Symlink),
    )
}
EXTENDED_REQUESTS: dict[bytes, type[Request]] = {
    cls.EXTENSION: cls
    for cls in (
        *(PosixRename, StatvfsPath, StatvfsHandle, Hardlink, Fsync, Lsetstat, GetLimits, ExpandPath, CopyData),
        *(HomeDirectory, UsersGroupsById),
    )
}


def decode_request(packet: bytes) -> tuple[int, Request]:
    """Decode one whole request packet: the server's side, for tests and for servers of our own.

    Returns the request id and the request. Raises DecodeError.
    """
    try:
        length, kind, request_id = _HEADER.unpack_from(packet, 0)
        if length != len(packet) - 4:
            raise DecodeError(f"the length word says {length} bytes, {len(packet) - 4} follow")
        at = HEADER_BYTES
        if kind == Type.EXTENDED:
            extension, at = _get_string(packet, at)
            cls = EXTENDED_REQUESTS.get(extension)
        else:
            cls = PLAIN_REQUESTS.get(kind)
        if cls is None:
            raise DecodeError(f"no request has type {kind}")
        values = []
        for field in cls.FIELDS:
            value, at = field.get(packet, at)
            values.append(value)
    except struct.error as error:
        raise DecodeError(f"a request of {len(packet)} bytes is cut short") from error
    if at != len(packet):
        raise DecodeError(f"{len(packet) - at} bytes are left over after {cls.__name__}")
    return request_id, cls(*values)


# ---------------------------------------------------------------------------------------------------------------------
# The two hot requests, without an object for each

_READ_TAIL = struct.Struct(">QI")
_WRITE_TAIL = struct.Struct(">QI")


def read_packet(request_id: int, handle: bytes, offset: int, length: int) -> bytes:
    """Return the packet of `Read(handle, offset, length)`."""
    return b"".join(
        (
            _HEADER.pack(21 + len(handle), Type.READ, request_id),
            _put_string(handle),
            _READ_TAIL.pack(offset, length),
        )
    )


def write_header(request_id: int, handle: bytes, offset: int, length: int) -> bytes:
    """Return what stands before the `length` bytes of data in the packet of a `Write`."""
    return b"".join(
        (
            _HEADER.pack(21 + len(handle) + length, Type.WRITE, request_id),
            _put_string(handle),
            _WRITE_TAIL.pack(offset, length),
        )
    )


# ---------------------------------------------------------------------------------------------------------------------
# Replies

INIT_PACKET = struct.pack(">IBI", 5, Type.INIT, VERSION)


def decode_version(body: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Decode what follows the length and type of a VERSION packet: the version and the extensions by name."""
    try:
        (version,) = _U32.unpack_from(body, 0)
        at, extensions = 4, {}
        while at < len(body):
            name, at = _get_string(body, at)
            extensions[name], at = _get_string(body, at)
    except struct.error as error:
        raise DecodeError("the VERSION packet is cut short") from error
    return version, extensions


def _decode_status(body: bytes) -> StatusError | None:
    (code,) = _U32.unpack_from(body, 0)
    # Servers older than version 3 leave out the text; RFC-less practice is to accept that.
    text = _get_string(body, 4)[0] if len(body) > 4 else b""
    return None if code == Status.OK else StatusError(code, text)


def _decode_handle(body: bytes) -> bytes:
    handle, at = _get_string(body, 0)
    if at != len(body) or len(handle) > 256:  # draft section 6.3: a handle is at most 256 bytes
        raise DecodeError(f"a handle of {len(handle)} bytes in a packet of {len(body)}")
    return handle


def _decode_names(body: bytes) -> list[Entry]:
    (count,) = _U32.unpack_from(body, 0)
    at, entries = 4, []
    for _ in range(count):  # each turn takes at least 12 bytes or fails, so a lie ends with the packet
        filename, at = _get_string(body, at)
        (length,) = _U32.unpack_from(body, at)  # the long name is skipped, not copied
        attributes, at = _get_attributes(body, at + 4 + length)
        entries.append(Entry(filename, attributes))
    return entries


def _decode_attributes(body: bytes) -> Attributes:
    return _get_attributes(body, 0)[0]


_REPLIES: dict[int, Callable[[bytes], Any]] = {
    Type.STATUS: _decode_status,
    Type.HANDLE: _decode_handle,
    Type.NAME: _decode_names,
    Type.ATTRS: _decode_attributes,
    Type.EXTENDED_REPLY: bytes,
}


def decode_reply(kind: int, body: bytes) -> Any:
    """Decode what follows the request id of any reply but DATA.

    STATUS gives None or a StatusError (returned, not raised), HANDLE and EXTENDED_REPLY bytes, NAME a list of Entry,
    ATTRS an Attributes. Raises DecodeError.
    """
    try:
        return _REPLIES[kind](body)
    except struct.error as error:
        raise DecodeError(f"a {Type(kind).name} reply of {len(body)} bytes is cut short") from error


_STATVFS = struct.Struct(">11Q")
_LIMITS = struct.Struct(">4Q")


def decode_statvfs(body: bytes) -> Statvfs:
    """Decode the EXTENDED_REPLY of a statvfs request. Raises DecodeError."""
    if len(body) != _STATVFS.size:
        raise DecodeError(f"a statvfs reply has {_STATVFS.size} bytes, this one {len(body)}")
    return Statvfs._make(_STATVFS.unpack(body))


def decode_limits(body: bytes) -> Limits:
    """Decode the EXTENDED_REPLY of limits@openssh.com. Raises DecodeError."""
    if len(body) != _LIMITS.size:
        raise DecodeError(f"a limits reply has {_LIMITS.size} bytes, this one {len(body)}")
    return Limits._make(_LIMITS.unpack(body))


def decode_users_groups(body: bytes) -> tuple[list[bytes], list[bytes]]:
    """Decode the EXTENDED_REPLY of users-groups-by-id: two strings of strings; an empty name is unknown."""
    try:
        users, at = _get_string(body, 0)
        groups, _ = _get_string(body, at)
        return _strings(users), _strings(groups)
    except struct.error as error:
        raise DecodeError("the users-groups-by-id reply is cut short") from error


def _strings(data: bytes) -> list[bytes]:
    at, found = 0, []
    while at < len(data):
        value, at = _get_string(data, at)
        found.append(value)
    return found
