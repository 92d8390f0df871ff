"""Sessions through a real `ssh -M` to a real sshd: streams, ends, refusals.

A number in a name is that of the check in the list of what a joining side has to stand.
"""

from __future__ import annotations

import hashlib
import os
import signal
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from mux.downstream.openssh import Passenger, open_control
from mux.errors import ConnectionLost, ExitCode, JoinError
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import Sshd, sftp_server
from tests.t2_join.streams import in_trio, read_all, read_exactly, run, write_all

SFTP_INIT = struct.pack(">IBI", 5, 1, 3)


async def session(path: str, command: bytes, *, subsystem: bool = False) -> Passenger:
    connection = await open_control(path)
    return await connection.open_session(command, subsystem=subsystem)


@in_trio
async def test_01_and_03_greetings_and_the_pid_of_the_master(shared_master: Master) -> None:
    with await open_control(shared_master.control_path) as connection:
        assert await connection.alive() == shared_master.pid
        assert await connection.alive() == shared_master.pid


@in_trio
async def test_04_the_sftp_subsystem_answers(shared_master: Master) -> None:
    with await session(shared_master.control_path, b"sftp", subsystem=True) as stream:
        await write_all(stream, SFTP_INIT)
        length, kind, version = struct.unpack(">IBI", await read_exactly(stream, 9))
        assert (kind, version) == (2, 3)
        assert b"posix-rename@openssh.com" in await read_exactly(stream, length - 5)


@in_trio
async def test_05_two_sessions_are_two_control_connections_and_do_not_mix(shared_master: Master) -> None:
    first = await session(shared_master.control_path, b"cat")
    second = await session(shared_master.control_path, b"cat")
    with first, second:
        for stream, text in ((first, b"first"), (second, b"second"), (first, b"again")):
            await write_all(stream, text)
        assert await read_exactly(second, 6) == b"second"
        assert await read_exactly(first, 10) == b"firstagain"


@pytest.mark.parametrize("value", [0, 1, 44, 255])
@in_trio
async def test_06_exit_values(shared_master: Master, value: int) -> None:
    assert await run(shared_master.control_path, b"echo out; exit %d" % value) == (b"out\n", value, "")


@in_trio
async def test_06_no_exit_value_after_a_signal(shared_master: Master) -> None:
    assert await run(shared_master.control_path, b"kill -9 $$") == (b"", None, "")


@in_trio
async def test_07_a_session_too_many_is_refused_and_the_others_go_on(
    make_sshd: Callable[..., Sshd], make_master: Callable[..., Master]
) -> None:
    master = make_master(make_sshd(max_sessions=1))
    with await session(master.control_path, b"cat") as only:
        connection = await open_control(master.control_path)
        with pytest.raises(JoinError, match="Session open refused by peer") as refused:
            await connection.open_session(b"sftp", subsystem=True)
        assert refused.value.exit_code is ExitCode.REFUSED
        assert "MaxSessions" in refused.value.hint
        assert connection.fileno() < 0
        await write_all(only, b"alive")
        assert await read_exactly(only, 5) == b"alive"
    assert master.running


@in_trio
async def test_10_the_master_ends_while_a_session_is_open(
    sshd: Sshd, make_master: Callable[..., Master], control_path: str
) -> None:
    for number, end in enumerate([Master.exit, Master.kill]):
        master = make_master(sshd, control_path=f"{control_path}{number}")
        with await session(master.control_path, b"cat") as stream:
            await trio.to_thread.run_sync(end, master)
            assert await stream.receive_into([memoryview(bytearray(10))]) == 0
            assert await stream.wait_closed() is None
            with pytest.raises(ConnectionLost, match="takes no more data"):
                await write_all(stream, bytes(1 << 23))


@in_trio
async def test_11_a_frozen_master_is_not_waited_for(master: Master) -> None:
    connection = await open_control(master.control_path)
    master.freeze()
    with pytest.raises(JoinError, match=r"did not answer AliveCheck within 0\.2 s") as frozen:
        await connection.alive(deadline_s=0.2)
    assert frozen.value.exit_code is ExitCode.NO_ANSWER
    with pytest.raises(JoinError, match="does not greet") as frozen:
        await open_control(master.control_path, deadline_s=0.2)
    assert frozen.value.exit_code is ExitCode.NO_ANSWER
    master.thaw()
    with await open_control(master.control_path) as connection:
        assert await connection.alive() == master.pid


@in_trio
async def test_13_a_session_outlives_the_listening_socket(master: Master) -> None:
    with await session(master.control_path, b"cat") as stream:
        with await open_control(master.control_path) as connection:
            await connection.stop_listening()
        await write_all(stream, b"alive")
        assert await read_exactly(stream, 5) == b"alive"
        with pytest.raises(JoinError, match="No such file") as gone:
            await open_control(master.control_path)
        assert gone.value.exit_code is ExitCode.NOTHING_TO_JOIN


@in_trio
async def test_19_what_an_sftp_server_says_on_stderr_is_kept(shared_master: Master) -> None:
    # Run as a command: sshd throws away what a subsystem says on stderr (session.c, do_exec_no_pty).
    with await session(shared_master.control_path, f"{sftp_server()} -e -l DEBUG".encode()) as stream:
        await write_all(stream, SFTP_INIT + b"\xff" * 5)
        await read_all(stream)
        assert await stream.wait_closed() == 11
        assert "client version 3" in stream.stderr_text()
        assert "bad message" in stream.stderr_text()


@in_trio
async def test_19_stderr_is_bounded_and_fit_to_be_shown(shared_master: Master) -> None:
    command = b"printf '\\033[31mred\\nsecond\\xff\\n' >&2"
    assert await run(shared_master.control_path, command) == (b"", 0, "\\x1b[31mred; second\\xff")
    _, _, text = await run(shared_master.control_path, b"yes 0123456789 | head -n 100000 >&2; echo end >&2")
    assert text.endswith("0123456789; end")
    assert len(text) < 10_000


@in_trio
async def test_19_a_flood_on_stderr_holds_nothing_up(shared_master: Master) -> None:
    command = b"head -c 20000000 /dev/zero >&2; echo first; head -c 20000000 /dev/zero >&2; echo second; exit 5"
    output, value, _ = await run(shared_master.control_path, command)
    assert (output, value) == (b"first\nsecond\n", 5)


@in_trio
async def test_19_stderr_after_the_end_of_output_does_not_hold_up_the_end(shared_master: Master) -> None:
    assert (await run(shared_master.control_path, b"exec >&-; head -c 20000000 /dev/zero >&2; exit 6"))[1] == 6


@in_trio
async def test_20_a_missing_subsystem_is_an_end_without_a_value(
    make_sshd: Callable[..., Sshd], make_master: Callable[..., Master]
) -> None:
    master = make_master(make_sshd(sftp=None))
    with await session(master.control_path, b"sftp", subsystem=True) as stream:
        assert await read_all(stream) == b""
        assert await stream.wait_closed() is None
        assert await stream.wait_closed() is None
    assert master.running


@in_trio
async def test_21_the_environment_passes_both_lists_or_not_at_all(
    sshd: Sshd, make_master: Callable[..., Master], control_path: str
) -> None:
    options = ["-oSendEnv=LC_LISTED", "-oSendEnv=UNLISTED"]
    master = make_master(sshd, control_path=control_path, options=options)
    output, _, _ = await run(
        master.control_path,
        b'echo "$LC_LISTED,$LC_ELSE,$UNLISTED"',
        environment=(b"LC_LISTED=yes", b"LC_ELSE=not by the master", b"UNLISTED=not by the server"),
    )
    assert output == b"yes,,\n"


@in_trio
async def test_24_no_is_told_as_a_persons_answer(
    sshd: Sshd, make_master: Callable[..., Master], control_path: str
) -> None:
    # The second -M is `ControlMaster ask`. Without a way to ask anybody the answer is no.
    master = make_master(sshd, control_path=control_path, options=["-M"])
    connection = await open_control(master.control_path)
    assert await connection.alive() == master.pid
    with pytest.raises(JoinError, match="Permission denied") as denied:
        await connection.open_session(b"true", subsystem=False)
    assert denied.value.exit_code is ExitCode.DENIED
    assert "ControlMaster ask" in denied.value.hint


class Pattern:
    """Endless bytes that do not repeat within any buffer on the way."""

    def __init__(self) -> None:
        self.sent = 0
        self._block = os.urandom(1 << 20)
        self._twice = memoryview(self._block * 2)

    def send_nowait(self, stream: Passenger) -> int:
        start = self.sent % len(self._block)
        taken = stream.send_nowait([self._twice[start : start + len(self._block)]])
        self.sent += taken
        return taken

    def digest(self, count: int) -> bytes:
        whole, part = divmod(count, len(self._block))
        return hashlib.sha256(self._block * whole + self._block[:part]).digest()


@in_trio
async def test_28_full_in_both_directions_and_then_read(shared_master: Master) -> None:
    pattern = Pattern()
    with await session(shared_master.control_path, b"cat") as stream:
        # Nobody reads: our sockets, the channel's windows and the pipes of the server fill up, until nothing moves.
        before = -1
        while before < pattern.sent or pattern.sent <= 1 << 22:
            before = pattern.sent
            with trio.move_on_after(0.5):
                while True:
                    if not pattern.send_nowait(stream):
                        await stream.wait_writable()
        assert hashlib.sha256(await read_exactly(stream, pattern.sent)).digest() == pattern.digest(pattern.sent)


@in_trio
async def test_28_both_directions_at_once(shared_master: Master) -> None:
    pattern = Pattern()
    least = 64 << 20
    received = hashlib.sha256()
    count = 0

    async def send() -> None:
        while pattern.sent < least:
            if not pattern.send_nowait(stream):
                await stream.wait_writable()

    with await session(shared_master.control_path, b"cat") as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            room = bytearray(1 << 18)
            while count < least:
                new = await stream.receive_into([memoryview(room)])
                received.update(memoryview(room)[:new])
                count += new
        received.update(await read_exactly(stream, pattern.sent - count))
    assert received.digest() == pattern.digest(pattern.sent)


@in_trio
async def test_buffers_are_filled_and_sent_in_order(shared_master: Master) -> None:
    with await session(shared_master.control_path, b"cat") as stream:
        assert stream.send_nowait([b"ab", bytearray(b"cd"), memoryview(b"ef")]) == 6
        room = memoryview(bytearray(12))
        received = 0
        while received < 6:
            cuts = [room[received : received + 1], room[received + 1 : received + 3], room[received + 3 :]]
            received += await stream.receive_into(cuts)
        assert bytes(room) == b"abcdef" + bytes(6)
        many = [b"x"] * 3000
        taken = stream.send_nowait(many)
        assert 0 < taken <= 1024
        assert await read_exactly(stream, taken) == b"x" * taken


@in_trio
async def test_whoever_waits_is_told_when_the_session_is_closed_here(shared_master: Master) -> None:
    told = []

    async def wait(what: Callable[[], Any], words: str = "closed on this side") -> None:
        with pytest.raises(ConnectionLost, match=words):
            await what()
        told.append(what)

    async def write_for_ever() -> None:
        while True:
            if not stream.send_nowait([bytes(1 << 16)]):
                await stream.wait_writable()

    # It neither answers nor looks at its input: there is nothing to read, and soon no room for more.
    stream = await session(shared_master.control_path, b"printf '%07d\\n' $$; exec sleep 100")
    remote = processes.known(int(await read_exactly(stream, 8)))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, lambda: stream.receive_into([memoryview(bytearray(1))]))
            # The second is what it finds when there is room once more at the moment of the close.
            nursery.start_soon(wait, write_for_ever, "closed on this side|takes no more data: Bad file descriptor")
            nursery.start_soon(wait, stream.wait_closed)
            await trio.testing.wait_all_tasks_blocked(0.3)
            stream.close()
            stream.close()
    finally:  # nobody else would: it does not look at its input
        processes.end([remote])
    assert len(told) == 3
    with pytest.raises(ConnectionLost):
        stream.send_nowait([b"x"])
    with pytest.raises(ConnectionLost):
        await stream.receive_into([memoryview(bytearray(1))])
    with pytest.raises(ConnectionLost):
        await stream.wait_writable()
    with pytest.raises(ConnectionLost):
        await stream.wait_closed()
    assert stream.stderr_text() == ""


@in_trio
async def test_a_session_that_does_not_end_is_not_waited_for(shared_master: Master) -> None:
    stream = await session(shared_master.control_path, b"cat")
    with stream, pytest.raises(ConnectionLost, match="did not end"):
        await stream.wait_closed(deadline_s=0.1)


@in_trio
async def test_the_signal_of_a_broken_pipe_is_not_needed(shared_master: Master) -> None:
    default = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with await session(shared_master.control_path, b"exit 0") as stream:
            assert await read_all(stream) == b""
            with pytest.raises(ConnectionLost, match="takes no more data"):
                await write_all(stream, bytes(1 << 23))
    finally:
        signal.signal(signal.SIGPIPE, default)
