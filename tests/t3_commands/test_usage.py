"""The command line of every subcommand: help, mistakes, and what is suggested."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, REFUSED_BY_US, SSH_FAILED, USAGE, sshmux

ABOUT_A_HOST = ["check", "start", "status", "top", "forward", "cancel", "stop", "exit", "config"]


@pytest.mark.parametrize("command", [*ABOUT_A_HOST, "list"])
def test_help(sshd: Sshd, command: str) -> None:
    done = sshmux(sshd, command, "-h")
    assert (done.stderr, done.returncode) == ("", OK)
    assert done.stdout.startswith(f"usage: sshmux {command} ")
    assert command in sshmux(sshd, "-h").stdout


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("chek", "check"),
        ("ls", "list"),
        ("Status", "status"),
        ("forwards", "forward"),
        ("kill", None),
        ("\x1b[2J", None),
    ],
)
def test_a_command_that_does_not_exist(sshd: Sshd, typed: str, meant: str | None) -> None:
    done = sshmux(sshd, typed, HOST)
    assert (done.stdout, done.returncode) == ("", USAGE)
    advice = f"did you mean '{meant}'?" if meant else "there are check, start, list, "
    assert advice in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *([command, "-x"] for command in ABOUT_A_HOST),
        *([command, "-p", "0", HOST] for command in ABOUT_A_HOST),
        *([command, "a b"] for command in ABOUT_A_HOST if command not in ("forward", "cancel")),
        *([command] for command in ABOUT_A_HOST if command != "top"),
        ["list", HOST],
        ["forward", HOST],
        ["forward", "-L", "nonsense", HOST],
        ["cancel", "-D", "x", HOST],
        ["exit", "--no", HOST],
        ["start", "--persist", "soon", HOST],
        ["start", "-S", "none", HOST],
        ["start", "-o", "password_stdin", HOST],
        ["start", "-o", "ssh_command=ssh", "-o", "password_stdin", HOST],
        ["start", "-o", "ssh_command=ssh", "-f", HOST],
        ["start", "-o", "ssh_command=", HOST],
        ["start", "-o", "ssh_command='ssh", HOST],
    ],
)
def test_mistakes(sshd: Sshd, arguments: list[str]) -> None:
    done = sshmux(sshd, *arguments)
    assert (done.stdout, done.returncode) == ("", USAGE)
    assert done.stderr.splitlines()[-1].startswith("sshmux: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "status", "top", "stop", "exit"])
def test_nothing_is_there(sshd: Sshd, command: str) -> None:
    done = sshmux(sshd, command, "-F", str(sshd.ssh_config), HOST)
    assert (done.stdout, done.returncode) == ("", 1 if command == "check" else SSH_FAILED)
    assert done.stderr.startswith(f"sshmux: no connection to {HOST} can be joined. ")


def test_a_reader_who_has_had_enough(sshd: Sshd, master: Master) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mux", "check", "-F", str(sshd.ssh_config), HOST],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=sshd.environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, complaint = process.communicate(timeout=30)
    assert (complaint, process.returncode) == (b"", SSH_FAILED)


@pytest.mark.parametrize("arguments", [["status", HOST], ["check", HOST], ["nonsense"], ["list", "-x"]])
def test_nobody_reads_a_complaint(sshd: Sshd, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "mux", *arguments]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=writing, env=sshd.environment(), timeout=COMMAND_DEADLINE_S
        )
    finally:
        os.close(writing)
    assert (done.stdout, done.returncode) == (b"", SSH_FAILED)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(sshd: Sshd, closed: str) -> None:
    """An answer or a complaint that has no way is lost, and goes no other way."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "mux", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=sshd.environment(), timeout=COMMAND_DEADLINE_S
        )

    listed = run("list")
    assert (listed.returncode, listed.stderr) == (OK, "")
    assert (listed.stdout == "") == (">&-" in closed.split())
    checked = run("check", "-F", str(sshd.ssh_config), HOST)
    assert (checked.returncode, checked.stdout) == (REFUSED_BY_US, "")
    assert (checked.stderr == "") == ("2>&-" in closed)
    assert "Traceback" not in checked.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_while_ssh_is_asked(sshd: Sshd, tmp_path: Path, number: signal.Signals) -> None:
    """`ssh -G` ends with the command."""
    asked = tmp_path / "asked"
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\necho $$ >{asked}.new\nmv {asked}.new {asked}\nexec sleep 60\n")
    script.chmod(0o755)
    environment = sshd.environment()
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    with processes.running([sys.executable, "-m", "mux", "start", HOST], env=environment) as process:
        wait_until(asked.exists, "ssh to be asked")
        ssh = processes.known(int(asked.read_text()))
        process.send_signal(number)
        assert process.wait(COMMAND_DEADLINE_S) == ExitCode.INTERRUPTED
        assert not (now := processes.look(ssh.pid)) or not now.running
