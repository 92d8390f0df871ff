"""`sshmux config`: ssh itself says where the lines lead to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mux.rendezvous.target import SshOptions, resolve
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd
from tests.t3_commands.command import OK, SSH_FAILED, sshmux


@pytest.fixture
def config(sshd: Sshd, tmp_path: Path) -> Path:
    """A client configuration like the server's own, without a ControlPath."""
    path = tmp_path / "config"
    lines = sshd.ssh_config.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "ControlPath" not in line) + "\n")
    return path


def control_path(sshd: Sshd, config: Path, *arguments: str) -> str:
    """Where plain ssh looks."""
    said = sshd.ssh("-G", *arguments, config=config).stdout.splitlines()
    return next((line.partition(" ")[2] for line in said if line.startswith("controlpath ")), "")


@pytest.mark.parametrize(
    "arguments",
    [[HOST], ["-p", "2222", HOST], ["-l", "other", HOST], ["-o", "HostName=127.0.0.9", HOST]],
)
def test_the_lines_lead_to_our_path(
    sshd: Sshd, config: Path, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert control_path(sshd, config, *arguments) == ""
    done = sshmux(sshd, "config", "-F", str(config), *arguments)
    assert (done.stderr, done.returncode) == ("", OK)
    config.write_text(config.read_text() + done.stdout)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sshd.runtime_dir))
    for other in ([HOST], ["-p", "2222", HOST], [f"other@{HOST}"]):
        asked = SshOptions(config_file=str(config), port=2222 if "-p" in other else None)
        user, _, host = other[-1].rpartition("@")
        assert control_path(sshd, config, *other) == resolve(host, user or None, asked).own_control_path
    # Once they are there, nothing is to be added.
    again = sshmux(sshd, "config", "-F", str(config), *arguments)
    assert all(line.startswith("# ") for line in again.stdout.splitlines())


def test_plain_ssh_then_shares_it_and_works_without(sshd: Sshd, config: Path) -> None:
    done = sshmux(sshd, "config", "-F", str(config), HOST)
    config.write_text(config.read_text() + done.stdout)
    path = control_path(sshd, config, HOST)
    assert sshd.ssh(HOST, "echo alone", config=config).stdout == "alone\n"
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with Master(sshd, control_path=path):
        assert "Master running" in sshd.ssh("-O", "check", HOST, config=config).stderr


def test_a_path_that_is_configured_already(sshd: Sshd) -> None:
    done = sshmux(sshd, "config", "-F", str(sshd.ssh_config), HOST)
    assert control_path(sshd, sshd.ssh_config, HOST) in done.stdout
    assert all(line.startswith("# ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", ["a b", "50%x", "n" * 30])
def test_directories_with_any_name(sshd: Sshd, config: Path, name: str, stack: Any) -> None:
    place = processes.make_directory() / name
    stack.callback(shutil.rmtree, place.parent)
    place.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as environment:
        environment.setattr(sshd, "runtime_dir", place)
        done = sshmux(sshd, "config", "-F", str(config), HOST)
        assert done.returncode == OK
        config.write_text(config.read_text() + done.stdout)
        environment.setenv("XDG_RUNTIME_DIR", str(place))
        own = resolve(HOST, None, SshOptions(config_file=str(config))).own_control_path
        assert control_path(sshd, config, HOST) == own
        # A name that had to be cut for the length of sockets holds for one user and port only, and that is said.
        assert ("Only as" in done.stdout) == (not done.stdout.rstrip().rstrip('"').endswith("%C"))


def test_a_host_that_ssh_cannot_resolve(sshd: Sshd) -> None:
    done = sshmux(sshd, "config", "-F", str(sshd.ssh_config), "-o", "Ciper=x", HOST)
    assert (done.stdout, done.returncode) == ("", SSH_FAILED)
    assert "Bad configuration option" in done.stderr
