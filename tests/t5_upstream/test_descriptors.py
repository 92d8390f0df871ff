"""Every kind of descriptor that a client may hand over, and what becomes of it for those who share it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mux.protocol.messages import Failure, SessionOpened
from tests.support import processes
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd, program
from tests.support.upstream import SSHMUX
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import DEADLINE_S, SSH_FAILED, Clients, ended, killed_at_end, line_of, say
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Raw, pipes, run, session

TEXT = b"".join(b"line %d\n" % number for number in range(2000))


@pytest.fixture
def text(directory: Path) -> Path:
    path = directory / "text"
    path.write_bytes(TEXT)
    return path


def test_06_no_input(clients: Clients) -> None:
    """`-n`: whatever standard input is, the command there finds its end at once."""
    with clients.started("-n", HOST, "cat; echo end") as process:
        assert line_of(process) == b"end"
        assert ended(process) == 0


def test_06_input_from_null(clients: Clients) -> None:
    assert clients.ssh(HOST, "cat; echo end", stdin=subprocess.DEVNULL).stdout == b"end\n"


def test_06_input_closed(clients: Clients) -> None:
    assert clients.shell("$SSH box 'cat; echo end' <&-").stdout == b"end\n"


def test_06_all_three_closed(clients: Clients, directory: Path) -> None:
    done = clients.shell(f"$SSH box 'echo here > {directory}/out; echo lost; exit 6' <&- >&- 2>&-")
    assert done.returncode == 6
    assert (directory / "out").read_text() == "here\n"


def test_06_output_to_null(clients: Clients) -> None:
    assert clients.shell("$SSH box 'head -c 3000000 /dev/zero; exit 6' >/dev/null 2>&1").returncode == 6


def test_06_input_from_a_file(clients: Clients, text: Path) -> None:
    assert clients.shell(f"$SSH box cat < {text}").stdout == TEXT


def test_06_input_from_a_directory(clients: Clients, directory: Path) -> None:
    """It cannot be read; the command there finds the end of its input, and the client ends with its exit code."""
    assert clients.shell(f"$SSH box 'cat; exit 6' < {directory}").returncode == 6


def test_06_output_that_cannot_be_written(clients: Clients) -> None:
    """A full disk: the command there is told as by a closed pipe, and nothing hangs."""
    done = clients.shell("$SSH box 'cat /dev/zero' > /dev/full")
    assert done.returncode == SSH_FAILED


def test_07_output_to_a_file_at_its_offset(clients: Clients, directory: Path) -> None:
    path = directory / "out"
    clients.shell(f"(echo first; $SSH box echo second; echo third) > {path}")
    assert path.read_text() == "first\nsecond\nthird\n"


def test_07_appended_twice(clients: Clients, directory: Path) -> None:
    path = directory / "out"
    clients.shell(f"echo zero > {path}; $SSH box echo one >> {path}; $SSH box echo two >> {path}")
    assert path.read_text() == "zero\none\ntwo\n"


def test_07_appended_by_two_at_the_same_time(clients: Clients, directory: Path) -> None:
    path = directory / "out"
    lines = "for i in 1 2 3 4 5 6 7 8 9; do echo {0}$i; sleep 0.01; done"
    clients.shell(f"$SSH box '{lines.format('a')}' >> {path} & $SSH box '{lines.format('b')}' >> {path}; wait")
    assert sorted(path.read_text().split()) == [f"{letter}{number}" for letter in "ab" for number in range(1, 10)]


def test_07_output_and_errors_into_one_file(clients: Clients, directory: Path) -> None:
    path = directory / "out"
    # Two streams have no order between them: each word is said when the one before has arrived.
    arrived = f"until grep -q %s {path}; do sleep 0.02; done"
    script = f"echo one; {arrived % 'one'}; echo two >&2; {arrived % 'two'}; echo three"
    clients.shell(f"$SSH box '{script}' > {path} 2>&1")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_07_large_output_to_a_file(clients: Clients, directory: Path) -> None:
    (directory / "from").write_bytes(os.urandom(5_000_000))
    clients.shell(f"$SSH box cat {directory}/from > {directory}/to")
    assert (directory / "to").read_bytes() == (directory / "from").read_bytes()


def test_07_file_for_both_ways(clients: Clients, directory: Path) -> None:
    """One description for reading and writing, as `<>` makes it: the offset is one."""
    path = directory / "both"
    path.write_text("input\n")
    clients.shell(f"$SSH box 'cat; echo output' <> {path} >&0")
    assert path.read_text().startswith("input\n")
    assert path.read_text().endswith("output\n")


def test_08_input_shared_by_two_commands(clients: Clients, text: Path) -> None:
    """What the first has read is not read again: the second goes on where it stopped."""
    rest = clients.shell(f"($SSH box true; cat) < {text}").stdout
    assert TEXT.endswith(rest)


def test_08_input_read_wholly_by_the_first(clients: Clients, text: Path) -> None:
    assert clients.shell(f"($SSH box cat; cat) < {text}").stdout == TEXT


def test_08_input_from_where_it_stands(clients: Clients, text: Path) -> None:
    assert clients.shell(f"(read line; $SSH box cat) < {text}").stdout in (TEXT, TEXT[len(b"line 0\n") :])
    with text.open("rb") as file:
        os.lseek(file.fileno(), 100, os.SEEK_SET)
        assert clients.ssh(HOST, "cat", stdin=file).stdout == TEXT[100:]
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == len(TEXT)


def test_08_input_not_touched_with_n(clients: Clients, text: Path) -> None:
    assert clients.shell(f"($SSH -n box true; cat) < {text}").stdout == TEXT


def flags(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


@contextmanager
def three(make: str) -> Iterator[tuple[list[int], list[int]]]:
    """Three descriptors to hand over, and our ends of them: ([stdin, stdout, stderr], [to write, to read, to read])."""
    given: list[int] = []
    kept: list[int] = []
    try:
        for number in range(3):
            if make == "pipe":
                reading, writing = os.pipe()
                pair = (reading, writing) if number == 0 else (writing, reading)
            elif make == "socket":
                one, two = socket.socketpair()
                pair = (one.detach(), two.detach())
            else:
                own, other = pty.openpty()
                pair = (other, own)
            given.append(pair[0])
            kept.append(pair[1])
        yield given, kept
    finally:
        for descriptor in {*given, *kept}:
            os.close(descriptor)


def read_up_to(descriptor: int, wanted: bytes) -> bytes:
    """All that comes until `wanted` has come: a terminal may hand over a line and the end of it one after the other."""
    found = b""
    while wanted not in found:
        readable, _, _ = select.select([descriptor], [], [], DEADLINE_S)
        piece = os.read(descriptor, 65536) if readable else b""
        assert piece, f"nothing came after {found!r}"
        found += piece
    return found


KINDS_OF_DESCRIPTORS = ["pipe", "socket", "tty"]


@pytest.mark.parametrize("make", KINDS_OF_DESCRIPTORS)
def test_09_flags_are_as_before_once_it_is_over(clients: Clients, make: str) -> None:
    with three(make) as (given, kept):
        before = list(map(flags, given))
        done = clients.ssh("-n", HOST, "echo out; echo err >&2", stdin=given[0], stdout=given[1], stderr=given[2])
        assert done.returncode == 0
        assert read_up_to(kept[1], b"\n").split() == [b"out"]
        assert read_up_to(kept[2], b"\n").split() == [b"err"]
        # The holder restores what it changed when it lets go, which may be after the client.
        wait_until(lambda: list(map(flags, given)) == before, "the flags are as before")


@ours_only
@pytest.mark.parametrize("make", KINDS_OF_DESCRIPTORS)
def test_09_flags_are_as_before_all_the_time(clients: Clients, make: str) -> None:
    """They belong to the user's shell and to everybody else who has the same terminal or pipe."""
    with three(make) as (given, kept):
        before = list(map(flags, given))
        script = "echo out; echo err >&2; read line; echo $line; echo $line >&2; sleep 0.2"
        with clients.started(HOST, script, stdin=given[0], stdout=given[1], stderr=given[2]) as process:
            assert read_up_to(kept[1], b"\n").split() == [b"out"]
            assert read_up_to(kept[2], b"\n").split() == [b"err"]
            assert list(map(flags, given)) == before
            os.write(kept[0], b"word\n")
            assert read_up_to(kept[1], b"\n").split() == [b"word"]
            assert list(map(flags, given)) == before
            assert ended(process) == 0
        assert list(map(flags, given)) == before


def test_09_socket_both_ways(clients: Clients) -> None:
    """inetd's way: one socket as standard input and output."""
    ours, given = socket.socketpair()
    with ours, given:
        ours.settimeout(DEADLINE_S)
        with clients.started(HOST, "cat; exit 6", stdin=given.fileno(), stdout=given.fileno()) as process:
            given.close()
            ours.sendall(b"there and back")
            assert read_up_to(ours.fileno(), b"back") == b"there and back"
            ours.shutdown(socket.SHUT_WR)
            assert ours.recv(100) == b""
            assert ended(process) == 6


def test_09_named_pipes(clients: Clients, directory: Path) -> None:
    for name in ("in", "out"):
        os.mkfifo(directory / name)
    script = f"$SSH box cat < {directory}/in > {directory}/out & printf data > {directory}/in; cat {directory}/out"
    assert clients.shell(script).stdout == b"data"


def test_09_pipe_that_is_non_blocking_already(clients: Clients) -> None:
    """Made so by whoever shares it: it is handled all the same, and stays so."""
    with three("pipe") as (given, kept):
        for descriptor in given:
            os.set_blocking(descriptor, False)
        before = list(map(flags, given))
        with clients.started(HOST, "cat; exit 6", stdin=given[0], stdout=given[1], stderr=given[2]) as process:
            os.write(kept[0], b"data")
            assert read_up_to(kept[1], b"data") == b"data"
            os.close(kept[0])
            kept[0] = os.dup(kept[1])
            assert ended(process) == 6
        assert list(map(flags, given)) == before


def test_10_reader_that_has_had_enough(clients: Clients) -> None:
    with clients.started("-n", HOST, "yes") as process:
        assert line_of(process) == b"y"
        assert process.stdout is not None
        process.stdout.close()
        assert ended(process) == SSH_FAILED


def test_10_head(clients: Clients) -> None:
    assert clients.shell("$SSH -n box yes 2>/dev/null | head -1").stdout == b"y\n"


def test_10_errors_that_nobody_reads(clients: Clients) -> None:
    """Output goes on while the reader of the errors has gone."""
    with clients.started(HOST, "read line; echo to nobody >&2; sleep 0.1; echo $line; exit 6") as process:
        assert process.stderr is not None
        process.stderr.close()
        say(process, b"word\n")
        assert line_of(process) == b"word"
        assert ended(process) == 6


def test_52_slow_reader_stalls_nobody(clients: Clients) -> None:
    """A reader that takes nothing, and a command that writes for ever: others go on, and it is not lost."""
    with clients.started("-n", HOST, "head -c 20000000 /dev/zero; exit 6") as slow:
        assert slow.stdout is not None
        assert slow.stdout.read(1) == b"\0"
        for number in range(5):
            data = os.urandom(500_000)
            assert clients.ssh(HOST, f"cat; exit {number}", input=data).stdout == data
        with tempfile.TemporaryFile() as rest:
            copy = subprocess.Popen(["cat"], stdin=slow.stdout, stdout=rest)
            assert copy.wait(DEADLINE_S) == 0
            assert os.fstat(rest.fileno()).st_size == 20_000_000 - 1
        assert ended(slow) == 6


def test_52_slow_writer_stalls_nobody(clients: Clients, directory: Path) -> None:
    """A command that reads nothing, and a client that offers data for ever."""
    (directory / "hold").touch()
    with clients.started(HOST, f"echo ready; while [ -e {directory}/hold ]; do sleep 0.02; done") as stuck:
        assert line_of(stuck) == b"ready"
        assert stuck.stdin is not None
        os.set_blocking(stuck.stdin.fileno(), False)
        block = bytes(65536)
        _, writable, _ = select.select([], [stuck.stdin], [], DEADLINE_S)
        while writable:
            stuck.stdin.write(block)
            _, writable, _ = select.select([], [stuck.stdin], [], 0.3)
        assert clients.ssh(HOST, "cat", input=TEXT).stdout == TEXT


@ours_only
def test_52_log_in_front_that_nobody_reads(server: Sshd, directory: Path) -> None:
    """`sshmux start -f 2>&1 | less`: the first page is shown, and the connection serves on."""
    path = directory / "holder"
    reading, writing = os.pipe()
    with open(reading, "rb") as page, open(writing, "wb", buffering=0) as pipe:
        process = subprocess.Popen(
            [*SSHMUX, "start", "-F", str(server.ssh_config), "-S", str(path), "-f", HOST],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=server.environment(),
            start_new_session=True,
        )
        with killed_at_end(process):
            clients = Clients(server, str(path))
            # The command's own word, which comes a moment after the socket and is waited with if there is no room.
            assert any(b"(pid=" in line for line in page)
            os.set_blocking(writing, False)
            while pipe.write(b"x" * select.PIPE_BUF):
                pass
            os.set_blocking(writing, True)
            assert clients.ssh("-W", f"127.0.0.1:{free_port()}", HOST).returncode == SSH_FAILED  # which it notes
            assert clients.ssh(HOST, "exit 6").returncode == 6
            assert clients.control("exit").returncode == 0
            assert ended(process) == 0


@dataclass
class Ridden:
    """A mount on the very connection whose clients are handed its files, and the server's process behind it."""

    clients: Clients
    mount: Mount
    server: processes.Process
    gate: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever the mount asks the server: the answer does not come meanwhile."""
        processes.send_signal(self.server, signal.SIGSTOP)
        try:
            wait_until(lambda: processes.known(self.server.pid).state == "T", "it is stopped")
            yield
        finally:
            processes.send_signal(self.server, signal.SIGCONT)

    @contextmanager
    def started(self, redirections: str, command: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
        """ssh with files of the mount, which are open already; it begins when what is returned with it is called.

        A shell opens them, whose place ssh takes: whoever has such a file open and makes another process waits for the
        mount as whoever closes it, so this process and its other clients must have none.
        """
        os.mkfifo(self.gate)
        ssh = shlex.join(self.clients.command(HOST, command))
        process = subprocess.Popen(
            ["sh", "-c", f"exec {redirections}; read line < {self.gate}; exec {ssh}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=self.clients.environment(),
            start_new_session=True,
            bufsize=0,
        )
        with killed_at_end(process), self.gate.open("w") as gate:
            yield process, gate.close

    def assert_others_are_served(self) -> None:
        # Several, so that the connection's holder has come to what this test has it do.
        for _ in range(5):
            assert self.clients.control("check").returncode == 0
        assert self.clients.ssh(HOST, "echo served").stdout == b"served\n"


@pytest.fixture
def options() -> list[str]:
    """Of the mount."""
    return []


@pytest.fixture
def own_options() -> list[str]:
    return []


@pytest.fixture
def ridden(
    make_sshd: Callable[..., Sshd],
    make_holder: Callable[..., Master],
    make_mount: Callable[..., Mount],
    options: list[str],
    own_options: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Ridden:
    server = make_sshd(max_sessions=100)
    environment = {**server.environment(), "SSH_ASKPASS": program("true"), "SSH_ASKPASS_REQUIRE": "force"}
    monkeypatch.setattr(server, "environment", lambda: environment)
    holder = make_holder(server, options=own_options)
    mount = make_mount(server.root, master=holder, options=[*options, f"deadline={1.5 * DEADLINE_S:g}"])
    (sftp_server,) = server.sftp_servers()
    return Ridden(Clients.of(holder), mount, sftp_server, server.directory / "gate")


# As when it was asked long ago.
FORGETFUL = ["attr_timeout=0", "dcache_stat_timeout=0"]


@ours_only
@pytest.mark.parametrize("options", [[], FORGETFUL], ids=["waits when closed", "waits when asked"])
@pytest.mark.parametrize("number", [1, 2])
def test_52_output_to_a_mount_on_the_same_connection(ridden: Ridden, directory: Path, number: int) -> None:
    """To ask what it is takes an answer of the server; and to close it, one to everything that was written."""
    command = f"echo words >&{number}; touch {directory}/said"
    with ridden.started(f"{number}> {ridden.mount.path}/out", command) as (process, begin):
        with ridden.held():
            begin()
            wait_until((directory / "said").exists, "the command there has ended")
            ridden.assert_others_are_served()
            assert process.poll() is None
        assert ended(process) == 0
    assert (ridden.clients.sshd.root / "out").read_bytes() == b"words\n"


@ours_only
@pytest.mark.parametrize("own_options", [["-oControlMaster=ask"]], ids=["ask"])
def test_52_the_owner_is_asked_while_a_client_waits_for_a_mount(ridden: Ridden, directory: Path) -> None:
    """The process that asks closes what it got of the client's first: it waits for the mount, and nobody else does."""
    said = directory / "said"
    command = f"echo words; touch {said}; while [ -e {said} ]; do sleep 0.02; done"
    with ridden.started(f"> {ridden.mount.path}/out", command) as (process, begin):
        with ridden.held():
            begin()
            wait_until(said.exists, "the command there has written")
            with ridden.clients.started(HOST, "echo served") as asking:
                for _ in range(20):
                    assert ridden.clients.control("check").returncode == 0
                assert process.poll() is None
                processes.send_signal(ridden.server, signal.SIGCONT)
                assert asking.communicate(timeout=DEADLINE_S)[0] == b"served\n"
        said.unlink()
        assert ended(process) == 0


@ours_only
@pytest.mark.parametrize("options", [FORGETFUL], ids=["waits when asked"])
def test_52_input_from_a_mount_on_the_same_connection(ridden: Ridden) -> None:
    (ridden.mount.path / "in").write_bytes(TEXT)
    with ridden.started(f"< {ridden.mount.path}/in", "cat") as (process, begin):
        with ridden.held():
            begin()
            ridden.assert_others_are_served()
            assert process.poll() is None
        assert process.stdout is not None
        assert process.stdout.read() == TEXT
        assert ended(process) == 0


@ours_only
def test_52_unmounted_as_soon_as_the_client_has_ended(ridden: Ridden) -> None:
    """Nothing of the mount is open in the connection's holder any more."""
    path = ridden.mount.path
    (path / "in").write_bytes(TEXT)
    done = ridden.clients.shell(f"$SSH box 'head -1; echo err >&2' < {path}/in > {path}/out 2> {path}/err")
    assert done.returncode == 0
    ridden.mount.unmount()
    root = ridden.clients.sshd.root
    assert ((root / "out").read_text(), (root / "err").read_text()) == ("line 0\n", "err\n")


@ours_only
def test_52_client_killed_that_waits_for_a_mount(ridden: Ridden, directory: Path) -> None:
    command = f"echo words; touch {directory}/said"
    with ridden.started(f"> {ridden.mount.path}/out", command) as (process, begin), ridden.held():
        begin()
        wait_until((directory / "said").exists, "the command there has written")
        ridden.assert_others_are_served()
        process.kill()
        ridden.assert_others_are_served()


@ours_only
def test_52_given_back_to_a_mount_on_the_same_connection(ridden: Ridden) -> None:
    """Descriptors of a request that is refused are closed, which waits for the server as well."""
    path = ridden.clients.control_path
    assert path is not None
    with (ridden.mount.path / "out").open("wb", buffering=0) as file, pipes() as (given, _), Raw(path) as raw:
        raw.say(session(1, b"cat"), given)
        raw.expect(SessionOpened)
        with ridden.held():
            file.write(b"start\n")
            raw.say(session(2, b"cat"), [file.fileno()] * 3)
            assert raw.expect(Failure).reason == b"Multiple sessions not supported"
            assert run(path) == 3
