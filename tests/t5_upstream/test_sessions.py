"""Commands and shells: what goes in, what comes out, and with which exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mux.protocol.messages import ExitMessage, Failure, SessionOpened
from tests.support.bounded import in_subprocess
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import (
    DEADLINE_S,
    SSH_FAILED,
    Clients,
    descriptors_of,
    ended,
    line_of,
    say,
    wait_for_file,
    witness,
)
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Hangup, Raw, null, pipes, session

MIB = 1 << 20


@pytest.fixture(scope="module")
def holder_options() -> list[str]:
    # So that large transfers meet a rekey or two on their way.
    return ["-oRekeyLimit=300M"]


@pytest.mark.parametrize("code", [0, 1, 4, 5, 44, 255])
def test_02_exit_code(clients: Clients, code: int) -> None:
    assert clients.ssh(HOST, f"exit {code}").returncode == code


def test_03_output_and_errors_apart(clients: Clients) -> None:
    done = clients.ssh(HOST, "printf out; printf err >&2; printf put; printf ors >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"output", b"errors")


def test_03_every_byte_both_ways(clients: Clients) -> None:
    every = bytes(range(256)) * 3
    done = clients.ssh(HOST, "tee /dev/stderr", input=every)
    assert (done.returncode, done.stdout, done.stderr) == (0, every, every)


def test_04_empty_command_is_a_shell(clients: Clients) -> None:
    done = clients.ssh("-T", HOST, input=b"cd /\necho $0 in $PWD\nexit 7\n")
    assert done.returncode == 7
    assert done.stdout.endswith(b" in /\n")


def test_04_command_with_blanks_and_quotes(clients: Clients) -> None:
    assert clients.ssh(HOST, "printf '%s|'", "'a  b'", '"$((1+1))"', "'ü'").stdout == "a  b|2|ü|".encode()


def test_05_three_megabytes_there_and_back(clients: Clients) -> None:
    data = os.urandom(3 * MIB + 17)
    done = clients.ssh(HOST, "cat", input=data)
    assert (done.returncode, done.stdout == data) == (0, True)


@pytest.mark.timeout(600)
def test_05_a_gibibyte_there_and_back(clients: Clients) -> None:
    """Every mebibyte differs, so that one lost, doubled or exchanged is seen."""
    random = os.urandom(MIB - 8)
    blocks = 1024
    with clients.started(HOST, "cat") as process:
        assert process.stdin is not None and process.stdout is not None
        stdin = process.stdin

        def feed() -> None:
            for number in range(blocks):
                block = memoryview(number.to_bytes(8, "big") + random)
                while block:
                    block = block[stdin.write(block) :]
            stdin.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        reader = os.fdopen(os.dup(process.stdout.fileno()), "rb", buffering=MIB)
        with reader:
            for number in range(blocks):
                block = reader.read(MIB)
                assert block == number.to_bytes(8, "big") + random, f"mebibyte {number} is another"
            assert reader.read() == b""
        feeder.join(DEADLINE_S)
        assert ended(process) == 0


def test_11_output_closed_early(clients: Clients) -> None:
    done = clients.ssh(HOST, "sleep 0.3; exec >/dev/null 2>&1; sleep 0.6; exit 44")
    assert done.returncode == 44


def test_11_input_is_not_needed(clients: Clients) -> None:
    """The command ends while its standard input is still open here."""
    with clients.started(HOST, "exec <&-; exit 9") as process:
        assert ended(process) == 9


def test_12_killed_by_a_signal(clients: Clients) -> None:
    done = clients.ssh(HOST, "echo before; kill -9 $$")
    assert (done.returncode, done.stdout) == (SSH_FAILED, b"before\n")


def test_13_background_process_holds_the_output(clients: Clients, directory: Path) -> None:
    script = f"(while [ ! -e {directory}/go ]; do sleep 0.02; done; echo late) & echo early; exit 3"
    with clients.started(HOST, script) as process:
        assert line_of(process) == b"early"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        (directory / "go").touch()
        assert line_of(process) == b"late"
        assert ended(process) == 3


def test_13_background_process_without_the_output(clients: Clients, directory: Path) -> None:
    (directory / "hold").touch()
    script = f"(while [ -e {directory}/hold ]; do sleep 0.02; done) >/dev/null 2>&1 </dev/null & exit 3"
    assert clients.ssh(HOST, script).returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_20_client_ended_by_a_signal(clients: Clients, holder: Master, directory: Path, number: signal.Signals) -> None:
    """It says 255; the command on the server sees the end of its input; the holder keeps nothing of it."""
    before = len(descriptors_of(holder.pid))
    with clients.started(HOST, f"echo ready; cat; echo over > {directory}/over") as process:
        assert line_of(process) == b"ready"
        # The command may speak before ssh has read that it is there, from when on it takes the signal.
        wait_until(lambda: catches(process.pid, number), "ssh is ready for the signal")
        process.send_signal(number)
        assert ended(process) == SSH_FAILED
        assert wait_for_file(directory / "over") == "over\n"
        # While our ends of its pipes are still open.
        wait_until(lambda: len(descriptors_of(holder.pid)) <= before, "the holder has what it had before")


def test_22_environment(kind: str, make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """A client's variable needs three to agree: itself, the holder's SendEnv, and the server's AcceptEnv."""
    server = make_sshd(accept_env="SMX_* LC_ALL")
    holder = make_holder(server, options=["-oSendEnv=SMX_* NOT_ACCEPTED LC_ALL"])
    clients = Clients.of(holder, "SendEnv SMX_ONE SMX_TWO NOT_ACCEPTED OTHER", "SetEnv SMX_SET='a b' SMX_EMPTY=")
    names = ["SMX_ONE", "SMX_TWO", "SMX_SET", "SMX_EMPTY", "SMX_UNASKED", "NOT_ACCEPTED", "OTHER"]
    given = {name: name.lower() for name in names if name not in ("SMX_SET", "SMX_EMPTY")}
    done = clients.ssh(HOST, "env", env=clients.environment(**given))
    got = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert {name: got.get(name) for name in names} == {
        "SMX_ONE": "smx_one",
        "SMX_TWO": "smx_two",
        "SMX_SET": "a b",
        "SMX_EMPTY": "",
        "SMX_UNASKED": None,
        "NOT_ACCEPTED": None,
        "OTHER": None,
    }


def test_22_environment_of_the_holder(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """What the holder's own SetEnv says reaches every session, and comes last."""
    server = make_sshd(accept_env="SMX_*")
    holder = make_holder(server, options=["-oSetEnv=SMX_OWN=holder SMX_BOTH=holder", "-oSendEnv=SMX_*"])
    clients = Clients.of(holder, "SetEnv SMX_BOTH=client SMX_MINE=client")
    done = clients.ssh(HOST, "echo $SMX_OWN $SMX_BOTH $SMX_MINE")
    # sshd keeps the first value of a name that comes twice.
    assert done.stdout in (b"holder holder client\n", b"holder client client\n")


INIT = bytes.fromhex("00000005 01 00000003")


def test_23_subsystem(clients: Clients) -> None:
    with clients.started("-s", HOST, "sftp") as process:
        assert process.stdin is not None and process.stdout is not None
        say(process, INIT)
        head = b""
        while len(head) < 9:
            head += process.stdout.read(9 - len(head))
        assert head[4:] == bytes.fromhex("02 00000003")
        process.stdin.close()
        assert ended(process) == 0


def test_23_unknown_subsystem(clients: Clients) -> None:
    done = clients.ssh("-s", HOST, "no-such-subsystem")
    assert (done.returncode, done.stdout) == (SSH_FAILED, b"")


@ours_only
def test_23_unknown_subsystem_is_told(clients: Clients) -> None:
    done = clients.ssh("-s", HOST, "no-such-subsystem")
    assert done.stderr.decode().splitlines() == ["subsystem request failed on channel 0"]


def test_23_subsystem_without_a_name_is_a_shell(holder: Master) -> None:
    with Raw(holder.control_path) as raw, pipes() as (given, kept):
        raw.say(session(1, b"", subsystem=True), given)
        raw.expect(SessionOpened)
        os.write(kept[0], b"exit 7\n")
        assert raw.expect(ExitMessage).exit_value == 7


@pytest.mark.parametrize(
    "asked",
    [
        {"command": b"echo a\0b"},
        {"command": b"sf\0tp", "subsystem": True},
        {"command": b"exit 3", "tty": True, "terminal": b"vt\0-100"},
        {"command": b"exit 3", "environment": (b"LC_ALL=a\0b",)},
    ],
    ids=["command", "subsystem", "terminal", "variable"],
)
def test_02_a_session_that_the_server_would_hang_up_over(
    make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master], asked: dict[str, Any]
) -> None:
    """It is refused, or its client hung up on; everybody else's goes on."""
    holder = make_holder(make_sshd(), options=["-oSendEnv=LC_*"])
    clients = Clients.of(holder)
    with (
        witness(clients),
        Raw(holder.control_path) as raw,
        null() as descriptors,
        suppress(Hangup, BrokenPipeError),
    ):
        raw.say(session(1, **asked), descriptors)
        raw.expect(Failure)


def test_58_a_join_with_no_command(clients: Clients) -> None:
    """`-N` reaches the holder as a shell without a terminal; it ends with its input."""
    assert clients.ssh("-N", HOST, stdin=subprocess.DEVNULL).returncode == 0


def test_58_a_join_with_no_command_is_held(clients: Clients) -> None:
    with clients.started("-N", HOST) as process:
        wait_until(lambda: catches(process.pid, signal.SIGTERM), "ssh is ready for the signal")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert ended(process) == SSH_FAILED


def test_57_background_after_the_session_is_open(clients: Clients, directory: Path) -> None:
    """Before 9.4 a joining client stays in front; after, it returns while the command runs on. Both print all."""
    script = f"while [ ! -e {directory}/go ]; do sleep 0.02; done; echo done > {directory}/done"
    with clients.started("-f", HOST, script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        (directory / "go").touch()
        assert wait_for_file(directory / "done") == "done\n"
        assert ended(process) == 0


def test_57_client_that_is_another_process_now(clients: Clients) -> None:
    """What `-f` comes to, by hand: who opened the session has ended, and a child of his goes on with it."""
    assert clients.control_path is not None
    near, far = socket.socketpair()
    with near, far, pipes() as (given, kept):

        def open_and_hand_over() -> None:
            raw = Raw(str(clients.control_path))
            raw.say(session(1, b"cat; exit 4"), given)
            raw.expect(SessionOpened)
            socket.send_fds(far, [b"x"], [raw.fileno()])

        in_subprocess(open_and_hand_over)
        _, (descriptor,), _, _ = socket.recv_fds(near, 1, 1)
        with Raw.taken_over(descriptor) as raw:
            os.write(kept[0], b"word")
            assert os.read(kept[1], 10) == b"word"
            os.close(kept[0])
            kept[0] = os.dup(kept[1])
            assert raw.expect(ExitMessage).exit_value == 4
            assert raw.hung_up()


def test_05_sessions_at_the_same_time_do_not_mix(clients: Clients) -> None:
    """Each of eight gets its own bytes back."""
    given: list[bytes] = [os.urandom(MIB) for _ in range(8)]
    got: dict[int, Any] = {}

    def run(number: int) -> None:
        done = clients.ssh(HOST, f"cat; exit {number}", input=given[number])
        got[number] = (done.returncode, done.stdout == given[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert got == {number: (number, True) for number in range(8)}


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (proc_pid_status(5), SigCgt)."""
    (mask,) = (
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")
    )
    return bool(int(mask, 16) >> (number - 1) & 1)
