"""The connections that PuTTY's tools share, as the commands tell of them; and that a real plink does not notice."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mux.commands import unixsockets
from mux.commands.upstreams import Upstream as Row
from mux.commands.upstreams import find
from mux.rendezvous import putty
from mux.rendezvous.sockets import Found
from tests.support import processes
from tests.support.background import START_DEADLINE_S
from tests.support.master import Master
from tests.support.putty import ADDRESS, PuttyUpstream, environment, identity, remove_directory
from tests.support.sshd import HOST, Sshd, program
from tests.support.upstream import SSHMUX, Upstream
from tests.support.waiting import wait_until
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, REFUSED_BY_US, about, rider, sshmux
from tests.t3_commands.test_listing import row_without_clients
from tests.t5_putty.riders import Riders, said

LOCALHOST = "localhost"


@pytest.fixture
def server(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A server of this test's own: PuTTY finds connections by its port."""
    return make_sshd()


@pytest.fixture
def plink(stack: ExitStack, server: Sshd) -> PuttyUpstream:
    """A PuTTY upstream of this test's own, by a name that no upstream of ours has."""
    return stack.enter_context(PuttyUpstream(server, host=LOCALHOST))


def listed(sshd: Sshd) -> list[dict[str, Any]]:
    """What `sshmux list --json` tells of all that PuTTYs share, and of all that is shared to this server."""
    done = sshmux(sshd, "list", "--json")
    assert (done.stderr, done.returncode) == ("", OK)
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def row_of(upstream: PuttyUpstream) -> dict[str, Any] | None:
    """Its row, of which there is one at most."""
    found = [one for one in listed(upstream.sshd) if upstream.path == one["path"] or one["pid"] == upstream.pid]
    assert len(found) <= 1
    return found[0] if found else None


def check(sshd: Sshd, *arguments: str) -> subprocess.CompletedProcess[str]:
    return sshmux(sshd, "check", "-F", str(sshd.ssh_config), *arguments)


def test_it_is_listed_with_who_rides(plink: PuttyUpstream) -> None:
    riders = Riders(plink.sshd, LOCALHOST)
    with riders.started("echo here; cat") as process:
        said(process, b"here\n")
        told = row_of(plink)
    assert told is not None and 0 <= told.pop("age_s") < 60
    assert told == {
        "host": f"{plink.sshd.user}@{LOCALHOST}",
        "kind": "putty",
        "pid": plink.pid,
        "clients": 1,
        "state": "live",
        "path": plink.path,
    }


def test_the_table(plink: PuttyUpstream) -> None:
    row = row_without_clients(plink.sshd, plink.path)
    told = (row["HOST"], row["KIND"], row["PID"], row["CLIENTS"], row["STATE"])
    assert told == (f"{plink.sshd.user}@{LOCALHOST}", "putty", str(plink.pid), "0", "live")


def lines_of(plink: PuttyUpstream, pid: int) -> list[str]:
    """What it logged of the connections of a process, once they have ended."""
    text = ""

    def told() -> list[str]:
        numbers = re.findall(rf"downstream (#\d+): connected from pid {pid}\b", text)
        return [line.split(": ", 1)[1] for line in text.splitlines() if any(f" {one}: " in line for one in numbers)]

    def over() -> bool:
        nonlocal text
        text = plink.log_text()
        return told()[-1:] == ["disconnected"]

    wait_until(over, f"plink has seen process {pid} go")
    return [line.partition(" from pid ")[0] for line in told()]


def ran(sshd: Sshd, *command: str) -> int:
    """Run a command that succeeds; its pid."""
    with processes.running(command, stdout=subprocess.DEVNULL, env=environment(sshd)) as process:
        assert process.wait(COMMAND_DEADLINE_S) == OK
    return process.pid


def test_a_look_is_as_silent_as_its_own(plink: PuttyUpstream) -> None:
    """plink logs who came and went, and nothing more: no version was said, so nobody ever rode."""
    where = ("-P", str(plink.port), f"{plink.sshd.user}@{LOCALHOST}")
    own = lines_of(plink, ran(plink.sshd, program("plink"), "-shareexists", *where))
    # This one closes without reading, which may be one line more.
    assert [own[0], own[-1]] == ["connected", "disconnected"]
    with Riders(plink.sshd, LOCALHOST).started("echo here; cat") as process:
        said(process, b"here\n")
        for command in (["list"], ["list", "--json"], ["check", "-F", "none", "-p", where[1], LOCALHOST]):
            assert lines_of(plink, ran(plink.sshd, *SSHMUX, *command)) == ["connected", "disconnected"]
        # It has no control path: `top`, which asks at those, never comes.
        top = ran(plink.sshd, *SSHMUX, "top")
        lines_of(plink, ran(plink.sshd, *SSHMUX, "list"))
        assert f"from pid {top} " not in plink.log_text()
        assert process.communicate(b"still here", timeout=20) == (b"still here", b"")
    assert plink.running


def test_one_that_is_stopped(plink: PuttyUpstream) -> None:
    plink.freeze()
    told = row_of(plink)
    plink.thaw()
    assert told is not None
    assert (told["state"], told["pid"], told["kind"]) == ("no answer", plink.pid, "putty")
    assert told["host"] == f"{plink.sshd.user}@{LOCALHOST}"


def test_one_that_has_not_logged_in(stack: ExitStack, server: Sshd) -> None:
    """It listens already, and dies of the first packet that it gets: it gets none."""
    silent = stack.enter_context(socket.create_server((ADDRESS, 0)))
    upstream = stack.enter_context(PuttyUpstream(server, port=silent.getsockname()[1], wait=False))
    upstream.wait_said("Sharing this connection at")
    told = row_of(upstream)
    assert told is not None and (told["state"], told["pid"]) == ("no answer", upstream.pid)
    assert upstream.running


def test_one_that_was_killed(plink: PuttyUpstream) -> None:
    plink.kill()
    assert row_of(plink) is None
    assert os.path.exists(plink.path)


def test_one_that_takes_nobody_in(stack: ExitStack, server: Sshd) -> None:
    """Its queue is full: that is somebody."""
    name = putty.connection_name("queue.invalid", server.user, server.port)
    parent = putty.parent_directory()
    putty.make_directory(parent)
    putty.make_salt(parent)
    directory = putty.directory_of(name)
    stack.callback(remove_directory, directory)
    putty.make_directory(directory)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(os.path.join(directory, putty.SOCKET))
    listener.listen(0)
    waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
    waiting.connect(listener.getsockname())
    told = next(one for one in listed(server) if one["path"] == listener.getsockname())
    assert (told["kind"], told["state"], told["pid"]) == ("putty", "no answer", os.getpid())


def test_one_of_a_saved_session_has_no_name(stack: ExitStack, server: Sshd) -> None:
    env = environment(server)
    sessions = Path(env["PUTTYDIR"], "sessions")
    sessions.mkdir()
    (sessions / "saved").write_text(
        f"Protocol=ssh\nHostName={LOCALHOST}\nPortNumber={server.port}\nUserName={server.user}\nConnectionSharing=1\n"
    )
    name = putty.connection_name(LOCALHOST, server.user, server.port)
    stack.callback(remove_directory, putty.directory_of(name))
    process = subprocess.Popen(
        [program("plink"), "-batch", "-N", *identity(server), "-load", "saved"], stdin=subprocess.DEVNULL, env=env
    )
    stack.callback(process.wait, START_DEADLINE_S)
    stack.callback(process.kill)
    wait_until(lambda: putty.probe(name).found is Found.LIVE, "the saved session is shared")
    told = next(one for one in listed(server) if one["pid"] == process.pid)
    assert (told["host"], told["kind"], told["state"]) == (None, "putty", "live")


def test_ours_has_one_row(stack: ExitStack, server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = stack.enter_context(Upstream(server))

    def of_ours(found: list[Row]) -> list[tuple[str, str]]:
        return [(one.kind, one.path) for one in found if one.pid == upstream.pid]

    expected = [("sshmux", upstream.control_path)]
    assert len(putty.existing()) > 0
    assert [(one["kind"], one["path"]) for one in listed(server) if one["pid"] == upstream.pid] == expected
    assert of_ours(find({})) == expected
    monkeypatch.setattr(unixsockets, "_by_netlink", _silent)
    monkeypatch.setattr(unixsockets, "_by_proc", _silent)
    assert of_ours(find({upstream.control_path: HOST})) == expected
    assert of_ours(find({})) == []  # nobody names its path, and its doors are no PuTTY's


def _silent(*_: object) -> Any:
    raise OSError("no such family")


def test_a_system_that_does_not_tell(plink: PuttyUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixsockets, "_by_netlink", _silent)
    monkeypatch.setattr(unixsockets, "_by_proc", _silent)
    told = next(one for one in find({}) if one.path == plink.path)
    assert (told.kind, told.pid, told.state, told.clients) == ("putty", plink.pid, "live", None)
    assert told.host == f"{plink.sshd.user}@{LOCALHOST}"


def test_one_in_the_place_of_ours(stack: ExitStack, server: Sshd) -> None:
    """Ours goes on listening at a name that is another's by now, until it looks."""
    ours = stack.enter_context(Upstream(server))
    name = putty.connection_name(ADDRESS, server.user, server.port)
    ours.freeze()
    stack.callback(ours.thaw)
    os.unlink(os.path.join(putty.directory_of(name), putty.SOCKET))
    with PuttyUpstream(server, host=ADDRESS) as plink:
        kinds = {one["pid"]: (one["kind"], one["state"]) for one in listed(server)}
    assert (kinds[plink.pid], kinds[ours.pid]) == (("putty", "live"), ("sshmux", "no answer"))


@pytest.mark.parametrize("by", ["plink", "ssh"])
def test_sessions_of_plinks_are_counted(stack: ExitStack, make_sshd: Callable[..., Sshd], by: str) -> None:
    """With those of ssh: the server makes no difference between them, whoever finds out that it opens no more."""
    server = make_sshd(max_sessions=2)
    ours = stack.enter_context(Upstream(server))
    riders = Riders(server)

    def sessions() -> dict[str, Any]:
        told: dict[str, Any] = json.loads(about(ours, "status", "--json").stdout)["sessions"]
        return told

    with riders.started("echo here; cat") as process, rider(ours):
        said(process, b"here\n")
        assert sessions() == {"open": 2, "opened": 2, "refused": 0, "max_sessions_seen": None}
        if by == "plink":
            assert b"refused to open" in riders.plink("true").stderr
        else:
            riding = ["-S", ours.control_path, "-o", "ProxyCommand=false"]
            assert "Session open refused by peer" in server.ssh(*riding, HOST, "true", check=False).stderr
        assert sessions() == {"open": 2, "opened": 2, "refused": 1, "max_sessions_seen": 2}
        text = about(ours, "status").stdout
        assert "sessions 2 open, 2 opened, 1 refused by the server (MaxSessions seen: 2)" in text
        assert process.communicate(b"still here", timeout=20) == (b"still here", b"")
    # Until then they count at the server; one more refusal, with fewer of them open here, would be what is seen last.
    wait_until(lambda: server.log_text().count("Close session: ") == 2, "the server has let go of both")
    assert riders.plink("true").returncode == OK
    told = sessions()
    assert (told["opened"], told["max_sessions_seen"]) == (3, 2)


def test_a_tunnel_of_plink_is_no_session(stack: ExitStack, server: Sshd) -> None:
    ours = stack.enter_context(Upstream(server))
    riders = Riders(server)
    with riders.started(options=("-nc", f"{ADDRESS}:{server.port}")) as process:
        assert process.stdout is not None and process.stdout.read(4) == b"SSH-"
        told = json.loads(about(ours, "status", "--json").stdout)
        assert [one["kind"] for one in told["channels"]] == ["direct-tcpip"]
        refused = riders.plink(options=("-nc", f"{ADDRESS}:1"))
        assert refused.returncode != OK
        told = json.loads(about(ours, "status", "--json").stdout)["sessions"]
    assert told == {"open": 0, "opened": 0, "refused": 0, "max_sessions_seen": None}


def test_check_tells_of_both(stack: ExitStack, server: Sshd) -> None:
    master = stack.enter_context(Master(server))
    plink = stack.enter_context(PuttyUpstream(server, host=ADDRESS))
    of_master = f"Master running (pid={master.pid}) at {master.control_path}\n"
    of_putty = f"PuTTY upstream running (pid={plink.pid}) at {plink.path}\n"
    done = check(server, HOST)
    assert (done.stdout, done.stderr, done.returncode) == (of_master + of_putty, "", OK)
    # What gives no answer is told beside the one that does.
    plink.freeze()
    done = check(server, HOST)
    named = check(server, "-S", master.control_path, HOST)
    plink.thaw()
    assert (done.stdout, done.returncode) == (of_master, OK)
    assert done.stderr.startswith(f"sshmux: The PuTTY upstream at {plink.path} (process {plink.pid}) has not logged in")
    assert (named.stdout, named.stderr, named.returncode) == (of_master, "", OK)  # that path was meant
    master.freeze()
    done = check(server, HOST)
    master.thaw()
    assert (done.stdout, done.returncode) == (of_putty, OK)
    assert done.stderr.startswith(f"sshmux: What listens at {master.control_path} gives no answer")


def test_check_says_why_a_putty_cannot_be_joined(stack: ExitStack, server: Sshd) -> None:
    plink = stack.enter_context(PuttyUpstream(server, host=ADDRESS))
    plink.freeze()
    frozen = check(server, HOST)
    plink.thaw()
    plink.kill()
    killed = check(server, HOST)
    for done, words in ((frozen, f"kill -CONT {plink.pid}"), (killed, "left over by a PuTTY that was killed")):
        assert (done.stdout, done.returncode) == ("", REFUSED_BY_US)
        assert f"no connection to {HOST} can be joined" in done.stderr and words in done.stderr


def test_check_tells_of_ours_once(stack: ExitStack, server: Sshd) -> None:
    ours = stack.enter_context(Upstream(server))
    done = check(server, HOST)
    expected = f"Master running (pid={ours.pid}) at {ours.control_path}\n"
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", OK)
