"""plink on our upstream: what it runs, and how that ends (U7-U11, U29, U30, U36, U37, U40)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.sshd import HOST, Sshd, program
from tests.support.upstream import Upstream, sshmux
from tests.support.waiting import wait_until
from tests.t5_putty.riders import Riders, works
from tests.t5_putty.shown import clients, status
from tests.t5_upstream.terminal import Terminal

BULK_BYTES = 50 << 20


@pytest.mark.parametrize("code", [0, 3, 255])
def test_u7_output_errors_and_exit_status(riders: Riders, code: int) -> None:
    done = riders.plink(f"echo out; echo err >&2; exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, b"out\n", b"err\n")


def test_u7_a_signal_is_told(riders: Riders) -> None:
    done = riders.plink("kill -TERM $$", options=("-v",))
    assert done.returncode != 0
    assert b'signal "TERM"' in done.stderr


def test_u7_a_name_of_our_configuration(riders: Riders) -> None:
    assert riders.at(HOST).plink("echo here").stdout == b"here\n"


def pattern(seed: bytes, count: int) -> bytes:
    return hashlib.shake_256(seed).digest(count)


def test_u8_50_mb_there_and_back(riders: Riders) -> None:
    data = pattern(b"u8", BULK_BYTES)
    done = riders.plink("cat", data=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_u9_the_end_of_input_comes_before_the_answer(riders: Riders) -> None:
    for _ in range(20):
        done = riders.plink("wc -c", data=b"")
        assert (done.returncode, done.stdout) == (0, b"0\n")


def test_u10_a_terminal(riders: Riders) -> None:
    shell = riders.command("plink", "-no-antispoof", "-t", riders.destination)
    with Terminal(shell, env=riders.env, size=(30, 100)) as terminal:
        terminal.type(b"PS1=; stty -echo; echo re''ady; stty size\r")
        terminal.expect(rb"ready\r\n30 100\r\n")
        terminal.resize(40, 120)
        terminal.type(b"until test \"$(stty size)\" = '40 120'; do :; done; echo re''sized\r")
        terminal.expect(rb"resized")
        terminal.type(b"exit 7\r")
        assert terminal.finish() == 7


def test_u29_window_requests_are_answered_over_200_mb(riders: Riders) -> None:
    plink = riders.command("plink", riders.destination, "head -c 200M /dev/zero; echo end >&2; exit 4")
    with processes.running(plink, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=riders.env) as process:
        assert process.stdout is not None and process.stderr is not None
        count = 0
        while piece := process.stdout.read(1 << 20):
            count += len(piece)
        assert (count, process.stderr.read(), process.wait(20)) == (200 << 20, b"end\n", 4)


def test_u30_keys_change_in_the_middle(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    upstream, riders = make_ours(make_sshd(), options=["-oRekeyLimit=1M"])
    data = pattern(b"u30", 24 << 20)
    assert riders.plink("cat", data=data).stdout == data
    assert status(upstream)["connection"]["rekeys"] >= 8


def test_u36_the_server_opens_no_more_sessions(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    _, riders = make_ours(make_sshd(max_sessions=1))
    with riders.started("echo first; cat") as first:
        assert first.stdout is not None and first.stdout.readline() == b"first\n"
        second = riders.plink("echo second")
        assert second.returncode == 1
        assert b"Server refused to open main channel" in second.stderr
        assert first.communicate(b"still here", timeout=20) == (b"still here", b"")
    assert works(riders)


def test_u37_a_command_of_100_kb(riders: Riders, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("".join(f": {number:090d}\n" for number in range(1100)) + "echo all of it\n")
    assert script.stat().st_size > 100_000
    done = riders.plink(options=("-m", str(script)))
    assert (done.returncode, done.stdout) == (0, b"all of it\n")


def test_u40_straight_to_the_socket(riders: Riders) -> None:
    done = subprocess.run(
        [program("plink"), "-ssh-connection", "-batch", riders.path, "echo straight"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=20,
        env=riders.env,
    )
    assert (done.returncode, done.stdout) == (0, b"straight\n")


def test_who_rides_is_shown(riders: Riders, ours: Upstream) -> None:
    where = ("-F", str(ours.sshd.ssh_config), "-S", ours.control_path, HOST)
    with riders.started("echo up; cat") as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        wait_until(lambda: [one["command"] for one in clients(ours)] != [""], "its command line is looked up")
        told = status(ours)
        (rider,) = clients(ours)
        assert rider["pid"] == process.pid and rider["command"].startswith(program("plink"))
        assert rider["software"].startswith("PuTTY")
        assert [one["pid"] for one in told["channels"]] == [process.pid]
        assert told["channels"][0]["description"] == "putty, session"
        assert riders.name in [one["name"] for one in told["putty"]]
        text = sshmux("status", *where).stdout
        assert riders.name in text and "plink" in text
        listed = json.loads(sshmux("list", "--json", "-F", str(ours.sshd.ssh_config)).stdout)
        mine = [one for one in listed if one["pid"] == ours.pid]
        assert [(one["path"], one["clients"]) for one in mine] == [(ours.control_path, 1)]
        assert os.getpid() != ours.pid


def test_the_owner_may_say_no_to_putty(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    _, riders = make_ours(make_sshd(), options=["-oputty=no"])
    assert not riders.exists()
