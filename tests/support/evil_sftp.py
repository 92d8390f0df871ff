"""An SFTP server on stdin and stdout that serves a directory honestly, but for what it was told to do: a program.

    python evil_sftp.py CONVERSATION[:ARGUMENT] DIRECTORY

The rule: what it does to single requests stands in the names of the files they concern (`evil_answers`), so that a
mount comes up, meets it there, and can be asked afterwards whether the rest still works. What it does to the whole
conversation is one of START; `plain` is none of it. Before it falls silent or dies it makes the file DIRECTORY/reached,
for whoever waits for that moment.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # started by sshd, with nobody's environment
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.protocol import ATTRIBUTES, Attributes, Request, Status, Type
from tests.support.evil_answers import NO_ATTRIBUTES, Evil, reached
from tests.support.honest_sftp import BLOCK_BYTES, Reply, Server, names, status

START: dict[str, Callable[[bytes, str], None]] = {}


def start(function: Callable[[bytes, str], None]) -> Callable[[bytes, str], None]:
    """A conversation of its own, named as its function is."""
    START[function.__name__] = function
    return function


def converse(server: Server) -> None:
    server.greet()
    server.serve()


@start
def plain(root: bytes, argument: str) -> None:
    converse(Evil(root))


@start
def version(root: bytes, argument: str) -> None:
    """A greeting of version ARGUMENT."""
    server = Server(root)
    server.put(struct.pack(">IBI", 5, Type.VERSION, int(argument)))
    server.receive()
    server.serve()


@start
def greeting(root: bytes, argument: str) -> None:
    """Something else in place of a greeting."""
    texts = {
        "banner": b"Welcome to \x1b[31mthis\x07 machine!\r\n",
        "text": b"short",
        "flood": b"All work and no play makes Jack a dull boy.\n" * 200_000,
        "length": struct.pack(">IB", 0x7FFFFFFF, Type.VERSION) + bytes(100),
        "garbled": struct.pack(">IBII", 9, Type.VERSION, 3, 0x7FFFFFFF),
        "nothing": b"",
    }
    server = Server(root)
    server.put(texts[argument])
    if argument == "nothing":
        reached(server)
    while server.receive() is not None:
        pass


@start
def mute(root: bytes, argument: str) -> None:
    """It greets and then says nothing, as long as there is a file DIRECTORY/mute."""
    server = Evil(root)
    server.greet()
    while os.path.exists(root + b"/mute"):
        if server.receive() is None:
            return
    server.serve()


@start
def quits(root: bytes, argument: str) -> None:
    """It ends at once, with words."""
    os.write(2, b"sftp-server: \x1b]0;title\x07 cannot do this\nsecond line\n")
    sys.exit(3)


class Talking(Evil):
    def handle(self, request_id: int, request: Request) -> None:
        if b"talk" in self.path_of(request):
            for _ in range(10):
                os.write(2, b"\x1b[2J a complaint, and another one\n" * 30_000)
        if b"talk-and-die" in self.path_of(request):
            sys.exit(4)
        super().handle(request_id, request)


@start
def talk(root: bytes, argument: str) -> None:
    """10 MB of stderr before every answer about a path with `talk` in it."""
    converse(Talking(root))


class Dribbling(Evil):
    def put(self, output: bytes) -> None:
        for at in range(len(output)):
            os.write(1, output[at : at + 1])


@start
def dribble(root: bytes, argument: str) -> None:
    """Every answer byte by byte."""
    converse(Dribbling(root))


class Reordering(Evil):
    def __init__(self, root: bytes) -> None:
        super().__init__(root)
        self.answers: list[bytes] = []

    def put(self, output: bytes) -> None:
        self.answers.append(output)

    def serve(self) -> None:
        self.release()
        while (received := self.receive()) is not None:
            self.handle(*sftp.decode_request(received))
            if not self.more_is_there():
                self.release()

    def release(self) -> None:
        while self.answers:
            super().put(self.answers.pop())


@start
def reorder(root: bytes, argument: str) -> None:
    """Requests are done in their order and answered in the reverse."""
    converse(Reordering(root))


ABOUT_THE_ROOT: dict[str, tuple[type[Request], Reply]] = {
    "relative": (sftp.Realpath, names((b"../somewhere", NO_ATTRIBUTES))),
    "two": (sftp.Realpath, names((b"/", NO_ATTRIBUTES), (b"/", NO_ATTRIBUTES))),
    "denied": (sftp.Stat, status(Status.PERMISSION_DENIED, b"\x1b[31mno")),
    "missing": (sftp.Stat, status(Status.NO_SUCH_FILE)),
    "file": (sftp.Stat, (Type.ATTRS, ATTRIBUTES.put(Attributes(0, 0, 0, 0o100644, 0, 0)))),
    "unknown": (sftp.Stat, (Type.ATTRS, NO_ATTRIBUTES)),
    "no_limits": (sftp.GetLimits, (Type.EXTENDED_REPLY, bytes(7))),
    "huge_limits": (sftp.GetLimits, (Type.EXTENDED_REPLY, b"\xff" * 32)),
    "small_limits": (sftp.GetLimits, (Type.EXTENDED_REPLY, struct.pack(">4Q", 1, 1, 1, 1))),
    "packet_limits": (sftp.GetLimits, (Type.EXTENDED_REPLY, struct.pack(">4Q", 1, BLOCK_BYTES, BLOCK_BYTES, 0))),
}


class Misleading(Evil):
    def __init__(self, root: bytes, argument: str) -> None:
        super().__init__(root)
        self._about, self._reply = ABOUT_THE_ROOT[argument]

    def honest(self, request: Request) -> Reply:
        return self._reply if isinstance(request, self._about) else super().honest(request)


@start
def root(root: bytes, argument: str) -> None:
    """The first questions of a mount, about its directory, are answered with nonsense."""
    converse(Misleading(root, argument))


def main() -> None:
    case, _, argument = sys.argv[1].partition(":")
    START[case](os.fsencode(sys.argv[2]), argument)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
