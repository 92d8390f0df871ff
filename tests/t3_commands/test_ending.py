"""`sshmux stop` and `exit`: what ssh does, and that nobody's session ends by surprise."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable

from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, REFUSED_BY_US, SSH_FAILED, about, read_terminal, rider


def test_stop(holder: Master) -> None:
    with rider(holder) as process:
        done = about(holder, "stop")
        assert (done.stdout, done.stderr, done.returncode) == ("", "Stop listening request sent.\n", OK)
        assert not os.path.exists(holder.control_path)
        assert about(holder, "check").returncode == 1
        output, _ = process.communicate(b"still here\n", timeout=COMMAND_DEADLINE_S)
        assert output == b"still here\n"


def test_exit_when_nobody_rides(holder: Master) -> None:
    done = about(holder, "exit")
    assert (done.stdout, done.stderr, done.returncode) == ("", "Exit request sent.\n", OK)
    wait_until(lambda: not os.path.exists(holder.control_path), "it has ended")
    assert about(holder, "exit").returncode == SSH_FAILED


def test_exit_names_who_rides_and_ends_nothing(holder: Master) -> None:
    with rider(holder) as process:
        done = about(holder, "exit")
        assert (done.stdout, done.returncode) == ("", REFUSED_BY_US)
        first, second, last = done.stderr.splitlines()
        assert first == f"sshmux: 1 program would lose the connection to {HOST}:"
        assert second.startswith(f"  {process.pid} ") and second.endswith(f"{HOST} echo here; cat")
        assert "--now" in last
        assert holder.running and process.poll() is None
        done = about(holder, "exit", "--now")
        assert (done.stdout, done.stderr, done.returncode) == ("", "Exit request sent.\n", OK)
        assert process.wait(COMMAND_DEADLINE_S) == SSH_FAILED


def exit_at_a_terminal(holder: Master, answer: bytes) -> tuple[str, int]:
    """`sshmux exit` on a terminal of its own, and `answer` typed there; returns what it showed, and its status."""
    near, far = pty.openpty()
    command = [sys.executable, "-m", "mux", "exit", "-F", str(holder.config), "-S", holder.control_path, HOST]
    process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, env=holder.sshd.environment())
    os.close(far)
    shown = b""
    try:
        while b"[y/N]" not in shown:
            more = read_terminal(near)
            assert more, shown
            shown += more
        os.write(near, answer)
        while more := read_terminal(near):
            shown += more
        status = process.wait(COMMAND_DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        os.close(near)
    return shown.decode(), status


def test_exit_asks_at_a_terminal(holder: Master) -> None:
    with rider(holder) as process:
        for answer in (b"\n", b"no\n", b"\x04"):
            shown, status = exit_at_a_terminal(holder, answer)
            assert status == REFUSED_BY_US and f"  {process.pid} " in shown
            assert holder.running and process.poll() is None
        shown, status = exit_at_a_terminal(holder, b"y\n")
        assert status == OK and "Exit request sent." in shown
        assert process.wait(COMMAND_DEADLINE_S) == SSH_FAILED


def test_a_mount_is_a_rider(
    make_mount: Callable[..., object], sshd: Sshd, shared_master: Master, tmp_path: object
) -> None:
    mount = make_mount(sshd.root)
    done = about(shared_master, "exit")
    assert done.returncode == REFUSED_BY_US and "sshmuxfs" in done.stderr
    told = json.loads(about(shared_master, "status", "--json").stdout)
    assert [one["mount_point"] for one in told["mounts"]] == [str(getattr(mount, "path", ""))]
    assert told["mounts"][0]["source"].startswith(f"{HOST}:")
    text = about(shared_master, "status").stdout
    assert "mounts\n" in text and told["mounts"][0]["mount_point"] in text


def test_one_that_gives_no_answer(holder: Master) -> None:
    holder.freeze()
    done = about(holder, "exit", "--now")
    holder.thaw()
    assert done.returncode == SSH_FAILED and "gives no answer" in done.stderr
    assert holder.control("check").returncode == OK
