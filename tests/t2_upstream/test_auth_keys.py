"""Keys in files, certificates and agents at a real sshd: what is offered, in which order, and who is asked for what."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from mux.errors import ExitCode
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until
from tests.t2_upstream.logins import Agent, Said, asked, askpass, keygen, log_in, refused, sign

PASSPHRASE = "correct horse"


@pytest.fixture
def server(make_sshd: Callable[..., Sshd], tmp_path: Path) -> Sshd:
    """One that logs every key it is shown and accepts certificates of the authority in tmp_path/ca."""
    keygen(tmp_path / "ca")
    return make_sshd(extra=[f"TrustedUserCAKeys {tmp_path}/ca.pub", "MaxAuthTries 20"])


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path) as agent:
        yield agent


def admit(server: Sshd, *keys: Path) -> None:
    """Let exactly these keys in."""
    lines = [key.with_name(f"{key.name}.pub").read_text() for key in keys]
    (server.directory / "authorized_keys").write_text("".join(lines))


def whole_log(server: Sshd) -> str:
    """What it says of logins is handed on by processes that end with their connections: all of it, once they have."""
    wait_until(lambda: not server.sessions(), "all connections have ended")
    return server.log_text()


def shown_to(server: Sshd) -> list[str]:
    """Fingerprints in the order in which the server was shown or refused them."""
    return re.findall(r"(?:Failed|Accepted) publickey for \S+ .*?(SHA256:\S+)", whole_log(server))


def fingerprint(key: Path) -> str:

    return asyncssh.read_public_key(f"{key}.pub").get_fingerprint()


def test_identity_files_in_their_order(server: Sshd, tmp_path: Path) -> None:
    keys = [keygen(tmp_path / name) for name in "abc"]
    admit(server, keys[2])
    log_in(server.ssh_config, *(f"IdentityFile={key}" for key in keys))
    assert shown_to(server)[-3:] == [fingerprint(key) for key in keys]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("shape", ["RFC4716", "PEM", "PKCS8"])
@pytest.mark.parametrize("public", [True, False])
def test_encrypted_keys_of_every_kind(server: Sshd, tmp_path: Path, kind: str, shape: str, public: bool) -> None:
    key = keygen(tmp_path / "key", "-m", shape, kind=kind, passphrase=PASSPHRASE)
    admit(server, key)
    if not public:
        os.unlink(f"{key}.pub")
    log_in(server.ssh_config, f"IdentityFile={key}", environment=askpass(tmp_path, "wrong passphrase", PASSPHRASE))
    assert asked(tmp_path) == [f"|Enter passphrase for key '{key}': "] * 2


def test_no_passphrase_is_asked_for_a_key_that_the_server_does_not_want(server: Sshd, tmp_path: Path) -> None:
    locked, other = keygen(tmp_path / "locked", passphrase=PASSPHRASE), keygen(tmp_path / "other")
    admit(server, other)
    log_in(server.ssh_config, f"IdentityFile={locked}", f"IdentityFile={other}", environment=askpass(tmp_path))
    assert asked(tmp_path) == []


def test_an_empty_passphrase_goes_on_to_the_next_key(server: Sshd, tmp_path: Path) -> None:
    locked, other = keygen(tmp_path / "locked", passphrase=PASSPHRASE), keygen(tmp_path / "other")
    admit(server, locked, other)
    log_in(server.ssh_config, f"IdentityFile={locked}", f"IdentityFile={other}", environment=askpass(tmp_path, ""))
    assert len(asked(tmp_path)) == 1


def test_passphrases_are_asked_for_as_often_as_passwords(server: Sshd, tmp_path: Path) -> None:
    locked = keygen(tmp_path / "locked", passphrase=PASSPHRASE)
    admit(server, locked)
    environment = askpass(tmp_path, *["wrong"] * 5)
    error = refused(server.ssh_config, f"IdentityFile={locked}", "NumberOfPasswordPrompts=2", environment=environment)
    assert len(asked(tmp_path)) == 2
    assert error.exit_code is ExitCode.AUTH_FAILED
    assert f"tried: key {locked}" in error.message


def test_batch_mode_leaves_encrypted_keys_alone(server: Sshd, tmp_path: Path) -> None:
    locked, other = keygen(tmp_path / "locked", passphrase=PASSPHRASE), keygen(tmp_path / "other")
    admit(server, locked, other)
    environment = askpass(tmp_path, PASSPHRASE)
    log_in(server.ssh_config, f"IdentityFile={locked}", f"IdentityFile={other}", environment=environment, batch=True)
    assert asked(tmp_path) == []


def test_a_private_key_that_others_can_read_is_ignored(server: Sshd, tmp_path: Path) -> None:
    key = keygen(tmp_path / "key")
    key.chmod(0o644)
    admit(server, key)
    said = Said()
    refused(server.ssh_config, f"IdentityFile={key}", said=said)
    assert said[0] == f"Permissions 0644 for '{key}' are too open."


def test_two_keys_are_both_needed(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    server = make_sshd(extra=["AuthenticationMethods publickey,publickey"])
    first, second = keygen(tmp_path / "first"), keygen(tmp_path / "second")
    admit(server, first, second)
    options = ["IdentityFile=none"]
    config = server.directory / "two"
    text = server.ssh_config.read_text().replace(f"IdentityFile {server.directory}/user_key", "IdentityFile none")
    config.write_text(text)
    log_in(config, *options, f"IdentityFile={first}", f"IdentityFile={second}")
    error = refused(config, f"IdentityFile={first}")
    assert "Permission denied (publickey)" in error.message


def test_too_many_keys(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    server = make_sshd(extra=["MaxAuthTries 2"])
    keys = [keygen(tmp_path / name) for name in "abcd"]
    admit(server, keys[3])
    error = refused(server.ssh_config, *(f"IdentityFile={key}" for key in keys))
    assert error.exit_code is ExitCode.AUTH_FAILED
    assert "Too many authentication failures" in error.message and "IdentitiesOnly" in error.hint


def test_keys_of_the_agent_come_first_and_no_passphrase_is_asked(server: Sshd, tmp_path: Path, agent: Agent) -> None:
    locked, plain = keygen(tmp_path / "locked"), keygen(tmp_path / "plain")
    agent.add(locked)
    change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(locked)]
    subprocess.run(change, check=True, timeout=30, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    admit(server, locked, plain)
    log_in(
        server.ssh_config,
        f"IdentityFile={plain}",
        f"IdentityFile={locked}",
        f"IdentityAgent={agent.path}",
        environment=askpass(tmp_path),
    )
    assert shown_to(server)[-1] == fingerprint(locked)
    assert asked(tmp_path) == []


def test_order_of_agent_and_files(server: Sshd, tmp_path: Path, agent: Agent) -> None:
    stranger, listed, file = (keygen(tmp_path / name) for name in ("stranger", "listed", "file"))
    agent.add(stranger)
    agent.add(listed)
    admit(server)
    agent_path = f"IdentityAgent={agent.path}"
    options = [f"IdentityFile={file}", f"IdentityFile={listed}", agent_path]
    before = len(shown_to(server))
    refused(server.ssh_config, *options, "IdentitiesOnly=no")
    # The agent's keys that the configuration names, the agent's others, files.
    order = [fingerprint(listed), fingerprint(stranger), fingerprint(file), fingerprint(server.directory / "user_key")]
    assert shown_to(server)[before:] == order
    before = len(shown_to(server))
    refused(server.ssh_config, *options, "IdentitiesOnly=yes")
    assert shown_to(server)[before:] == [order[0], order[2], order[3]]


def test_order_is_that_of_ssh(server: Sshd, tmp_path: Path, agent: Agent) -> None:
    keys = {name: keygen(tmp_path / name) for name in ("stranger", "listed", "file", "certified", "beside")}
    for name in ("stranger", "listed"):
        agent.add(keys[name])
    other = keygen(tmp_path / "other_ca")
    for name in ("certified", "beside"):
        sign(other, Path(f"{keys[name]}.pub"), "-n", "nobody")
    explicit = tmp_path / "explicit-cert.pub"
    (tmp_path / "certified-cert.pub").rename(explicit)
    admit(server)
    options = [
        *(f"IdentityFile={keys[name]}" for name in ("file", "listed", "beside", "certified")),
        f"CertificateFile={explicit}",
        f"IdentityAgent={agent.path}",
        "IdentitiesOnly=no",
    ]
    pattern = r"Failed publickey for \S+ from \S+ port \d+ ssh2: (.*)"
    server.ssh(*(x for option in options for x in ("-o", option)), "box", "true", check=False)
    real = re.findall(pattern, whole_log(server))
    refused(server.ssh_config, *options)
    ours = re.findall(pattern, whole_log(server))[len(real) :]
    assert len(real) >= 6
    assert ours == real


def test_the_agent_is_found_by_every_name(
    server: Sshd, tmp_path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keygen(tmp_path / "key")
    agent.add(key)
    admit(server, key)
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.path)
    monkeypatch.setenv("MY_AGENT", agent.path)
    for name in (
        "SSH_AUTH_SOCK",
        "$MY_AGENT",
        "${MY_AGENT}",
        agent.path,
        f"{tmp_path}/%{''}".rstrip("%") + "agent",
    ):
        log_in(server.ssh_config, f"IdentityAgent={name}", "IdentitiesOnly=no")
    refused(server.ssh_config, "IdentityAgent=none", "IdentitiesOnly=no")


def test_an_agent_that_is_away_is_told_of_and_nothing_else(server: Sshd, tmp_path: Path) -> None:
    said = Said()
    log_in(server.ssh_config, f"IdentityAgent={tmp_path}/nobody", said=said)
    assert said.text().startswith(f"the agent at {tmp_path}/nobody does not answer")


def test_certificates(server: Sshd, tmp_path: Path, agent: Agent) -> None:
    key = keygen(tmp_path / "key", passphrase=PASSPHRASE)
    admit(server)
    certificate = sign(tmp_path / "ca", Path(f"{key}.pub"), "-n", server.user)
    # Beside the key; then named, with the key in a file of another name; then with the key in the agent alone.
    log_in(server.ssh_config, f"IdentityFile={key}", environment=askpass(tmp_path, PASSPHRASE))
    moved = tmp_path / "elsewhere.pub"
    certificate.rename(moved)
    options = [f"IdentityFile={key}", f"CertificateFile={moved}"]
    log_in(server.ssh_config, *options, environment=askpass(tmp_path, PASSPHRASE))
    clear = keygen(tmp_path / "clear")
    named = sign(tmp_path / "ca", Path(f"{clear}.pub"), "-n", server.user).rename(tmp_path / "named.pub")
    agent.add(clear)
    os.unlink(clear)
    log_in(server.ssh_config, f"CertificateFile={named}", f"IdentityAgent={agent.path}", "IdentitiesOnly=no")
    assert whole_log(server).count("Accepted publickey") == 3
    assert whole_log(server).count("Accepted certificate ID") >= 3


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_certificates_of_other_kinds(server: Sshd, tmp_path: Path, kind: str) -> None:
    key = keygen(tmp_path / "key", kind=kind)
    admit(server)
    sign(tmp_path / "ca", Path(f"{key}.pub"), "-n", server.user)
    log_in(server.ssh_config, f"IdentityFile={key}")


def test_accepted_algorithms_and_the_size_of_rsa_keys(server: Sshd, tmp_path: Path) -> None:
    rsa = keygen(tmp_path / "rsa", "-b", "2048", kind="rsa")
    admit(server, rsa)
    log_in(server.ssh_config, f"IdentityFile={rsa}", "PubkeyAcceptedAlgorithms=rsa-sha2-256")
    refused(server.ssh_config, f"IdentityFile={rsa}", "PubkeyAcceptedAlgorithms=ssh-ed25519")
    refused(server.ssh_config, f"IdentityFile={rsa}", "RequiredRSASize=3072")


@pytest.mark.parametrize(
    ("wish", "answers", "listed"),
    [
        ("yes", (), True),
        ("no", (), False),
        ("ask", ("yes",), True),
        ("ask", ("no",), False),
        ("1h", (), True),
        ("confirm", (), True),
    ],
)
def test_keys_are_added_to_the_agent(
    server: Sshd, tmp_path: Path, agent: Agent, wish: str, answers: tuple[str, ...], listed: bool
) -> None:
    key = keygen(tmp_path / "key", passphrase=PASSPHRASE)
    admit(server, key)
    environment = askpass(tmp_path, PASSPHRASE, *answers)
    options = [f"IdentityFile={key}", f"IdentityAgent={agent.path}", f"AddKeysToAgent={wish}"]
    log_in(server.ssh_config, *options, environment=environment)
    assert (fingerprint(key) in agent.run("-l").stdout) is listed
    if wish == "ask":
        assert asked(tmp_path)[1] == f"confirm|Add key {key} (key) to agent?"


def test_a_key_in_the_agent_for_a_while(server: Sshd, tmp_path: Path, agent: Agent) -> None:
    """With a lifetime the agent forgets the key by itself, of which it tells nobody."""
    key = keygen(tmp_path / "key")
    admit(server, key)
    log_in(server.ssh_config, f"IdentityFile={key}", f"IdentityAgent={agent.path}", "AddKeysToAgent=1")

    wait_until(lambda: "no identities" in agent.run("-l").stdout, "the agent has forgotten the key")
