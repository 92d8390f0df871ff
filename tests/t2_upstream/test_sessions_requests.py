"""What a session asks a server for, in which order and to the byte, and what becomes of each answer.

The server is scripted: a real one refuses a shell or a terminal only when it is made to, and says nothing of the order.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
import threading
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from mux.errors import RemoteProtocolError
from mux.protocol.messages import NO_ESCAPE_CHARACTER, NewSession
from mux.protocol.wire import boolean, string, u32
from mux.upstream.engine import Engine
from mux.upstream.incoming import Incoming
from mux.upstream.sessions import Session
from mux.upstream.terminal import modes as encode_modes
from tests.t2_upstream.ends import one_turn, run, until
from tests.t2_upstream.passengers import PLAIN, Options, Told, read_all
from tests.t2_upstream.scripted import THEIRS, Server

TO = u32(THEIRS)
OK, NO = 99, 100


def asks(name: bytes, want: bool, body: bytes = b"") -> tuple[int, bytes]:
    return 98, TO + string(name) + boolean(want) + body


class Allowed:
    """The owner's word on -A and -X (`incoming.Incoming`)."""

    def __init__(self, *, agent: bool = False, x11: bytes | None = None) -> None:
        self.x11 = self
        self._agent = agent
        self._body = x11

    def agent(self) -> bool:
        return self._agent

    async def request(self) -> bytes | None:
        return self._body


class Scene:
    """A session on a scripted server: its number, what its client keeps of the descriptors, what it is told."""

    def __init__(self, server: Server, session: Session, told: Told, ours: tuple[int, int, int]) -> None:
        self.server = server
        self.session = session
        self.told = told
        self.to, self.out, self.err = ours
        self.left = set(ours)
        self.number = session.number

    def close(self, descriptor: int) -> None:
        """The client's side gives one up."""
        self.left.discard(descriptor)
        os.close(descriptor)

    def say(self, kind: int, body: bytes = b"") -> None:
        self.server.say(self.number, kind, body)

    def shown(self) -> bytes:
        """What is on stderr now, which must be something."""
        return os.read(self.err, 65536)


@asynccontextmanager
async def scene(
    options: Options = PLAIN, allowed: Allowed | None = None, on: int | None = None, **asked: Any
) -> AsyncIterator[Scene]:
    """A session that is open and has asked for everything; stdin is the terminal `on`, if given."""
    server, told = Server(), Told()
    stdin, to = os.pipe()
    out, stdout = os.pipe()
    err, stderr = os.pipe()
    if on is not None:
        os.close(stdin)
        stdin = os.dup(on)
    task = asyncio.ensure_future(
        Session.open(
            cast(Engine, server),
            options,
            NewSession(0, **asked),
            (stdin, stdout, stderr),
            told,
            cast(Incoming, allowed) if allowed is not None else None,
        )
    )
    await until(lambda: bool(server.sent))
    server.confirm(max(server.routes))
    session = await task
    made = Scene(server, session, told, (to, out, err))
    try:
        yield made
    finally:
        session.hang_up()
        for descriptor in made.left:
            os.close(descriptor)


def opening(window: int, packet: int) -> tuple[int, bytes]:
    return 90, string(b"session") + u32(11) + u32(window) + u32(packet)


@pytest.mark.parametrize(
    ("asked", "last"),
    [
        ({"command": b"ls -l"}, asks(b"exec", True, string(b"ls -l"))),
        ({}, asks(b"shell", True)),
        ({"command": b"x", "subsystem": True}, asks(b"subsystem", True, string(b"x"))),
        ({"subsystem": True}, asks(b"shell", True)),
    ],
)
def test_what_a_session_asks_for(asked: dict[str, Any], last: tuple[int, bytes]) -> None:
    async def main() -> None:
        async with scene(**asked) as one:
            assert one.server.take() == [opening(2 << 20, 32768), last]
            assert one.session.number == one.number

    run(main)


LATIN_1 = "caf\xe9".encode("latin-1")
OPENSSH, ANOTHER = "SSH-2.0-OpenSSH_9.2", "SSH-2.0-dropbear_2022.83"


async def unconfirmed(server: Server, **asked: Any) -> None:
    """Ask for a session that nobody confirms."""
    null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    options = Options(send_env=("LC_*",))
    message = NewSession(0, **asked)
    await Session.open(cast(Engine, server), options, message, (null[0], null[1], null[2]), Told())


@pytest.mark.parametrize(
    ("version", "asked"),
    [
        (OPENSSH, {"command": b"echo a\0b"}),
        (OPENSSH, {"command": b"sftp\0", "subsystem": True}),
        (OPENSSH, {"command": LATIN_1, "subsystem": True}),
        (OPENSSH, {"terminal": b"vt\0", "tty": True}),
        (OPENSSH, {"terminal": LATIN_1, "tty": True}),
        (OPENSSH, {"environment": (b"LC_ALL=a\0b",)}),
        (OPENSSH, {"environment": (b"LC_\0=a",)}),
        (OPENSSH, {"command": bytes(b"x" * 262_000)}),
        (ANOTHER, {"command": bytes(b"x" * 34_000)}),
        (ANOTHER, {"environment": (b"LC_ALL=" + b"x" * 40_000,)}),
    ],
)
def test_what_a_server_might_hang_up_over_is_not_asked(version: str, asked: dict[str, Any]) -> None:
    async def main() -> None:
        server = Server()
        server.version = version
        with pytest.raises(RemoteProtocolError, match=r"malformed|more than the server takes"):
            await unconfirmed(server, **asked)
        assert not server.sent and not server.routes

    run(main)


@pytest.mark.parametrize(
    ("version", "asked"),
    [
        (OPENSSH, {"command": b"ls " + LATIN_1}),
        (OPENSSH, {"command": bytes(b"x" * 200_000)}),
        (ANOTHER, {"command": bytes(b"x" * 32_000)}),
        (ANOTHER, {"environment": (b"LC_ALL=" + LATIN_1, b"HOME=a\0b")}),
    ],
)
def test_what_every_server_takes_is_asked(version: str, asked: dict[str, Any]) -> None:
    async def main() -> None:
        server = Server()
        server.version = version
        task = asyncio.ensure_future(unconfirmed(server, **asked))
        await until(lambda: bool(server.sent))
        task.cancel()
        await asyncio.wait([task])

    run(main)


def test_everything_in_its_order() -> None:
    async def main() -> None:
        user, terminal = pty.openpty()
        set_size(terminal, 24, 80, 640, 480)
        options = Options(send_env=("LC_*",), set_env=("A=b",))
        async with scene(
            options,
            Allowed(agent=True, x11=b"the body"),
            terminal,
            tty=True,
            x11=True,
            agent=True,
            terminal=b"vt52",
            command=b"top",
            environment=(b"LC_ALL=C", b"HOME=/"),
        ) as one:
            sent = one.server.take()
            modes = sent[3][1].partition(b"vt52")[2][16 + 4 :]
            assert sent == [
                opening(1 << 20, 16384),
                asks(b"x11-req", True, b"the body"),
                asks(b"auth-agent-req@openssh.com", False),
                asks(b"pty-req", True, string(b"vt52") + u32(80) + u32(24) + u32(640) + u32(480) + string(modes)),
                asks(b"env", False, string(b"LC_ALL") + string(b"C")),
                asks(b"env", False, string(b"A") + string(b"b")),
                asks(b"exec", True, string(b"top")),
            ]
            assert len(modes) % 5 == 1
        os.close(user)
        os.close(terminal)

    run(main)


def test_what_the_owner_does_not_allow_is_not_asked_for() -> None:
    async def main() -> None:
        for allowed in (None, Allowed()):
            async with scene(allowed=allowed, x11=True, agent=True, command=b"ls") as one:
                assert one.server.take()[1:] == [asks(b"exec", True, string(b"ls"))]

    run(main)


def test_modes_of_a_terminal() -> None:
    user, terminal = pty.openpty()
    attributes = termios.tcgetattr(terminal)
    attributes[6][termios.VERASE] = b"\x08"
    attributes[6][termios.VKILL] = b"\x00"
    attributes[3] &= ~termios.ECHO
    attributes[4] = attributes[5] = termios.B9600
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    encoded = encode_modes(terminal)
    assert encoded[-1] == 0
    modes = {code: int.from_bytes(encoded[at + 1 : at + 5]) for at, code in enumerate(encoded[:-1]) if at % 5 == 0}
    assert modes[128] == modes[129] == 9600
    assert (modes[1], modes[3], modes[4]) == (3, 8, 255)
    assert (modes[53], modes[51], modes[50], modes[72], modes[91]) == (0, 1, 1, 1, 1)
    os.close(user)
    os.close(terminal)


def test_no_terminal_has_no_modes_and_no_size() -> None:
    async def main() -> None:
        async with scene(tty=True, command=b"ls") as one:
            wanted = string(b"") + 4 * u32(0) + string(b"\0")
            assert one.server.take()[1] == asks(b"pty-req", True, wanted)

    run(main)


def test_a_file_is_asked_in_a_thread_whether_it_is_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie on a mount that hangs."""
    asked_in = []

    def modes(descriptor: int) -> bytes:
        asked_in.append(threading.current_thread())
        return encode_modes(descriptor)

    monkeypatch.setattr("mux.upstream.terminal.modes", modes)

    async def main() -> None:
        file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        user, terminal = pty.openpty()
        for descriptor in (file, terminal):
            async with scene(on=descriptor, tty=True, command=b"ls") as one:
                wanted = one.server.take()[1][1]
                assert (wanted.endswith(4 * u32(0) + string(b"\0"))) is (descriptor == file)
        for descriptor in (file, user, terminal):
            os.close(descriptor)
        assert [thread is threading.main_thread() for thread in asked_in] == [False, True]

    run(main)


@pytest.mark.parametrize(("asked", "kind"), [({"command": b"ls"}, b"exec"), ({}, b"shell")])
def test_a_request_that_failed_is_said_in_words(asked: dict[str, Any], kind: bytes) -> None:
    async def main() -> None:
        async with scene(**asked) as one:
            one.server.take()
            one.say(NO)
            assert one.shown() == kind + b" request failed on channel 0\r\n"
            assert one.server.take() == [(97, TO)]
            one.say(97)
            assert one.told.over.is_set()
            assert one.told.values == []

    run(main)


def test_a_refused_terminal_is_told_and_the_command_runs() -> None:
    async def main() -> None:
        async with scene(tty=True, command=b"ls") as one:
            one.server.take()
            one.say(NO)
            assert one.told.no_tty == 1
            assert one.shown() == b"PTY allocation request failed on channel 0\r\n"
            one.say(OK)
            one.say(94, string(b"out"))
            assert os.read(one.out, 10) == b"out"
            one.say(98, string(b"exit-status") + boolean(False) + u32(3))
            one.say(97)
            assert one.told.values == [3]
            assert one.told.over.is_set()

    run(main)


def test_a_refused_terminal_is_the_end_where_the_owner_insists() -> None:
    async def main() -> None:
        async with scene(Options(request_tty="force"), tty=True, command=b"ls") as one:
            one.server.take()
            one.say(NO)
            assert one.server.take() == [(97, TO)]
            assert one.told.no_tty == 1

    run(main)


def test_refused_x11_is_said_and_no_more() -> None:
    async def main() -> None:
        async with scene(allowed=Allowed(x11=b"body"), x11=True, command=b"ls") as one:
            one.server.take()
            one.say(NO)
            one.say(OK)
            assert one.shown() == b"X11 forwarding request failed on channel 0\r\n"
            assert one.server.take() == []

    run(main)


def test_a_session_that_is_lost_says_nothing_of_its_requests() -> None:
    async def main() -> None:
        async with scene(tty=True, command=b"ls") as one:
            assert one.session.channel is not None
            one.session.channel.lost("cut off")
            assert one.told.over.is_set()
            assert one.told.no_tty == 0
            os.set_blocking(one.err, False)
            assert os.read(one.err, 100) == b""

    run(main)


def test_exit_values_are_told_once() -> None:
    async def main() -> None:
        async with scene(command=b"ls") as one:
            one.server.take()
            one.say(98, string(b"exit-status") + boolean(True) + b"\0")
            one.say(98, string(b"exit-status") + boolean(True) + u32(2**32 - 1))
            one.say(98, string(b"exit-status") + boolean(False) + u32(3))
            assert one.told.values == [2**32 - 1]
            one.say(98, string(b"exit-signal") + boolean(True) + string(b"KILL"))
            one.say(98, string(b"keepalive@openssh.com") + boolean(True))
            one.say(98, string(b"xon-xoff") + boolean(False) + boolean(True))
            assert [kind for kind, _ in one.server.take()] == [NO, OK, OK, NO]

    run(main)


def test_who_reads_no_more_is_not_read_for() -> None:
    """OpenSSH's "eow": the command has closed its stdin, so its writer is to find out."""

    async def main() -> None:
        async with scene(command=b"ls") as one:
            one.server.take()
            one.say(98, string(b"eow@openssh.com") + boolean(False))
            with pytest.raises(BrokenPipeError):
                os.write(one.to, b"x")
            assert one.server.take() == []
            one.say(96)
            assert one.server.take() == [(97, TO)]

    run(main)


@pytest.mark.parametrize("version", ["SSH-2.0-OpenSSH_9.2", "SSH-2.0-dropbear_2022.83"])
def test_a_command_whose_output_nobody_reads(version: str) -> None:
    async def main() -> None:
        async with scene(command=b"yes") as one:
            one.server.version = version
            one.server.take()
            one.close(one.out)
            one.say(94, string(b"y\n"))
            told = [asks(b"eow@openssh.com", False)] if "OpenSSH" in version else []
            assert one.server.take() == told
            # What it still writes is thrown away, and the window for it opened again.
            for _ in range(40):
                one.say(94, string(bytes(32768)))
            assert {kind for kind, _ in one.server.take()} == {93}
            one.close(one.to)
            await until(lambda: bool(one.server.sent))
            assert one.server.take() == [(96, TO), (97, TO)]

    run(main)


def test_stdin_ends_and_output_goes_on() -> None:
    async def main() -> None:
        async with scene(command=b"sort") as one:
            one.server.take()
            os.write(one.to, b"b\na\n")
            one.close(one.to)
            await until(lambda: len(one.server.sent) == 2)
            assert one.server.take() == [(94, TO + string(b"b\na\n")), (96, TO)]
            one.say(94, string(b"a\nb\n"))
            one.say(96)
            assert os.read(one.out, 100) == b"a\nb\n"
            assert os.read(one.out, 100) == b""
            # Both directions have ended: closed from here, as OpenSSH does, and the exit value still heard.
            assert one.server.take() == [(97, TO)]
            one.say(98, string(b"exit-status") + boolean(False) + u32(9))
            assert not one.told.over.is_set()
            one.say(97)
            assert one.told.values == [9]
            assert one.told.over.is_set()

    run(main)


def test_the_end_waits_for_what_is_not_written_yet() -> None:
    async def main() -> None:
        async with scene(command=b"ls") as one:
            for _ in range(10):
                one.say(94, string(bytes(32768)))
            one.say(95, u32(1) + string(b"err"))
            one.say(95, u32(2) + string(b"of no known stream"))
            one.say(98, string(b"exit-status") + boolean(False) + u32(0))
            one.say(97)
            assert one.told.values == [0]
            assert one.shown() == b"err"
            await one_turn()
            await one_turn()
            assert not one.told.over.is_set()
            reading = asyncio.ensure_future(read_all(os.dup(one.out)))
            await one.told.over.wait()
            assert len(await reading) == 327_680

    run(main)


def test_a_size_is_told_when_it_has_changed() -> None:
    async def main() -> None:
        user, terminal = pty.openpty()
        set_size(terminal, 24, 80)
        async with scene(on=terminal, tty=True, command=b"top") as one:
            one.server.take()
            one.session.resize()
            assert one.server.take() == []
            set_size(terminal, 50, 132, 7, 8)
            one.session.resize()
            one.session.resize()
            size = u32(132) + u32(50) + u32(7) + u32(8)
            assert one.server.take() == [asks(b"window-change", False, size)]
        os.close(user)
        os.close(terminal)

    run(main)


def test_escapes() -> None:
    async def main() -> None:
        user, terminal = pty.openpty()
        tty.setraw(terminal)
        async with scene(on=terminal, tty=True, escape_character=ord("~"), command=b"top") as one:
            server = one.server
            server.take()
            os.write(user, b"ls ~.\r~~x\r")
            await until(lambda: bool(server.sent))
            assert server.take() == [(94, TO + string(b"ls ~.\r~x\r"))]
            for keys, shown in (
                (b"~?", b"~?\r\nSupported escape sequences:\r\n"),
                (b"~#", b"~#\r\nall about channels\r\n"),
                (b"~I", b"~I\r\nall about connection\r\n"),
                (b"~B", b"~B\r\n"),
                (b"~C", b"~C escape not available to multiplexed sessions\r\n"),
                (b"~\x1a", b"~^Z escape not available to multiplexed sessions\r\n"),
            ):
                os.write(user, keys)
                os.set_blocking(one.err, False)
                seen = b""
                while not seen.startswith(shown):
                    await one_turn()
                    try:
                        seen += os.read(one.err, 4096)
                    except BlockingIOError:
                        continue
            assert server.take() == [asks(b"break", False, u32(1000))]
            os.write(user, b"~R")
            await until(lambda: server.rekeys == 1)
            os.write(user, b"~.more")
            await one.told.over.wait()
            assert server.take() == [(97, TO)]
            assert os.read(one.err, 100) == b"~.\r\n"
            assert one.told.values == []
            one.say(98, string(b"exit-status") + boolean(False) + u32(0))
            one.say(97)
            assert one.told.values == []
            assert not server.routes
        os.close(user)
        os.close(terminal)

    run(main)


def test_an_escape_leaves_though_nothing_is_read_any_more() -> None:
    async def main() -> None:
        user, terminal = pty.openpty()
        tty.setraw(terminal)
        async with scene(on=terminal, tty=True, escape_character=ord("~"), command=b"top") as one:
            for _ in range(20):
                one.say(94, string(bytes(16384)))
                one.say(95, u32(1) + string(bytes(16384)))
            os.write(user, b"~.")
            await one.told.over.wait()
            assert os.read(one.out, 10)
        os.close(user)
        os.close(terminal)

    run(main)


@pytest.mark.parametrize("asked", [{"tty": True, "escape_character": NO_ESCAPE_CHARACTER}, {"tty": False}])
def test_no_escapes_where_there_are_none(asked: dict[str, Any]) -> None:
    async def main() -> None:
        async with scene(command=b"cat", **{"escape_character": ord("~"), **asked}) as one:
            one.server.take()
            os.write(one.to, b"~.~?")
            await until(lambda: bool(one.server.sent))
            assert one.server.take() == [(94, TO + string(b"~.~?"))]

    run(main)


@asynccontextmanager
async def typing(data: bytes) -> AsyncIterator[Scene]:
    """A session on a terminal where this was typed, and then b"done", which has arrived; nobody has read anything."""
    user, terminal = pty.openpty()
    tty.setraw(terminal)
    try:
        async with scene(on=terminal, tty=True, escape_character=ord("~"), command=b"cat") as one:
            one.server.take()
            await asyncio.to_thread(write_all, user, data + b"done")
            await until(lambda: b"".join(body for kind, body in one.server.sent if kind == 94).endswith(b"done"))
            yield one
    finally:
        os.close(user)
        os.close(terminal)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@pytest.mark.parametrize("escape", [b"~B", b"~R", b"~#", b"~I", b"~?", b"~C"])
def test_of_a_flood_of_escapes_only_a_few_are_obeyed(escape: bytes) -> None:
    async def main() -> None:
        async with typing(escape * 20_000) as one:
            breaks = [body for kind, body in one.server.sent if kind == 98]
            assert len(breaks) < 1000 and one.server.rekeys < 1000
            assert len(one.told.texts) < 1000 and one.session._own_bytes < 100_000
            assert breaks or one.server.rekeys or one.shown().startswith(escape)

    run(main)


@pytest.mark.parametrize("escape", [b"~B", b"~R"])
def test_no_escape_adds_to_what_is_too_much_for_the_connection(escape: bytes) -> None:
    async def main() -> None:
        user, terminal = pty.openpty()
        tty.setraw(terminal)
        async with scene(on=terminal, tty=True, escape_character=ord("~"), command=b"cat") as one:
            one.server.take()
            one.server.paused = True
            os.write(user, escape + b"key")
            await until(lambda: bool(one.server.sent))
            assert one.server.take() == [(94, TO + string(b"key"))]
            assert one.server.rekeys == 0
            one.server.resume()
            os.write(user, b"\r" + escape + b"key")
            await until(lambda: len(one.server.sent) > (escape == b"~B"))
            asked = [asks(b"break", False, u32(1000))] if escape == b"~B" else []
            assert one.server.take() == [*asked, (94, TO + string(b"\rkey"))]
            assert one.server.rekeys == (escape == b"~R")
        os.close(user)
        os.close(terminal)

    run(main)


def test_texts_that_nobody_reads_are_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.upstream.sessions.ESCAPES_PER_S", 1 << 20)

    async def main() -> None:
        user, terminal = pty.openpty()
        tty.setraw(terminal)
        async with scene(on=terminal, tty=True, escape_character=ord("~"), command=b"cat") as one:
            one.server.take()
            for _ in range(40):
                await asyncio.to_thread(os.write, user, b"~?" * 500)
            await asyncio.to_thread(os.write, user, b"done")
            await until(lambda: bool(one.server.sent))
            assert one.session._own_bytes < 300_000
            assert one.server.take() == [(94, TO + string(b"done"))]
        os.close(user)
        os.close(terminal)

    run(main)


def set_size(terminal: int, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, width, height))
