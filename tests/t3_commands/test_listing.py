"""`sshmux list`: every connection of this user, wherever it is, and nothing that is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mux.commands import hosts, unixsockets
from mux.commands.upstreams import find
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, rider, rows, sshmux


def listed(sshd: Sshd, *arguments: str) -> dict[str, dict[str, Any]]:
    """What `sshmux list --json` tells of this server's connections, by control path; that of the whole run apart."""
    done = sshmux(sshd, "list", "--json", *arguments)
    assert (done.stderr, done.returncode) == ("", OK)
    found = {one["path"]: one for one in json.loads(done.stdout) if one["path"].startswith(str(sshd.directory))}
    found.pop(str(sshd.control_dir / "shared"), None)
    return found


def test_a_master_and_who_rides_on_it(sshd: Sshd, master: Master) -> None:
    with rider(master), rider(master):
        told = listed(sshd)[master.control_path]
    assert told.pop("age_s") < 60
    assert told == {
        "host": HOST,
        "kind": "openssh",
        "pid": master.pid,
        "clients": 2,
        "state": "live",
        "path": master.control_path,
    }
    await_no_clients(sshd, master)


def await_no_clients(sshd: Sshd, master: Master) -> None:
    """The master closes its end of a client's connection when it comes to it."""
    wait_until(lambda: listed(sshd)[master.control_path]["clients"] == 0, "the clients have gone")


def row_without_clients(sshd: Sshd, path: str) -> dict[str, str]:
    """Its row of the table, in which it has no clients: each `sshmux list` knocks, which the next one may still see."""
    found: list[dict[str, str]] = []

    def nobody_rides() -> bool:
        found[:] = [row for row in rows(sshmux(sshd, "list").stdout) if row["PATH"] == path]
        return [row["CLIENTS"] for row in found] == ["0"]

    wait_until(nobody_rides, "it is listed without clients")
    return found[0]


def test_the_table(sshd: Sshd, master: Master) -> None:
    row = row_without_clients(sshd, master.control_path)
    told = (row["HOST"], row["KIND"], row["PID"], row["CLIENTS"], row["STATE"])
    assert told == (HOST, "openssh", str(master.pid), "0", "live")


def test_wherever_it_is(make_master: Callable[..., Master], sshd: Sshd, stack: Any) -> None:
    place = processes.make_directory()
    stack.callback(shutil.rmtree, place)
    master = make_master(sshd, control_path=place / "a b")
    done = sshmux(sshd, "list", "--json")
    assert [one["pid"] for one in json.loads(done.stdout) if one["path"] == master.control_path] == [master.pid]


@contextmanager
def persisting(sshd: Sshd, path: Path) -> Iterator[None]:
    """A master that went to the background after its session, and calls itself by its control path."""
    sshd.ssh("-M", "-S", str(path), "-o", "ControlPersist=60", HOST, "true")
    try:
        yield
    finally:
        sshd.ssh("-S", str(path), "-O", "exit", HOST)


def test_a_persisting_master_is_known_by_the_configuration(sshd: Sshd, master: Master) -> None:
    path = Path(master.control_path)
    master.exit()
    with persisting(sshd, path):
        assert listed(sshd)[str(path)]["host"] is None
        assert listed(sshd, "-F", str(sshd.ssh_config))[str(path)]["host"] == HOST
    # It answers `-O exit` before it ends.
    wait_until(lambda: listed(sshd) == {}, "the master has ended")


def test_one_that_gives_no_answer_and_one_without_a_socket(sshd: Sshd, make_master: Callable[..., Master]) -> None:
    frozen = make_master(sshd, control_path=sshd.control_dir / "frozen")
    lost = make_master(sshd, control_path=sshd.control_dir / "lost")
    os.unlink(lost.control_path)
    frozen.freeze()
    told = listed(sshd)
    frozen.thaw()
    assert (told[frozen.control_path]["state"], told[frozen.control_path]["pid"]) == ("no answer", frozen.pid)
    states = [one["state"] for one in told.values() if one["pid"] == lost.pid]
    assert states == ["unreachable"]


def test_what_is_no_connection(sshd: Sshd, master: Master) -> None:
    (sshd.control_dir / "file").touch()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(sshd.control_dir / "other"))
        other.listen()
        left_over = sshd.control_dir / "left over"
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(left_over))
        assert list(listed(sshd, "-F", str(sshd.ssh_config))) == [master.control_path]
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # a listener that is known to be another program's is not knocked at
            other.accept()
    for name in ("file", "other", "left over"):
        (sshd.control_dir / name).unlink()


def test_nothing_is_shared(make_sshd: Callable[..., Sshd]) -> None:
    # Other connections of this user may be there: then there is a table.
    done = sshmux(make_sshd(), "list")
    assert done.returncode == OK
    assert bool(done.stdout) != (done.stderr == "sshmux: no connection is shared now\n")


def test_a_system_that_does_not_tell(
    sshd: Sshd, master: Master, shared_master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> Any:
        raise OSError("no such family")

    monkeypatch.setattr(unixsockets, "_by_netlink", silent)
    with rider(master):
        by_proc = {one.path: one for one in find({})}
        assert (by_proc[master.control_path].pid, by_proc[master.control_path].clients) == (master.pid, 1)
        monkeypatch.setattr(unixsockets, "_by_proc", silent)
        assert master.control_path not in {one.path for one in find({})}
        by_name = {one.path: one for one in find({master.control_path: HOST})}
        assert (by_name[master.control_path].pid, by_name[master.control_path].clients) == (master.pid, None)
        # One beside it that nobody named: by its directory.
        assert by_name[shared_master.control_path].pid == shared_master.pid


def test_names_of_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = tmp_path / "more.conf"
    more.write_text("Host=inner\n")
    config = tmp_path / "config"
    config.write_text(
        f'Host a *.b !c "d"  e?\n  Port 22\nhost a f # g\nInclude {tmp_path}/*.conf {config}\nHost \'open\n'
        "Match host m\n  User x\nHost last\n"
    )
    assert hosts.host_names(str(config)) == ["a", "d", "f", "inner", "last"]
    assert hosts.host_names(str(tmp_path / "none")) == []


def test_control_paths_of_hosts(sshd: Sshd) -> None:
    expected = sshd.ssh("-G", HOST).stdout.partition("\ncontrolpath ")[2].partition("\n")[0]
    assert hosts.control_paths(str(sshd.ssh_config))[expected] == HOST


def test_a_configuration_that_hangs_costs_a_name_only(sshd: Sshd, master: Master, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f'Host slow\nMatch host slow exec "sleep 60"\n  Port 1\nInclude {sshd.ssh_config}\n')
    assert listed(sshd, "-F", str(config))[master.control_path]["pid"] == master.pid


def test_it_imports_no_event_loop_and_no_rich(sshd: Sshd, master: Master) -> None:
    unwanted = "{'trio', 'asyncio', 'asyncssh', 'rich', 'pyfuse3', 'sshmuxfs'}"
    for arguments in (["list"], ["status", "-S", master.control_path, "-F", str(sshd.ssh_config), HOST]):
        code = f"import sys; from mux.cli import main; main(sys.argv[1:]); print(sorted({unwanted} & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env=sshd.environment(),
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]"


FROZEN = """
import os, threading
from mux.commands.upstreams import at_the_same_time

def ask(one):
    if one:
        os.write(1, b"asked\\n")  # a print would hold stdout, maybe for ever
        threading.Event().wait()

try:
    at_the_same_time(ask, [False, True])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_who_is_interrupted_waits_for_nobody_who_is_frozen() -> None:
    command = [sys.executable, "-c", FROZEN]
    with processes.running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"asked\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=COMMAND_DEADLINE_S) == (b"interrupted\n", b"")
        assert process.returncode == OK
