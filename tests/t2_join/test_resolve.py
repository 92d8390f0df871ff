"""What a host means: as the installed ssh says it, and where a real master then listens."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.errors import ExitCode, JoinError
from mux.rendezvous.sockets import Found, probe
from mux.rendezvous.target import SshOptions, Target, resolve, runtime_directory
from tests.support.sshd import HOST, Sshd, program

Configure = Callable[..., Path]


def asked(*arguments: str) -> dict[str, str]:
    """What `ssh -G` prints, one value for each name."""
    done = subprocess.run([program("ssh"), "-G", *arguments], capture_output=True, text=True, timeout=30, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@pytest.fixture
def configure(sshd: Sshd, control_path: str, tmp_path: Path) -> Configure:
    """`configure(*lines)`: a configuration for the server that begins with these lines and has no other ControlPath.

    DIR in them stands for a short directory of this test.
    """

    def write(*lines: str) -> Path:
        path = tmp_path / "config"
        common = [line for line in sshd.ssh_config.read_text().splitlines() if "ControlPath" not in line]
        jump = ["Host jump", *common[1:]]
        text = "\n".join([*lines, *common, *jump, ""])
        path.write_text(text.replace("DIR", os.path.dirname(control_path)))
        return path

    return write


def start_and_end(target: Target, path: str) -> None:
    """Start a master with the very command that a user is told, see it where it was looked for, and end it."""
    assert probe(path).found is Found.ABSENT
    quiet = subprocess.DEVNULL
    start = ["sh", "-c", target.start_command(path)]
    subprocess.run(start, stdin=quiet, stdout=quiet, stderr=quiet, timeout=30, check=True)
    found = probe(path)
    end = [program("ssh"), "-o", f"ControlPath={path.replace('%', '%%')}", "-O", "exit", *target.arguments]
    ended = subprocess.run(end, stdin=quiet, capture_output=True, text=True, timeout=30)
    assert "Exit request sent" in ended.stderr
    assert found.found is Found.LIVE, found.detail


@pytest.mark.parametrize(
    "lines",
    [
        ["ControlPath DIR/fixed"],
        ["ControlPath DIR/%C"],
        ["ControlPath DIR/%n-%k"],
        ["ControlPath DIR/%r@%h:%p"],
        ["ControlPath DIR/%L%%%i%u"],
        ["ControlPath ${SMX_PLACE}/x"],
        ["ControlPath ~/../../../../..DIR/x"],
        ["ControlPath DIR/no/such/directory"],
        ["Host box", "    ProxyJump jump", "    ControlPath DIR/%C"],
        ['Match host box exec "true"', "    ControlPath DIR/early", "Host *", "    ControlPath DIR/late"],
        ["Include DIR/more", "Host box"],
    ],
)
def test_the_control_path_is_where_a_real_master_listens(
    configure: Configure, control_path: str, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv("SMX_PLACE", os.path.dirname(control_path))
    Path(control_path).with_name("more").write_text(f"ControlPath {control_path}.included\n")
    config = configure(*lines)
    target = resolve(HOST, None, SshOptions(config_file=str(config)))
    assert target.control_path == asked("-F", str(config), HOST)["controlpath"]
    start_and_end(target, target.control_path)


@pytest.mark.parametrize("lines", [[], ["ControlPath none"], ["Host box", "    ProxyJump jump"]])
def test_our_own_path_is_named_by_the_hash_that_ssh_makes(
    configure: Configure, control_path: str, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    runtime_dir = os.path.dirname(control_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    config = str(configure(*lines))
    target = resolve(HOST, None, SshOptions(config_file=config))
    said = asked("-F", config, "-o", "ControlPath=%C", HOST)["controlpath"]
    assert target.control_path is None
    assert target.own_control_path == f"{runtime_dir}/sshmux/{said}"
    start_and_end(target, target.own_control_path)


@pytest.mark.parametrize(
    ("user", "options", "arguments"),
    [
        (None, SshOptions(), []),
        ("me", SshOptions(), ["-l", "me"]),
        (None, SshOptions(user="me"), ["-l", "me"]),
        ("you", SshOptions(user="me"), ["-l", "me"]),
        ("you", SshOptions(options=("User=me",)), ["-l", "me"]),
        (None, SshOptions(port=2222), ["-p", "2222"]),
        (None, SshOptions(port=2222, options=("Port=3333",)), ["-p", "2222"]),
        (None, SshOptions(options=("HostName=127.0.0.2",)), ["-o", "HostName=127.0.0.2"]),
        (None, SshOptions(options=("ProxyJump=jump",)), ["-J", "jump"]),
        (None, SshOptions(control_path="/given/%n-%p"), ["-S", "/given/%n-%p"]),
        (None, SshOptions(control_path="/given", options=("ControlPath=/other",)), ["-S", "/given"]),
        (None, SshOptions(options=("ControlPath=/first", "ControlPath=/second")), ["-S", "/first"]),
        (None, SshOptions(options=("RemoteCommand=true",)), []),
    ],
)
def test_options_of_the_command_line(
    configure: Configure, user: str | None, options: SshOptions, arguments: list[str]
) -> None:
    config = str(configure("ControlPath DIR/%C", "Host box", "    RemoteCommand false"))
    with_config = SshOptions(config, options.port, options.user, options.control_path, False, options.options)
    target = resolve(HOST, user, with_config)
    said = asked("-F", config, *arguments, HOST)
    assert target.control_path == said["controlpath"]
    assert (target.user, target.hostname, target.port) == (said["user"], said["hostname"], int(said["port"]))
    connection_hash = asked("-F", config, *arguments[: 2 * ("-S" not in arguments)], "-S", "%C", HOST)["controlpath"]
    assert os.path.basename(target.own_control_path) == connection_hash


def test_none(configure: Configure) -> None:
    config = str(configure("ControlPath DIR/%C"))
    assert resolve(HOST, None, SshOptions(config, control_path="none")).control_path is None


def test_a_relative_path_is_made_absolute(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    target = resolve(HOST, None, SshOptions(str(configure()), control_path="sub/../%n"))
    assert target.control_path == f"{tmp_path}/sub/../box"


def test_a_path_that_is_not_utf_8(configure: Configure) -> None:
    path = os.fsdecode(b"/tmp/\xff")
    assert resolve(HOST, None, SshOptions(str(configure()), control_path=path)).control_path == path


def test_the_configuration_comes_along(configure: Configure) -> None:
    config = resolve(HOST, None, SshOptions(str(configure("SendEnv ONE", "SendEnv TWO")))).config
    assert config["stricthostkeychecking"] == ("true",)
    assert config["sendenv"][:2] == ("ONE", "TWO")


def test_addresses(configure: Configure) -> None:
    target = resolve("::1", "me", SshOptions(str(configure())))
    assert (target.typed, target.hostname, target.user) == ("::1", "::1", "me")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SshOptions(options=("Ciper=x",)), "Bad configuration option: ciper"),
        (SshOptions(config_file="/nonexistent/config"), "/nonexistent/config"),
        (SshOptions(control_path="${NO_SUCH_VARIABLE}/x"), "NO_SUCH_VARIABLE"),
        (SshOptions(control_path="/tmp/%Z"), "%Z"),
        (SshOptions(options=("Port=\x1b[31m",)), "\\033[31m"),
    ],
)
def test_errors_are_in_the_words_of_ssh(options: SshOptions, words: str) -> None:
    with pytest.raises(JoinError, match="ssh cannot resolve box: ") as caught:
        resolve(HOST, None, options)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.exit_code is ExitCode.FAILURE


def test_a_configuration_that_takes_for_ever_is_ended_with_what_it_runs(configure: Configure) -> None:
    config = str(configure('Match exec "sleep 1000; true"'))
    with pytest.raises(JoinError, match=r"no answer within 0\.3 s"):
        resolve(HOST, None, SshOptions(config), deadline_s=0.3)


def test_what_a_configuration_leaves_running_is_not_waited_for(configure: Configure, tmp_path: Path) -> None:
    config = str(configure(f'Match exec "sleep 1000 & echo $! > {tmp_path}/pid"'))
    assert resolve(HOST, None, SshOptions(config)).port != 22
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_without_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(JoinError, match="cannot run `ssh`") as caught:
        resolve(HOST, None, SshOptions())
    assert "install" in caught.value.hint


def test_another_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho who are you\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(JoinError, match="is the `ssh` in PATH OpenSSH"):
        resolve(HOST, None, SshOptions())


def test_the_runtime_directory_is_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fallback = f"/run/user/{os.geteuid()}"
    expected = fallback if os.path.isdir(fallback) else None
    assert runtime_directory() == os.environ["XDG_RUNTIME_DIR"]
    for other in ("", "relative", f"{tmp_path}/none", "/" if os.geteuid() else "/proc/self/fd/1/x"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
        assert runtime_directory() == expected
