"""What an SFTP server can answer wrongly to a single request; run by `evil_sftp`.

The rule: the path that a request concerns says what is done to it. For `evil:CASE:ARGUMENT`, and what lies below it,
the case is a function here, which gets the argument and deals with that one request; all else is answered honestly.
Behind one more colon there may be anything, to tell apart several of a kind.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import struct
import sys
from collections.abc import Callable

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.protocol import ATTRIBUTES, STRING, U32, Attributes, Request, Type
from tests.support.honest_sftp import (
    BLOCK_BYTES,
    EOF,
    FAILURE,
    NAMES_AT_ONCE,
    OK,
    Reply,
    Server,
    attributes,
    data,
    names,
    packet,
)

EVIL = re.compile(rb".*/evil:(\w+):?([^/:]*)", re.DOTALL)
REACHED = b"reached"
FAILS_FROM_BYTES = 1 << 20  # where files go wrong that begin well
NO_ATTRIBUTES = ATTRIBUTES.put(sftp.NO_ATTRIBUTES)
SOME_ATTRIBUTES = ATTRIBUTES.put(Attributes(4, 0, 0, stat.S_IFREG | 0o644, 0, 0))


class Evil(Server):
    """A server that looks into the path of each request for a case."""

    def handle(self, request_id: int, request: Request) -> None:
        found = EVIL.match(self.path_of(request))
        if found:
            requests, deal = CASES[found[1].decode()]
            if isinstance(request, requests) and deal(self, found[2].decode(), request_id, request):
                return
        super().handle(request_id, request)

    def describe(self, path: bytes, found: os.stat_result) -> bytes:
        case = EVIL.match(path)
        if case and case[1] == b"attributes":
            return told(case[2].decode(), attributes(found))
        return super().describe(path, found)


Case = Callable[[Server, str, int, Request], bool]
CASES: dict[str, tuple[tuple[type[Request], ...], Case]] = {}
REQUESTS: dict[str, type[Request]] = {
    cls.__name__: cls for cls in (*sftp.PLAIN_REQUESTS.values(), *sftp.EXTENDED_REQUESTS.values())
}


def on(*requests: type[Request]) -> Callable[[Case], Case]:
    """The case that follows deals with these requests, named as its function is."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = requests, function
        return function

    return register


def instead(*requests: type[Request]) -> Callable[[Callable[[Server, str, Request], Reply | None]], Case]:
    """The case that follows returns what is answered instead; None for the honest answer."""

    def register(function: Callable[[Server, str, Request], Reply | None]) -> Case:
        def deal(server: Server, argument: str, request_id: int, request: Request) -> bool:
            reply = function(server, argument, request)
            if reply is not None:
                server.answer(request_id, reply)
            return reply is not None

        deal.__name__ = function.__name__
        return on(*requests)(deal)

    return register


@on(sftp.Lstat)
def packet_length(server: Server, argument: str, request_id: int, request: Request) -> bool:
    """A packet that says it has ARGUMENT bytes."""
    server.put(struct.pack(">IBI", int(argument, 0), Type.ATTRS, request_id) + bytes(64))
    return True


@on(sftp.Lstat)
def unknown_id(server: Server, argument: str, request_id: int, request: Request) -> bool:
    server.answer(request_id ^ 0x40000000, server.honest(request))
    return True


@on(sftp.Lstat)
def twice(server: Server, argument: str, request_id: int, request: Request) -> bool:
    for _ in range(2):
        server.answer(request_id, server.honest(request))
    return True


def reached(server: Server) -> None:
    """Tell whoever waits for this moment."""
    with open(server.root + b"/" + REACHED, "wb"):
        pass


@on(*REQUESTS.values())
def never(server: Server, argument: str, request_id: int, request: Request) -> bool:
    """The one request ARGUMENT is left unanswered."""
    if isinstance(request, REQUESTS[argument]):
        reached(server)
        return True
    return False


@on(*REQUESTS.values())
def silence(server: Server, argument: str, request_id: int, request: Request) -> bool:
    """From the request ARGUMENT on, nothing is answered any more."""
    if never(server, argument, request_id, request):
        while server.receive() is not None:
            pass
        sys.exit()
    return False


@on(*REQUESTS.values())
def die(server: Server, argument: str, request_id: int, request: Request) -> bool:
    """At the request ARGUMENT, SIGKILL."""
    if never(server, argument, request_id, request):
        os.kill(os.getpid(), signal.SIGKILL)
    return False


@on(sftp.Lstat)
def flood(server: Server, argument: str, request_id: int, request: Request) -> bool:
    """Replies that nobody asked for, for ever."""
    while True:
        server.put(packet(Type.DATA, 0x40000000, STRING.put(bytes(100_000))))


@instead(*REQUESTS.values())
def reply_type(server: Server, argument: str, request: Request) -> Reply | None:
    """ARGUMENT is REQUEST=type: it is answered by this type, with the body of an empty string."""
    name, kind = argument.split("=")
    # The enum has no such number, and the wire does not mind.
    return (int(kind), STRING.put(b"")) if isinstance(request, REQUESTS[name]) else None  # type: ignore[return-value]


@instead(*REQUESTS.values())
def ok(server: Server, argument: str, request: Request) -> Reply | None:
    """OK alone, to a request that wants more."""
    return OK if isinstance(request, REQUESTS[argument]) else None


@instead(sftp.Lstat)
def body(server: Server, argument: str, request: Request) -> Reply | None:
    """A cut reply: the first ARGUMENT bytes of an honest one."""
    kind, whole = server.honest(request)
    return kind, whole[: int(argument)]


@instead(sftp.Open)
def handle_length(server: Server, argument: str, request: Request) -> Reply | None:
    kind, _ = server.honest(request)
    handle = b"h" * int(argument)
    if kind == Type.HANDLE:
        server.opened[handle] = server.opened.pop([*server.opened][-1])
    return kind, STRING.put(handle)


# -- names and attributes ---------------------------------------------------------------------------------------------

# Names no directory should hold, and some that one may.
BAD_NAMES: dict[str, tuple[bytes, ...]] = {
    "path": (b"../../etc/evil", b"a/b", b"/etc", b"/"),
    "empty": (b"",),
    "dots": (b".", b"..", b".", b".."),
    "nul": (b"a\0b", b"\0"),
    "long": (b"x" * 256, b"x" * 300, b"x" * 5000),
    "longest": (b"x" * 255,),
    "control": (b"new\nline", b"\x1b[2Jescape", b"\xff\xfe not utf-8", b" ", b"-rf"),
    "again": (b"first", b"first", b"one", b"one", b"last"),
}
TARGETS = {
    "absolute": b"/etc/passwd",
    "up": b"../../../../../../../../etc/passwd",
    "inside": b"sub/../../../../../../../etc/passwd",
    "end": b"sub/..",
    "empty": b"",
    "nul": b"good\0/etc/passwd",
    "long": b"x/" * 5000,
}


@instead(sftp.Readdir)
def bad_names(server: Server, argument: str, request: Request) -> Reply | None:
    """BAD_NAMES[ARGUMENT] besides what is there, `first` and `last`; the long ones need replies of their own."""
    kind, reply = server.honest(request)
    if kind != Type.NAME:
        return None
    bad = names(*((name, SOME_ATTRIBUTES) for name in BAD_NAMES[argument]))[1]
    count = int.from_bytes(reply[:4], "big") + len(BAD_NAMES[argument])
    return kind, U32.put(count) + bad[4:] + reply[4:]


@instead(sftp.Readdir)
def name_count(server: Server, argument: str, request: Request) -> Reply | None:
    """One name, said to be ARGUMENT."""
    kind, reply = names((b"first", SOME_ATTRIBUTES))
    return kind, U32.put(int(argument, 0)) + reply[4:]


@instead(sftp.Readdir)
def endless(server: Server, argument: str, request: Request) -> Reply | None:
    """A directory without end, of new names, of the same, or of none."""
    if argument == "empty":
        return names()
    numbers = (next(server.handles) if argument == "new" else number for number in range(NAMES_AT_ONCE))
    return names(*((b"name-%d" % number, SOME_ATTRIBUTES) for number in numbers))


@instead(sftp.Readlink)
def bad_target(server: Server, argument: str, request: Request) -> Reply | None:
    """A link that leads to TARGETS[ARGUMENT]."""
    return names((TARGETS[argument], NO_ATTRIBUTES))


@instead(sftp.Readlink)
def target_count(server: Server, argument: str, request: Request) -> Reply | None:
    return names(*((b"good", NO_ATTRIBUTES) for _ in range(int(argument))))


def told(argument: str, honest: Attributes) -> bytes:
    """Attributes as ARGUMENT says."""
    encoded = ATTRIBUTES.put(honest)
    flags, rest = int.from_bytes(encoded[:4], "big") | sftp.AttrFlag.EXTENDED, encoded[4:]
    pair = STRING.put(b"name@example.org") + STRING.put(bytes(1000))
    match argument:
        case "kind":
            return ATTRIBUTES.put(honest._replace(permissions=0o150644))
        case "bits":
            return ATTRIBUTES.put(honest._replace(permissions=0xFFFF0000 | (honest.permissions or 0)))
        case "size":
            return ATTRIBUTES.put(honest._replace(size=2**64 - 1))
        case "times":
            return ATTRIBUTES.put(honest._replace(atime=2**32 - 1, mtime=2**32 - 1))
        case "ids":
            return ATTRIBUTES.put(honest._replace(uid=2**32 - 1, gid=2**32 - 1))
        case "none":
            return NO_ATTRIBUTES
        case "permissions":
            return ATTRIBUTES.put(honest._replace(permissions=None))
        case "extended":
            return U32.put(flags) + rest + U32.put(2) + 2 * pair
        case "pairs":
            return U32.put(flags) + rest + U32.put(0xFFFFFFFF) + pair
    raise ValueError(argument)


CASES["attributes"] = (), lambda server, argument, request_id, request: False  # `describe` does it


@instead(sftp.Open)
def swap(server: Server, argument: str, request: Request) -> Reply | None:
    """The file becomes something else just before it is opened."""
    path = server.path_of(request)
    if stat.S_ISREG(os.lstat(path).st_mode):
        os.unlink(path)
        if argument == "directory":
            os.mkdir(path)
        else:
            os.symlink("/etc/passwd", path)
    return None


@instead(sftp.StatvfsPath, sftp.StatvfsHandle)
def bad_statvfs(server: Server, argument: str, request: Request) -> Reply | None:
    bodies = {"short": bytes(5), "long": bytes(500), "zero": bytes(88), "huge": b"\xff" * 88}
    return Type.EXTENDED_REPLY, bodies[argument]


# -- contents ---------------------------------------------------------------------------------------------------------


@instead(sftp.Read)
def read_answer(server: Server, argument: str, request: Request) -> Reply | None:
    """What a READ is answered from FAILS_FROM_BYTES on."""
    assert isinstance(request, sftp.Read)
    if request.offset + request.length <= FAILS_FROM_BYTES:
        return None
    kind, content = server.honest(request)
    if kind != Type.DATA:
        return None
    match argument:
        case "longer":
            return data(bytes(request.length + 1))
        case "much_longer":
            return data(bytes(request.length + 4 * BLOCK_BYTES))
        case "shorter":
            return data(content[4 : 4 + max(1, request.length // 3)])
        case "empty":
            return data(b"")
        case "lying":
            return Type.DATA, U32.put(request.length) + content[4:-10]
        case "end":
            return EOF
        case "failure":
            return FAILURE
    raise ValueError(argument)


@instead(sftp.Write, sftp.StatvfsHandle)
def write_answer(server: Server, argument: str, request: Request) -> Reply | None:
    """WRITE fails from FAILS_FROM_BYTES on; for the ARGUMENT `full`, because the disk says it is."""
    if isinstance(request, sftp.Write):
        return FAILURE if request.offset + len(request.data) > FAILS_FROM_BYTES else None
    return (Type.EXTENDED_REPLY, struct.pack(">11Q", 512, 512, *[0] * 6, 1, 0, 255)) if argument == "full" else None


@instead(sftp.Close)
def close_answer(server: Server, argument: str, request: Request) -> Reply | None:
    server.honest(request)
    return FAILURE
