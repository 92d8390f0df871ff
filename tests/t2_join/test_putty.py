"""Sessions through a real `plink -share -N` to a real sshd. A number in a name is that of the check in the list of what
a downstream of PuTTY has to stand."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from mux.downstream.passenger import SessionStream
from mux.downstream.putty import open_session
from mux.errors import ConnectionLost, ExitCode, JoinError
from mux.protocol.bare_session import WINDOW_BYTES
from mux.rendezvous import putty
from mux.rendezvous.sockets import Found
from tests.support import processes
from tests.support import putty as tools
from tests.support.putty import PuttyUpstream
from tests.support.putty_tap import Tap
from tests.support.sshd import Sshd, sftp_server
from tests.support.waiting import wait_until
from tests.t2_join.streams import in_trio, read_all, read_exactly, write_all

SFTP_INIT = b"\x00\x00\x00\x05\x01\x00\x00\x00\x03"
EVENT_DEADLINE_S = 20.0


@pytest.fixture
def upstream(shared_putty: PuttyUpstream) -> PuttyUpstream:
    """That of the whole run; do not stop or kill it."""
    return shared_putty


@pytest.fixture
def make_upstream(stack: ExitStack) -> Callable[..., PuttyUpstream]:
    return lambda *positional, **arguments: stack.enter_context(PuttyUpstream(*positional, **arguments))


async def run(path: str, command: bytes, **arguments: object) -> tuple[bytes, int | None, str]:
    """A command's output, exit value and stderr."""
    with await open_session(path, command, subsystem=False, **arguments) as stream:  # type: ignore[arg-type]
        output = await read_all(stream)
        return output, await stream.wait_closed(), stream.stderr_text()


# -- finding it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "user", "port", "name"),
    [
        ("{}.invalid", "me", 22, "me@{}.invalid"),
        ("{}.INVALID", "me", 2222, "me@{}.INVALID:2222"),
        ("[fe80::{}]", "me", 2222, "me@fe80::{}:2222"),
        ("[{}]", "me", 22, "me@[{}]"),
        ("{}.invalid", None, 2222, "{local}@{}.invalid:2222"),
    ],
)
def test_d1_the_names_are_those_of_plink(
    sshd: Sshd, stack: ExitStack, host: str, user: str | None, port: int, name: str
) -> None:
    unique = str(os.getpid() % 10000)
    host, name = host.format(unique), name.format(unique, local=putty.local_user())
    putty.make_directory(putty.parent_directory())
    putty.make_salt(putty.parent_directory())
    directory = putty.directory_of(name)
    tools.remove_directory(directory)
    stack.callback(tools.remove_directory, directory)
    where = host if user is None else f"{user}@{host}"
    assert tools.run(sshd, "plink", "-batch", "-shareexists", "-P", str(port), where).returncode == 1
    assert os.listdir(directory) == ["lock"]  # plink leaves that behind, wherever it looked


def test_d1_the_name_without_a_user_is_that_of_psftp(sshd: Sshd, stack: ExitStack) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        directory = putty.directory_of(putty.connection_name("127.0.0.1", None, port))
        stack.callback(tools.remove_directory, directory)
        assert tools.run(sshd, "psftp", "-batch", "-share", "-P", str(port), "127.0.0.1").returncode == 1
    assert os.listdir(directory) == ["lock"]


def test_d1_a_live_upstream_is_found_and_not_disturbed(upstream: PuttyUpstream) -> None:
    for _ in range(20):
        probe = putty.probe(upstream.name)
        assert (probe.found, probe.path, probe.pid) == (Found.LIVE, upstream.path, upstream.pid)
    assert upstream.path in putty.existing()
    assert upstream.plink("echo", "alive").stdout == "alive\n"


@in_trio
async def test_d2_what_is_left_over_is_left_alone(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream]
) -> None:
    upstream = make_upstream(make_sshd())
    assert putty.probe(upstream.name).found is Found.LIVE
    upstream.kill()
    before = {name: os.lstat(os.path.join(upstream.directory, name)) for name in os.listdir(upstream.directory)}
    assert before.keys() == {"lock", "socket"}
    assert putty.probe(upstream.name).found is Found.STALE
    with pytest.raises(JoinError, match="Connection refused") as gone:
        await open_session(upstream.path, b"true", subsystem=False)
    assert gone.value.exit_code is ExitCode.NOTHING_TO_JOIN
    assert {name: os.lstat(os.path.join(upstream.directory, name)) for name in before} == before
    tools.remove_directory(upstream.directory)
    assert putty.probe(upstream.name).found is Found.ABSENT
    with pytest.raises(JoinError, match="No such file") as gone:
        await open_session(upstream.path, b"true", subsystem=False)
    assert gone.value.exit_code is ExitCode.NOTHING_TO_JOIN


# -- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 44, 255])
@in_trio
async def test_exit_values_and_both_outputs(upstream: PuttyUpstream, value: int) -> None:
    command = b"echo out; echo oops >&2; exit %d" % value
    assert await run(upstream.path, command) == (b"out\n", value, "oops")


@in_trio
async def test_no_exit_value_after_a_signal(upstream: PuttyUpstream) -> None:
    assert await run(upstream.path, b"kill -9 $$") == (b"", None, "")


@in_trio
async def test_the_sftp_subsystem_answers(upstream: PuttyUpstream) -> None:
    with await open_session(upstream.path, b"sftp", subsystem=True) as stream:
        await write_all(stream, SFTP_INIT)
        length = int.from_bytes(await read_exactly(stream, 4), "big")
        answer = await read_exactly(stream, length)
        assert answer[:5] == b"\x02\x00\x00\x00\x03"
        assert b"posix-rename@openssh.com" in answer


@in_trio
async def test_a_missing_subsystem_is_an_end_without_a_value(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream]
) -> None:
    upstream = make_upstream(make_sshd(sftp=None))
    with await open_session(upstream.path, b"sftp", subsystem=True) as stream:
        assert await read_all(stream) == b""
        assert await stream.wait_closed() is None
        with pytest.raises(ConnectionLost, match="takes no more data"):
            stream.send_nowait([b"x"])
    assert upstream.running


@in_trio
async def test_the_environment_that_the_server_takes(upstream: PuttyUpstream) -> None:
    environment = (b"LC_LISTED=yes", b"UNLISTED=no")
    assert await run(upstream.path, b'echo "$LC_LISTED,$UNLISTED"', environment=environment) == (b"yes,\n", 0, "")


@in_trio
async def test_a_flood_on_stderr_holds_nothing_up(upstream: PuttyUpstream) -> None:
    command = b"head -c 20000000 /dev/zero >&2; echo first; head -c 20000000 /dev/zero >&2; echo second; exit 5"
    output, value, text = await run(upstream.path, command)
    assert (output, value) == (b"first\nsecond\n", 5)
    assert len(text) < 20_000


@in_trio
async def test_stderr_after_the_end_of_output_does_not_hold_up_the_end(upstream: PuttyUpstream) -> None:
    assert (await run(upstream.path, b"exec >&-; head -c 20000000 /dev/zero >&2; exit 6"))[1] == 6


@in_trio
async def test_d3_a_hundred_megabytes_each_way(upstream: PuttyUpstream) -> None:
    """Both at once, and what comes back is what went."""
    block = os.urandom(1 << 20)
    count = 100
    came = hashlib.sha256()

    async def send() -> None:
        for _ in range(count):
            await write_all(stream, block)

    with await open_session(upstream.path, b"cat", subsystem=False) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            room = memoryview(bytearray(1 << 18))
            left = count << 20
            while left:
                received = await stream.receive_into([room[:1000], room[1000:]])
                came.update(room[:received])
                left -= received
    assert came.digest() == hashlib.sha256(block * count).digest()


@in_trio
async def test_a_writer_that_nobody_reads_for_goes_on(upstream: PuttyUpstream) -> None:
    """The server's window is opened by packets that come in, which then the writer takes."""
    data = os.urandom(1 << 20) * 30
    with await open_session(upstream.path, b"head -c %d | sha256sum" % len(data), subsystem=False) as stream:
        await write_all(stream, data)
        assert (await read_all(stream)).split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert await stream.wait_closed() == 0


@in_trio
async def test_output_that_a_writer_had_to_take_is_kept_in_order(upstream: PuttyUpstream) -> None:
    data = os.urandom(1 << 20) * 3
    with await open_session(upstream.path, b"cat", subsystem=False) as stream:
        await write_all(stream, data)  # more than the window: `cat` answers meanwhile
        assert await read_exactly(stream, len(data)) == data


@in_trio
async def test_d5_the_whole_window_is_used(upstream: PuttyUpstream, control_path: str) -> None:
    """Nobody reads: as much comes as was offered, and no more."""
    total = 3 * WINDOW_BYTES
    with Tap(control_path, upstream.path) as tap:
        with await open_session(control_path, b"head -c %d /dev/zero" % total, subsystem=False) as stream:
            with trio.move_on_after(EVENT_DEADLINE_S):
                while tap.conversations[0].down_data_bytes < WINDOW_BYTES:
                    stream.stderr_text()  # takes what is there
                    await trio.sleep(0.01)
            for _ in range(20):
                stream.stderr_text()
                await trio.sleep(0.01)
            assert tap.conversations[0].down_data_bytes == WINDOW_BYTES
            assert len(await read_all(stream)) == total
        tap.check()


@in_trio
async def test_polling_in_place(upstream: PuttyUpstream) -> None:
    readable, writable = os.pipe()
    try:
        with await open_session(upstream.path, b"cat", subsystem=False) as stream:
            await write_all(stream, b"x")
            assert await read_exactly(stream, 1) == b"x"
            while stream.poll_within(0.05, readable):  # what the server says of windows
                assert stream.receive_nowait([memoryview(bytearray(1))]) is None
            assert stream.send_nowait([b"echo"]) == 4
            room = memoryview(bytearray(2))
            while not (count := stream.receive_nowait([room])):
                stream.poll_within(5.0, readable)
            assert bytes(room[:count]) == b"ec"
            assert stream.poll_within(0, readable)  # the rest was received with it
            assert stream.receive_nowait([room]) == 2
            os.write(writable, b"x")
            assert not stream.poll_within(5.0, readable)
    finally:
        os.close(readable)
        os.close(writable)


@in_trio
async def test_closing_wakes_who_waits(upstream: PuttyUpstream) -> None:
    errors: list[ConnectionLost] = []

    async def expect_loss(wait: Callable[[SessionStream], Awaitable[object]]) -> None:
        try:
            await wait(stream)
        except ConnectionLost as error:
            errors.append(error)

    async def write_for_ever(stream: SessionStream) -> None:
        while True:
            if not stream.send_nowait([bytes(1 << 16)]):
                await stream.wait_writable()

    stream = await open_session(upstream.path, b"printf '%07d\\n' $$; exec sleep 100", subsystem=False)
    remote = processes.known(int(await read_exactly(stream, 8)))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_loss, lambda stream: stream.receive_into([memoryview(bytearray(1))]))
            nursery.start_soon(expect_loss, write_for_ever)
            await trio.testing.wait_all_tasks_blocked(0.3)
            stream.close()
            stream.close()
    finally:  # nobody else would: it does not look at its input
        processes.end([remote])
    assert len(errors) == 2
    with pytest.raises(ConnectionLost):
        stream.send_nowait([b"x"])
    with pytest.raises(ConnectionLost):
        stream.poll_within(0)
    with pytest.raises(ConnectionLost):
        stream.receive_nowait([memoryview(bytearray(1))])


# -- what must not be sent --------------------------------------------------------------------------------------------


@in_trio
async def test_d4_d10_d11_a_thousand_sessions_and_nothing_wrong_on_the_wire(
    upstream: PuttyUpstream, control_path: str
) -> None:
    limit = trio.CapacityLimiter(8)
    servers_numbers = set()

    async def one(number: int) -> None:
        async with limit:
            with await open_session(control_path, b"cat", subsystem=False) as stream:
                if number % 3:
                    await write_all(stream, b"%d" % number)
                if number % 3 == 2:
                    assert await read_exactly(stream, len(b"%d" % number)) == b"%d" % number

    with Tap(control_path, upstream.path) as tap:
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(one, number)
        wait_until(lambda: all(97 in talk.sent() for talk in tap.conversations), "every session is closed")
        tap.check()
        assert len(tap.conversations) == 1000
        for conversation in tap.conversations:
            servers_numbers |= set(conversation.numbers)
    # D16: the server's numbers are used again, and nobody was mixed up.
    assert max(servers_numbers) < 100
    assert upstream.running


@in_trio
async def test_d4_d11_bulk_both_ways_and_nothing_wrong_on_the_wire(upstream: PuttyUpstream, control_path: str) -> None:
    data = os.urandom(1 << 20) * 20
    with Tap(control_path, upstream.path) as tap:
        with await open_session(control_path, b"cat; echo end >&2; exit 3", subsystem=False) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_all, stream, data)
                assert await read_exactly(stream, len(data)) == data
        tap.check()
        sent = tap.conversations[0].sent()
    assert sent[94] >= len(data) // 16384
    assert 10 < sent[93] < 200


@in_trio
async def test_d18_a_byte_at_a_time(upstream: PuttyUpstream, control_path: str) -> None:
    with Tap(control_path, upstream.path, piece_bytes=1) as tap:
        assert await run(control_path, b"seq 3000; echo oops >&2; exit 9") == (
            "".join(f"{number}\n" for number in range(1, 3001)).encode(),
            9,
            "oops",
        )
        tap.check()


# -- how it ends ------------------------------------------------------------------------------------------------------


@in_trio
async def test_d6_an_upstream_that_is_not_logged_in_yet(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mux.downstream.putty.SAY_WAITING_S", 0.05)
    server = make_sshd()
    listener = processes.known(server.pid)
    processes.send_signal(listener, signal.SIGSTOP)
    upstream = make_upstream(server, wait=False)
    upstream.wait_said("Sharing this connection at")  # it listens before it has logged in
    waiting = f"waiting for the PuTTY upstream to log in (process {upstream.pid})"
    said: list[str] = []
    with pytest.raises(JoinError, match="has not logged in yet") as late:
        await open_session(upstream.path, b"true", subsystem=False, deadline_s=2.0, say=said.append)
    assert late.value.exit_code is ExitCode.NO_ANSWER
    assert said == [waiting]
    assert putty.probe(upstream.name, putty.Patience(0.1)).found is Found.FROZEN
    results = []

    async def join() -> None:
        results.append(await run(upstream.path, b"echo here", deadline_s=30.0, say=said.append))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        while len(said) < 2:
            await trio.sleep(0.01)
        processes.send_signal(listener, signal.SIGCONT)
    assert results == [(b"here\n", 0, "")]
    assert said == [waiting] * 2


@in_trio
async def test_d6_an_upstream_that_fails_to_log_in(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream]
) -> None:
    server = make_sshd()
    listener = processes.known(server.pid)
    processes.send_signal(listener, signal.SIGSTOP)
    (server.directory / "authorized_keys").write_text("")
    upstream = make_upstream(server, wait=False)
    upstream.wait_said("Sharing this connection at")  # it listens before it has logged in
    said: list[str] = []
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            while not said:
                await trio.sleep(0.01)
            processes.send_signal(listener, signal.SIGCONT)

        nursery.start_soon(go_on)
        with pytest.raises(JoinError, match="hung up: it did not log in") as failed:
            await open_session(upstream.path, b"true", subsystem=False, deadline_s=30.0, say=said.append)
    assert failed.value.exit_code is ExitCode.NOTHING_TO_JOIN


@in_trio
async def test_d7_an_upstream_that_is_killed_in_mid_read(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream]
) -> None:
    upstream = make_upstream(make_sshd())
    with await open_session(upstream.path, b"cat /dev/zero", subsystem=False) as stream:
        room = memoryview(bytearray(1 << 16))
        for _ in range(100):
            assert await stream.receive_into([room])
        upstream.kill()
        with pytest.raises(ConnectionLost, match="PuTTY upstream is lost"):
            while await stream.receive_into([room]):
                pass
        assert await stream.wait_closed() is None
        with pytest.raises(ConnectionLost):
            stream.send_nowait([b"x"])
        await stream.wait_writable()


@in_trio
async def test_d8_an_upstream_whose_own_session_ends_stays_for_us(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream], remote_dir: Path
) -> None:
    flag = remote_dir / "go"
    command = f"while [ ! -e {flag} ]; do sleep 0.05; done; exit 5"
    upstream = make_upstream(make_sshd(), command=[command])
    with await open_session(upstream.path, b"cat", subsystem=False) as stream:
        flag.touch()
        await trio.to_thread.run_sync(upstream.wait_said, "Main session channel closed")
        await write_all(stream, b"still here")
        assert await read_exactly(stream, 10) == b"still here"
        assert upstream.running
    assert await trio.to_thread.run_sync(upstream.wait_ended) == 5
    assert not os.path.exists(upstream.directory)


CLIENT = """
import sys, trio
from mux.downstream.putty import open_session
async def main():
    stream = await open_session(sys.argv[1], b"echo $$; exec cat", subsystem=False)
    room = bytearray(100)
    count = await stream.receive_into([memoryview(room)])
    print(room[:count].decode(), flush=True)
    await trio.sleep_forever()
trio.run(main)
"""


def test_d9_when_we_are_killed_the_upstream_lives(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream]
) -> None:
    upstream = make_upstream(make_sshd())
    command = [sys.executable, "-c", CLIENT, upstream.path]
    with processes.running(command, stdout=subprocess.PIPE, cwd=processes.CHECKOUT) as client:
        assert client.stdout is not None
        remote = processes.known(int(client.stdout.readline()))
        assert remote.running
        client.kill()
    upstream.wait_said("downstream #1: disconnected")
    assert not processes.wait_ended([remote], EVENT_DEADLINE_S)
    assert upstream.running
    assert upstream.plink("echo", "alive").stdout == "alive\n"


# -- company ----------------------------------------------------------------------------------------------------------


@in_trio
async def test_d15_d22_two_sessions_plink_and_psftp_at_once(upstream: PuttyUpstream, remote_dir: Path) -> None:
    data = os.urandom(3 << 20)
    (remote_dir / "file").write_bytes(data)
    got = remote_dir / "got"
    outcomes: list[tuple[bytes, int | None, str]] = []
    statuses: list[int] = []

    async def ours() -> None:
        outcomes.append(await run(upstream.path, f"cat {remote_dir}/file".encode()))

    async def theirs(call: Callable[[], subprocess.CompletedProcess[str]]) -> None:
        statuses.append((await trio.to_thread.run_sync(call)).returncode)

    async with trio.open_nursery() as nursery:
        sftp = await open_session(upstream.path, sftp_server().encode(), subsystem=False)
        nursery.start_soon(ours)
        nursery.start_soon(ours)
        nursery.start_soon(theirs, lambda: upstream.plink(f"sha256sum {remote_dir}/file"))
        nursery.start_soon(theirs, lambda: upstream.psftp(f"get {remote_dir}/file {got}"))
        await write_all(sftp, SFTP_INIT)
        assert await read_exactly(sftp, 9)
        sftp.close()
    assert outcomes == [(data, 0, "")] * 2
    assert statuses == [0, 0]
    assert got.read_bytes() == data


@in_trio
async def test_many_who_read_at_once_do_not_stall_the_upstream(upstream: PuttyUpstream, remote_dir: Path) -> None:
    """With packets of 32 KiB an upstream stops reading from the server for ever, within some ten of these rounds."""
    (remote_dir / "file").write_bytes(os.urandom(3 << 20))

    async def read() -> None:
        output, value, _ = await run(upstream.path, f"cat {remote_dir}/file".encode())
        assert (len(output), value) == (3 << 20, 0)

    for _ in range(40):
        with trio.fail_after(EVENT_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(read)


@in_trio
async def test_d17_a_session_too_many_is_refused_and_the_others_go_on(
    make_sshd: Callable[..., Sshd], make_upstream: Callable[..., PuttyUpstream]
) -> None:
    upstream = make_upstream(make_sshd(max_sessions=1))
    with await open_session(upstream.path, b"cat", subsystem=False) as only:
        for _ in range(3):
            with pytest.raises(JoinError, match="the server refused a session: open failed") as refused:
                await open_session(upstream.path, b"true", subsystem=False)
            assert refused.value.exit_code is ExitCode.REFUSED
            assert "MaxSessions" in refused.value.hint
        await write_all(only, b"alive")
        assert await read_exactly(only, 5) == b"alive"
    assert upstream.running


def test_d20_looking_never_holds_up_a_plink(upstream: PuttyUpstream) -> None:
    stop = threading.Event()
    found = set()

    def look() -> None:
        while not stop.is_set():
            found.add(putty.probe(upstream.name, putty.Patience(EVENT_DEADLINE_S)).found)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(10):
            assert upstream.plink("-shareexists", timeout_s=60).returncode == 0
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
    assert found == {Found.LIVE}
