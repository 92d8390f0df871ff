"""An SFTP server of version 3 on stdin and stdout, and nothing wrong with it: what `evil_sftp` stands on.

The rule: it speaks through the project's own codec, which has both directions, and shares nothing else with the client.
It does one request at a time, with one system call each. Subclasses override what they do otherwise.
"""

from __future__ import annotations

import itertools
import os
import select
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.protocol import ATTRIBUTES, STRING, U32, Attributes, OpenFlag, Request, Status, Type

BLOCK_BYTES = 255 * 1024
NAMES_AT_ONCE = 100
MORE_IS_COMING_S = 0.02

EXTENSIONS = (
    sftp.PosixRename,
    sftp.StatvfsPath,
    sftp.StatvfsHandle,
    sftp.Hardlink,
    sftp.Fsync,
    sftp.Lsetstat,
    sftp.GetLimits,
)

Reply = tuple[Type, bytes]


def status(code: int, text: bytes = b"") -> Reply:
    return Type.STATUS, U32.put(code) + STRING.put(text) + STRING.put(b"")


OK = status(Status.OK)
EOF = status(Status.EOF)
FAILURE = status(Status.FAILURE, b"it failed \x1b[31mbadly\n")


def data(content: bytes) -> Reply:
    return Type.DATA, STRING.put(content)


def names(*entries: tuple[bytes, bytes]) -> Reply:
    """A NAME reply of file names and encoded attributes."""
    return Type.NAME, U32.put(len(entries)) + b"".join(STRING.put(name) * 2 + told for name, told in entries)


def attributes(found: os.stat_result) -> Attributes:
    times = (int(found.st_atime), int(found.st_mtime))
    return Attributes(found.st_size, found.st_uid, found.st_gid, found.st_mode, *times)


def packet(kind: int, request_id: int, body: bytes) -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, request_id) + body


@dataclass
class Opened:
    path: bytes
    descriptor: int = -1
    entries: Iterator[os.DirEntry[bytes]] | None = None


class Server:
    """The honest part."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.opened: dict[bytes, Opened] = {}
        self.handles = itertools.count(1)
        self._received = bytearray()

    def put(self, output: bytes) -> None:
        view = memoryview(output)
        while view:
            view = view[os.write(1, view) :]

    def answer(self, request_id: int, reply: Reply) -> None:
        self.put(packet(reply[0], request_id, reply[1]))

    def receive(self) -> bytes | None:
        """The next packet; None at the end."""
        while True:
            length = int.from_bytes(self._received[:4], "big") + 4
            if 4 < length <= len(self._received):
                packet = bytes(self._received[:length])
                del self._received[:length]
                return packet
            got = os.read(0, 1 << 20)
            if not got:
                return None
            self._received += got

    def more_is_there(self) -> bool:
        """Whether another packet has begun to arrive, or does so in a moment."""
        return bool(self._received) or bool(select.select([0], [], [], MORE_IS_COMING_S)[0])

    def greet(self) -> None:
        self.receive()
        body = U32.put(sftp.VERSION) + b"".join(STRING.put(each.EXTENSION) + STRING.put(b"1") for each in EXTENSIONS)
        self.put(struct.pack(">IB", 1 + len(body), Type.VERSION) + body)

    def serve(self) -> None:
        while (received := self.receive()) is not None:
            self.handle(*sftp.decode_request(received))

    def handle(self, request_id: int, request: Request) -> None:
        self.answer(request_id, self.honest(request))

    def describe(self, path: bytes, found: os.stat_result) -> bytes:
        """What is told of the file at `path`."""
        return ATTRIBUTES.put(attributes(found))

    def path_of(self, request: Request) -> bytes:
        """The path it concerns, or that of its handle."""
        for name in ("path", "old", "link"):
            if hasattr(request, name):
                return bytes(getattr(request, name))
        opened = self.opened.get(getattr(request, "handle", b""))
        return opened.path if opened else b""

    def honest(self, request: Request) -> Reply:
        try:
            return self.do(request)
        except FileNotFoundError:
            return status(Status.NO_SUCH_FILE)
        except PermissionError:
            return status(Status.PERMISSION_DENIED)
        except OSError as error:
            return status(Status.FAILURE, os.strerror(error.errno or 0).encode())

    def do(self, request: Request) -> Reply:
        match request:
            case sftp.Lstat(path=path):
                return Type.ATTRS, self.describe(path, os.lstat(path))
            case sftp.Stat(path=path):
                return Type.ATTRS, self.describe(path, os.stat(path))
            case sftp.Realpath(path=path):
                return names((os.path.realpath(path), ATTRIBUTES.put(sftp.NO_ATTRIBUTES)))
            case sftp.Readlink(path=path):
                return names((os.readlink(path), ATTRIBUTES.put(sftp.NO_ATTRIBUTES)))
            case sftp.Open(path=path, pflags=pflags, attributes=wanted):
                mode = 0o666 if wanted.permissions is None else wanted.permissions
                return self.give(Opened(path, os.open(path, local_flags(pflags), mode)))
            case sftp.Opendir(path=path):
                return self.give(Opened(path, entries=os.scandir(path)))
            case sftp.GetLimits():
                return Type.EXTENDED_REPLY, struct.pack(">4Q", BLOCK_BYTES + 1024, BLOCK_BYTES, BLOCK_BYTES, 100)
            case sftp.StatvfsPath(path=path):
                return Type.EXTENDED_REPLY, statvfs(os.statvfs(path))
            case sftp.Remove(path=path):
                os.unlink(path)
            case sftp.Mkdir(path=path):
                os.mkdir(path)
            case sftp.Rmdir(path=path):
                os.rmdir(path)
            case sftp.Rename(old=old, new=new) | sftp.PosixRename(old=old, new=new):
                os.rename(old, new)
            case sftp.Setstat(path=path, attributes=wanted):
                change(path, wanted)
            case _:
                return self.do_with_handle(request)
        return OK

    def give(self, opened: Opened) -> Reply:
        handle = b"%d" % next(self.handles)
        self.opened[handle] = opened
        return Type.HANDLE, STRING.put(handle)

    def do_with_handle(self, request: Request) -> Reply:
        opened = self.opened.get(getattr(request, "handle", b""))
        if opened is None:
            return status(Status.OP_UNSUPPORTED)
        match request:
            case sftp.Readdir():
                assert opened.entries is not None
                found = [*itertools.islice(opened.entries, NAMES_AT_ONCE)]
                told = [(each.name, self.describe(each.path, each.stat(follow_symlinks=False))) for each in found]
                return names(*told) if told else EOF
            case sftp.Read(offset=offset, length=length):
                content = os.pread(opened.descriptor, length, offset)
                return data(content) if content else EOF
            case sftp.Write(offset=offset, data=content):
                os.pwrite(opened.descriptor, content, offset)
            case sftp.Fstat():
                return Type.ATTRS, self.describe(opened.path, os.fstat(opened.descriptor))
            case sftp.Fsetstat(attributes=wanted):
                change(opened.descriptor, wanted)
            case sftp.StatvfsHandle():
                return Type.EXTENDED_REPLY, statvfs(os.fstatvfs(opened.descriptor))
            case sftp.Fsync():
                os.fsync(opened.descriptor)
            case sftp.Close(handle=handle):
                if opened.descriptor >= 0:
                    os.close(opened.descriptor)
                del self.opened[handle]
            case _:
                return status(Status.OP_UNSUPPORTED)
        return OK


def local_flags(pflags: int) -> int:
    flags = {1: os.O_RDONLY, 2: os.O_WRONLY, 3: os.O_RDWR}[pflags & (OpenFlag.READ | OpenFlag.WRITE)]
    for theirs, ours in (
        (OpenFlag.CREAT, os.O_CREAT),
        (OpenFlag.TRUNC, os.O_TRUNC),
        (OpenFlag.EXCL, os.O_EXCL),
        (OpenFlag.APPEND, os.O_APPEND),
    ):
        flags |= ours if pflags & theirs else 0
    return flags


def change(file: bytes | int, wanted: Attributes) -> None:
    if wanted.size is not None:
        os.truncate(file, wanted.size)
    if wanted.permissions is not None:
        os.chmod(file, stat.S_IMODE(wanted.permissions))
    if wanted.atime is not None and wanted.mtime is not None:
        os.utime(file, (wanted.atime, wanted.mtime))


def statvfs(found: os.statvfs_result) -> bytes:
    counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_favail)
    return struct.pack(">11Q", found.f_bsize, found.f_frsize, *counts, 1, 0, found.f_namemax)
