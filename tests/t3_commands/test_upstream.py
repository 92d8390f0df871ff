"""The commands about an upstream of ours: started, told of, watched, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mux.errors import ExitCode
from tests.support import processes
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.sshd import HOST, Sshd
from tests.support.upstream import Upstream
from tests.t2_upstream.starting import upstreams
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, REFUSED_BY_US, about, rider, rows, sshmux


@pytest.fixture
def started(sshd: Sshd) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`started(*options)`: `sshmux start` to the server; what it started is ended with the test."""

    def start(*options: str, said: str = "") -> subprocess.CompletedProcess[str]:
        return sshmux(sshd, "start", "-F", str(sshd.ssh_config), *options, HOST, said=said)

    yield start
    sshmux(sshd, "exit", "--now", "-F", str(sshd.ssh_config), HOST)


def test_start(sshd: Sshd, started: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    first = started("--json")
    assert (first.stderr, first.returncode) == ("", OK)
    told = json.loads(first.stdout)
    assert told["started"] is True and os.path.exists(told["path"])
    upstream = processes.known(told["pid"])
    assert os.getsid(upstream.pid) == upstream.pid and os.readlink(f"/proc/{upstream.pid}/cwd") == "/"
    # Plain ssh rides on it, and what is there is not started again.
    assert f"(pid={upstream.pid})" in sshd.ssh("-O", "check", HOST).stderr
    again = started()
    assert (again.stdout, again.returncode) == (f"Master running (pid={upstream.pid}) at {told['path']}\n", OK)
    done = sshmux(sshd, "exit", "-F", str(sshd.ssh_config), HOST)
    assert (done.stderr, done.returncode) == ("Exit request sent.\n", OK)
    assert processes.wait_ended([upstream], COMMAND_DEADLINE_S) == []
    assert not os.path.exists(told["path"])


def test_start_of_an_ssh_that_holds_it(sshd: Sshd, started: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = started("-o", "ssh_command=ssh -oLogLevel=QUIET", "--json")
    assert (done.stderr, done.returncode) == ("", OK)
    told = json.loads(done.stdout)
    assert told["started"] is True
    assert processes.known(told["pid"]).command.startswith("ssh -oLogLevel=QUIET -f -N")
    assert f"(pid={told['pid']})" in sshd.ssh("-O", "check", HOST).stderr


def test_start_where_somebody_else_is(sshd: Sshd, master: Master) -> None:
    done = sshmux(sshd, "start", "-F", str(sshd.ssh_config), HOST)
    assert done.stdout == f"Master running (pid={master.pid}) at {master.control_path}\n"


def test_start_that_cannot_log_in(sshd: Sshd, started: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = started("-o", "BatchMode=yes", "-o", "User=nobody")
    assert (done.stdout, done.returncode) == ("", ExitCode.AUTH_FAILED)
    assert done.stderr.startswith("sshmux: ") and "Permission denied" in done.stderr
    done = started("-p", "1")
    assert (done.stdout, done.returncode) == ("", ExitCode.UNREACHABLE)
    assert "Connection refused" in done.stderr


def in_front(sshd: Sshd) -> list[str]:
    """What starts an upstream in the foreground."""
    return [sys.executable, "-m", "mux", "start", "-f", "-F", str(sshd.ssh_config), HOST]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_foreground_it_ends_with_its_command(sshd: Sshd, number: signal.Signals) -> None:
    with processes.running(
        in_front(sshd), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=sshd.environment()
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        process.send_signal(number)
        _, log = process.communicate(timeout=COMMAND_DEADLINE_S)
        assert process.returncode == ExitCode.INTERRUPTED
    path = line.rpartition(" at ")[2].strip()
    assert line.startswith("Master started (pid=") and not os.path.exists(path)
    assert b"Traceback" not in log


def test_in_the_foreground_it_does_not_outlive_its_command(sshd: Sshd) -> None:
    with processes.running(
        in_front(sshd), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=sshd.environment()
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith(b"Master started")
        (upstream,) = upstreams(sshd)
        process.kill()
        assert processes.wait_ended([upstream], COMMAND_DEADLINE_S) == []


def test_in_the_foreground_when_nobody_reads_where_it_is(sshd: Sshd) -> None:
    """`sshmux start -f HOST | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            in_front(sshd), stdout=writing, stderr=subprocess.PIPE, timeout=COMMAND_DEADLINE_S, env=sshd.environment()
        )
    finally:
        os.close(writing)
    assert done.returncode != OK
    assert b"connected to" in done.stderr and b"Traceback" not in done.stderr
    assert processes.wait_ended(upstreams(sshd), COMMAND_DEADLINE_S) == []


# The command, struck by Ctrl-C as its terminal sends it, when its upstream is there and its own signals are not yet
# handed on.
STRUCK = """
import os, signal, sys
from mux import signals
signals.pass_on = lambda *_, **__: os.killpg(0, signal.SIGINT)
from mux.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_in_the_foreground_interrupted_just_when_it_is_there(sshd: Sshd) -> None:
    command = [sys.executable, "-c", STRUCK, *in_front(sshd)[3:]]
    done = subprocess.run(
        command, capture_output=True, timeout=COMMAND_DEADLINE_S, env=sshd.environment(), start_new_session=True
    )
    assert done.returncode == ExitCode.INTERRUPTED
    assert b"connected to" in done.stderr and b"Traceback" not in done.stderr
    assert processes.wait_ended(upstreams(sshd), COMMAND_DEADLINE_S) == []


def test_in_the_foreground_a_hangup_that_is_ignored(sshd: Sshd) -> None:
    """As under nohup(1): neither the command nor what it started takes notice."""
    with processes.running(
        ["/usr/bin/nohup", *in_front(sshd)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=sshd.environment()
    ) as process:
        assert process.stdout is not None
        told = re.fullmatch(r"Master started \(pid=(\d+)\) at (.*)\n", process.stdout.readline().decode())
        assert told is not None
        for pid in (process.pid, int(told[1])):
            os.kill(pid, signal.SIGHUP)
        assert sshd.ssh(HOST, "true").returncode == OK
        assert process.poll() is None and os.path.exists(told[2])
        process.terminate()
        assert process.wait(COMMAND_DEADLINE_S) == ExitCode.INTERRUPTED
    assert not os.path.exists(told[2])


def test_persist(sshd: Sshd, started: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    told = json.loads(started("--json", "--persist", "1").stdout)
    upstream = processes.known(told["pid"])
    assert sshd.ssh(HOST, "echo $PPID").returncode == OK
    assert processes.wait_ended([upstream], COMMAND_DEADLINE_S) == []
    assert not os.path.exists(told["path"])


def test_list(sshd: Sshd, upstream: Upstream) -> None:
    with rider(upstream):
        done = sshmux(sshd, "list")  # no configuration is needed: it knows its host itself
    row = next(row for row in rows(done.stdout) if row["PATH"] == upstream.control_path)
    told = (row["HOST"], row["KIND"], row["PID"], row["CLIENTS"], row["STATE"])
    assert told == (HOST, "sshmux", str(upstream.pid), "1", "live")


def test_status(sshd: Sshd, upstream: Upstream, make_mount: Callable[..., Mount]) -> None:
    mount = make_mount(sshd.root, master=upstream)
    with rider(upstream) as process:
        told = json.loads(about(upstream, "status", "--json").stdout)
        text = about(upstream, "status").stdout
    assert (told["kind"], told["pid"], told["host"]) == ("sshmux", upstream.pid, HOST)
    assert 0 < told["connection"]["round_trip_s"] < 10
    assert {client["pid"] for client in told["clients"]} == {process.pid, mount.pid}
    assert told["mounts"] == [{"pid": mount.pid, "source": mount.remote, "mount_point": str(mount.path)}]
    assert sorted(channel["description"] for channel in told["channels"]) == ["exec echo here; cat", "subsystem sftp"]
    for word in (f"sshmux process {upstream.pid}", "aes", " ms", "subsystem sftp", str(process.pid), str(mount.path)):
        assert word in text
    # Of several connections of one process the table has one row.
    assert text.partition("clients\n")[2].partition("mounts\n")[0].count(f"{mount.pid}  ") == 1


def test_exit_while_a_mount_rides(sshd: Sshd, upstream: Upstream, make_mount: Callable[..., Mount]) -> None:
    mount = make_mount(sshd.root, master=upstream)
    done = about(upstream, "exit")
    assert done.returncode == REFUSED_BY_US
    assert "sshmux: 1 program would lose" in done.stderr and f"  {mount.pid} " in done.stderr
    mount.unmount()


def test_top(upstream: Upstream) -> None:
    with rider(upstream) as process:
        done = about(upstream, "top")
    assert (done.stderr, done.returncode) == ("", OK)
    title, head, row = done.stdout.splitlines()
    assert title.startswith(f"{HOST}  sshmux {upstream.pid}  up ") and "/s in" in title
    assert head.split() == ["PID", "IN", "OUT", "PAST", "COMMAND"]
    assert row.split()[:5] == [str(process.pid), "0", "B/s", "0", "B/s"]


def test_a_status_of_another_version(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from mux.commands import reach; reach.STATUS_VERSION = 2; "
        "from mux.cli import main; raise SystemExit(main(sys.argv[1:]))"
    )
    place = ["-F", str(upstream.config), "-S", upstream.control_path, HOST]
    done: Any = subprocess.run(
        [sys.executable, "-c", code, "status", *place],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        env=upstream.sshd.environment(),
    )
    assert done.returncode == 255 and "started by another version of sshmux" in done.stderr
