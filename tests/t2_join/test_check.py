"""`sshmux check` as a command: what it prints, and its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.master import Master
from tests.support.putty import PuttyUpstream
from tests.support.sshd import HOST, Sshd

COMMAND_DEADLINE_S = 60.0
USAGE = 2
NOTHING_TO_SHARE = 1


def sshmux(sshd: Sshd, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments, as a user of this server."""
    return subprocess.run(
        [sys.executable, "-m", "mux", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        env=sshd.environment(),
    )


def check(sshd: Sshd, *arguments: str) -> subprocess.CompletedProcess[str]:
    return sshmux(sshd, "check", "-F", str(sshd.ssh_config), *arguments)


def test_a_connection_that_can_be_shared(sshd: Sshd, master: Master) -> None:
    done = check(sshd, HOST)
    assert done.stdout == f"Master running (pid={master.pid}) at {master.control_path}\n"
    assert (done.stderr, done.returncode) == ("", 0)
    # The same sentence as ssh's.
    assert master.control("check").stderr.strip() in done.stdout


def test_a_path_of_the_command_line(sshd: Sshd, shared_master: Master) -> None:
    expected = f"Master running (pid={shared_master.pid}) at {shared_master.control_path}\n"
    for arguments in (["-S", shared_master.control_path], ["-o", f"ControlPath={shared_master.control_path}"]):
        assert check(sshd, *arguments, HOST).stdout == expected


def test_our_own_path(sshd: Sshd) -> None:
    own = sshd.runtime_dir / "sshmux"
    own.mkdir(mode=0o700, exist_ok=True)
    try:
        path = sshd.ssh("-G", "-S", f"{own}/%C", HOST).stdout.partition("\ncontrolpath ")[2].partition("\n")[0]
        with Master(sshd, control_path=path) as master:
            assert check(sshd, HOST).stdout == f"Master running (pid={master.pid}) at {path}\n"
    finally:
        own.rmdir()


def test_nothing_is_there(sshd: Sshd) -> None:
    done = check(sshd, HOST)
    assert (done.stdout, done.returncode) == ("", NOTHING_TO_SHARE)
    first, second = done.stderr.splitlines()
    assert first.startswith(f"sshmux: no connection to {HOST} can be joined. Nothing is at {sshd.control_dir}/")
    assert second == f"sshmux: start a connection to share: ssh -fNM -F {sshd.ssh_config} -- {HOST}"


def test_a_user_and_a_port_are_another_connection(sshd: Sshd, master: Master) -> None:
    for arguments in (["-l", "other", HOST], [f"other@{HOST}"], ["-p", "9", HOST], ["-o", "HostName=127.0.0.2", HOST]):
        assert check(sshd, *arguments).returncode == NOTHING_TO_SHARE


def test_the_reasons(sshd: Sshd, master: Master, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a regular file, not a socket" in check(sshd, "-S", str(tmp_path / "file"), HOST).stderr
    assert "has 203 bytes" in check(sshd, "-S", f"/tmp/{'x' * 198}", HOST).stderr
    assert "-S none" in check(sshd, "-S", "none", HOST).stderr
    assert "Bad configuration option" in check(sshd, "-o", "Ciper=x", HOST).stderr
    master.freeze()
    frozen = check(sshd, HOST)
    master.thaw()
    assert "gives no answer" in frozen.stderr
    master.kill()
    assert "nobody listens" in check(sshd, HOST).stderr
    assert frozen.returncode == check(sshd, HOST).returncode == NOTHING_TO_SHARE


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check"],
        ["nonsense", HOST],
        ["check", "-p", "0", HOST],
        ["check", "-p", "65536", HOST],
        ["check", "-p", "22x", HOST],
        ["check", "-x", HOST],
        ["check", HOST, "more"],
        ["check", "-S", "", HOST],
        ["check", ""],
        ["check", "--", "-oProxyCommand=false"],
        ["check", "[-box]"],
        ["check", "me@-box"],
        ["check", "-l", "-me", HOST],
        ["check", "a b"],
    ],
)
def test_mistakes_in_the_command_line(sshd: Sshd, arguments: list[str]) -> None:
    done = sshmux(sshd, *arguments)
    assert (done.stdout, done.returncode) == ("", USAGE)
    assert done.stderr.splitlines()[-1].startswith("sshmux")
    assert "Traceback" not in done.stderr


def test_help_and_version(sshd: Sshd) -> None:
    for arguments in (["-h"], ["check", "-h"]):
        done = sshmux(sshd, *arguments)
        assert done.stdout.startswith("usage: sshmux")
        assert (done.stderr, done.returncode) == ("", 0)
    done = sshmux(sshd, "-V")
    assert re.fullmatch(r"sshmux \S+\n", done.stdout)
    assert (done.stderr, done.returncode) == ("", 0)


def test_it_imports_no_event_loop(sshd: Sshd, shared_master: Master) -> None:
    program = (
        "import sys; from mux.cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'trio', 'asyncio', 'asyncssh', 'pyfuse3', 'sshmuxfs'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", "-S", shared_master.control_path, "-F", str(sshd.ssh_config), HOST],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        env=sshd.environment(),
        check=True,
    )
    assert done.stdout.splitlines()[1:] == ["0 []"]


def test_a_putty_stands_behind_the_master(sshd: Sshd, shared_putty: PuttyUpstream, shared_master: Master) -> None:
    expected = f"PuTTY upstream running (pid={shared_putty.pid}) at {shared_putty.path}\n"
    where = ["-F", "none", "-p", str(sshd.port), "-l", sshd.user]
    done = sshmux(sshd, "check", *where, shared_putty.host)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)
    # One who names a control path means that one.
    both = sshmux(sshd, "check", *where, "-S", shared_master.control_path, shared_putty.host)
    assert both.stdout == f"Master running (pid={shared_master.pid}) at {shared_master.control_path}\n"
