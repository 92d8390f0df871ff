"""Sessions of commands on a real server: what they read, write, return, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.protocol.messages import NewSession
from mux.upstream.asking import environment
from mux.upstream.channels import OpenRefused
from mux.upstream.sessions import Session
from tests.support import processes
from tests.support.sshd import Sshd
from tests.t2_upstream.ends import flags, run, until
from tests.t2_upstream.passengers import PLAIN, Options, Outcome, Told, command, connected, read_all, start


@pytest.mark.parametrize("value", [0, 1, 5, 44, 255])
def test_exit_values_and_both_streams(sshd: Sshd, value: int) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            ended = await command(engine, b"echo out; echo err >&2; exit %d" % value)
            assert ended == Outcome(value, b"out\n", b"err\n")

    run(main)


def test_a_shell_reads_its_script(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            assert await command(engine, b"", b"echo in a shell; exit 3\n") == Outcome(3, b"in a shell\n", b"")

    run(main)


def test_much_goes_there_and_back(sshd: Sshd) -> None:
    data = os.urandom(1 << 20) * 20

    async def main() -> None:
        async with connected(sshd) as engine:
            assert await command(engine, b"cat", data) == Outcome(0, data, b"")
            assert await command(engine, b"cat >&2", data) == Outcome(0, b"", data)

    run(main)


def test_much_goes_there_and_back_while_keys_change(sshd: Sshd) -> None:
    data = os.urandom(1 << 20) * 10

    async def main() -> None:
        async with connected(sshd, rekey_bytes=1 << 20) as engine:
            assert await command(engine, b"cat", data) == Outcome(0, data, b"")
            assert engine.facts().rekeys > 2

    run(main)


def test_under_a_cipher_that_has_no_fast_path(sshd: Sshd) -> None:
    data = os.urandom(1 << 20) * 5

    async def main() -> None:
        async with connected(sshd, encryption_algs=["aes128-ctr"], compression_algs=["zlib@openssh.com"]) as engine:
            assert await command(engine, b"cat", data) == Outcome(0, data, b"")

    run(main)


def test_many_at_a_time(sshd: Sshd) -> None:
    data = os.urandom(300_000)

    async def main() -> None:
        async with connected(sshd) as engine:
            # Each pipe of theirs takes a thread of the test.
            for _ in range(3):
                ended = await asyncio.gather(*(command(engine, b"cat; exit %d" % number, data) for number in range(6)))
                assert ended == [Outcome(number, data, b"") for number in range(6)]

    run(main)


def test_killed_by_a_signal_it_has_no_exit_value(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            assert await command(engine, b"echo so far; kill -9 $$") == Outcome(None, b"so far\n", b"")

    run(main)


def test_streams_closed_early_do_not_lose_the_exit_value(sshd: Sshd) -> None:
    """With stdin at its end as well, both directions end long before the command does."""
    program = b"exec sh -c 'exec >/dev/null 2>&1; sleep 0.3; exit 44'"

    async def main() -> None:
        async with connected(sshd) as engine:
            assert await command(engine, program) == Outcome(44, b"", b"")

    run(main)


def test_a_process_in_the_background_that_holds_stdout(sshd: Sshd, tmp_path: Path) -> None:
    """As with plain ssh: the exit value is known at once, and the end comes with the last who could write."""
    go = tmp_path / "go"
    program = b"(while [ ! -e %b ]; do sleep 0.02; done; echo late) & exit 4" % os.fsencode(go)

    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            out, stdout = os.pipe()
            null = os.open(os.devnull, os.O_RDWR)
            await start(engine, told, program, null, stdout, null, PLAIN)
            os.close(stdout)
            os.close(null)
            await until(lambda: told.values == [4])
            assert not told.over.is_set()
            go.touch()
            assert await read_all(out) == b"late\n"
            await told.over.wait()

    run(main)


def test_a_reader_that_goes_ends_the_command(sshd: Sshd) -> None:
    """`ssh host yes | head -1`, with a stdin that stays open: only the word that nobody reads can end it."""

    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            stdin, to = os.pipe()
            out, stdout = os.pipe()
            null = os.open(os.devnull, os.O_RDWR)
            await start(engine, told, b"yes", stdin, stdout, null, PLAIN)
            for descriptor in (stdin, stdout, null):
                os.close(descriptor)
            assert (await asyncio.to_thread(os.read, out, 4)) == b"y\ny\n"
            os.close(out)
            await told.over.wait()
            assert told.values == []
            os.close(to)

    run(main)


def test_a_subsystem_the_server_does_not_have(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            ended = await command(engine, b"nonsense", subsystem=True)
            assert ended == Outcome(None, b"", b"subsystem request failed on channel 0\r\n")
            assert await command(engine, b"exit 3") == Outcome(3, b"", b"")

    run(main)


def test_a_session_too_many_is_refused_and_everything_given_back(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(max_sessions=1)

    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            pipes = [os.pipe() for _ in range(3)]
            first = await start(engine, told, b"cat", pipes[0][0], pipes[1][1], pipes[2][1], PLAIN)
            before = os.listdir("/proc/self/fd")
            with pytest.raises(OpenRefused) as caught:
                await start(engine, Told(), b"true", pipes[0][0], pipes[1][1], pipes[2][1], PLAIN)
            assert caught.value.code == 2
            assert os.listdir("/proc/self/fd") == before
            for pipe in pipes:
                os.close(pipe[0])
                os.close(pipe[1])
            await told.over.wait()
            assert first.channel is not None
            assert first.channel.over
            while True:
                # sshd takes its time to count one less.
                try:
                    assert await command(engine, b"exit 7") == Outcome(7, b"", b"")
                    break
                except OpenRefused:
                    continue

    run(main)


def test_hanging_up_closes_everything_and_the_command_finds_out(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            before = os.listdir("/proc/self/fd")
            pipes = [os.pipe() for _ in range(3)]
            program = b"trap '' PIPE; cat >/dev/null; echo gone >%s/said" % str(tmp_path).encode()
            session = await start(engine, told, program, pipes[0][0], pipes[1][1], pipes[2][1], PLAIN)
            session.hang_up()
            session.hang_up()
            for pipe in pipes:
                os.close(pipe[0])
                os.close(pipe[1])
            assert os.listdir("/proc/self/fd") == before
            await until((tmp_path / "said").exists)
            assert session.channel is not None
            await until(lambda: session.channel is not None and session.channel.over)
            assert not told.over.is_set()
            assert told.values == []

    run(main)


def test_hung_up_while_it_opens(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            before = os.listdir("/proc/self/fd")
            for turns in range(1, 6):
                null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
                message = NewSession(0, command=b"cat")
                task = asyncio.ensure_future(Session.open(engine, PLAIN, message, tuple(null), Told()))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:  # the server was faster
                    task.result().hang_up()
            await until(lambda: os.listdir("/proc/self/fd") == before)
            assert await command(engine, b"exit 5") == Outcome(5, b"", b"")

    run(main)


def test_a_lost_connection_ends_every_session(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            ended = [asyncio.ensure_future(command(engine, b"while echo here; do sleep 0.05; done")) for _ in range(3)]
            await until(lambda: sum("while echo here" in each.command for each in processes.descendants(sshd.pid)) >= 3)
            engine.disconnect("enough")
            for one in ended:
                assert (await one).value is None
        with pytest.raises(OpenRefused):
            await command(engine, b"true")

    run(main)


def test_a_client_that_does_not_read_stops_its_own_command_only(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            out, stdout = os.pipe()
            null = os.open(os.devnull, os.O_RDWR)
            slow = await start(engine, told, b"head -c 30000000 /dev/zero", null, stdout, null, PLAIN)
            os.close(stdout)
            os.close(null)
            assert slow.channel is not None
            channel = slow.channel
            # So much fits into the window and the pipe; there it stands, while others go on.
            await until(lambda: channel.received_bytes >= 2 << 20)
            for number in range(5):
                assert await command(engine, b"exit %d" % number) == Outcome(number, b"", b"")
            assert channel.received_bytes <= (2 << 20) + 65536
            assert not told.values
            assert len(await read_all(out)) == 30_000_000
            await told.over.wait()
            assert told.values == [0]

    run(main)


def test_stderr_that_nobody_reads_is_no_matter_for_stdout(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            out, stdout = os.pipe()
            err, stderr = os.pipe()
            null = os.open(os.devnull, os.O_RDWR)
            program = b"head -c 1000000 /dev/zero >&2; head -c 3000000 /dev/zero"
            await start(engine, told, program, null, stdout, stderr, PLAIN)
            for descriptor in (null, stdout, stderr):
                os.close(descriptor)
            assert len(await read_all(out)) == 3_000_000
            assert not told.over.is_set()
            assert len(await read_all(err)) == 1_000_000
            await told.over.wait()

    run(main)


def test_stderr_that_is_closed_is_no_matter_either(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            out, stdout = os.pipe()
            err, stderr = os.pipe()
            null = os.open(os.devnull, os.O_RDWR)
            program = b"head -c 5000000 /dev/zero >&2; echo out; exit 6"
            await start(engine, told, program, null, stdout, stderr, PLAIN)
            for descriptor in (null, stdout, stderr, err):
                os.close(descriptor)
            assert await read_all(out) == b"out\n"
            await told.over.wait()
            assert told.values == [6]

    run(main)


def test_files_are_read_and_written_where_they_stand(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"skipped " + b"x" * 1_000_000 + b" end")
    (tmp_path / "log").write_bytes(b"before\n")

    async def main() -> None:
        async with connected(sshd) as engine:
            with (tmp_path / "in").open("rb", buffering=0) as stdin, (tmp_path / "log").open("ab", buffering=0) as log:
                stdin.read(8)
                shared = (flags(stdin.fileno()), flags(log.fileno()))
                told = Told()
                program = b"wc -c; echo err >&2"
                await start(engine, told, program, stdin.fileno(), log.fileno(), log.fileno(), PLAIN)
                await told.over.wait()
                assert (flags(stdin.fileno()), flags(log.fileno())) == shared
                assert stdin.tell() == 1_000_012
                log.write(b"after\n")

    run(main)
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    assert sorted(lines[1:3]) == [b"1000004", b"err"]
    assert (lines[0], lines[3:]) == (b"before", [b"after", b""])


def test_one_socket_for_all_three(sshd: Sshd) -> None:
    """As inetd hands it over: no half of it is closed before all of it is."""

    async def main() -> None:
        async with connected(sshd) as engine:
            told = Told()
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    descriptor = theirs.fileno()
                    program = b'read line; echo "$line"; echo err >&2; exit 2'
                    await start(engine, told, program, descriptor, descriptor, descriptor, PLAIN)
                    ours.sendall(b"question\n")
                    await told.over.wait()
                    assert theirs.getblocking()
                assert sorted((await read_all(os.dup(ours.fileno()))).split()) == [b"err", b"question"]
            assert told.values == [2]

    run(main)


def test_the_environment_is_the_owners_to_allow(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(accept_env="FOO BAR BAZ")
    options = Options(send_env=("F*", "BA?"), set_env=("BAZ=by=owner",))
    sent = (b"FOO=foo", b"BAR=b=r", b"BAZ=client", b"OTHER=no", b"FOOL")

    async def main() -> None:
        async with connected(sshd) as engine:
            ended = await command(engine, b"echo $FOO $BAR $BAZ $OTHER", b"", options, environment=sent)
            assert ended.out == b"foo b=r by=owner\n"

    run(main)


def test_patterns_are_those_of_ssh() -> None:
    sent = [b"A[b]=1", b"Ab=2", b"=3", b"none", b"L\xff=4", b"x" * 1024 + b"=5"]
    assert environment(sent, ("A[b]",), ()) == [(b"A[b]", b"1")]
    assert environment(sent, ("L?",), ("S=t",)) == [(b"L\xff", b"4"), (b"S", b"t")]
    assert environment(sent, ("*",), ()) == [(b"A[b]", b"1"), (b"Ab", b"2"), (b"L\xff", b"4")]
    assert len(environment([b"a=b"] * 5000, ("a",), ())) == 4096


def test_hundreds_one_after_another_leave_nothing(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            await command(engine, b"true")
            before = os.listdir("/proc/self/fd")
            for _ in range(200):
                assert (await command(engine, b"true")).value == 0
            assert os.listdir("/proc/self/fd") == before
            assert len(asyncio.all_tasks()) <= 2

    run(main)
