"""What `ssh -G` prints -> Settings: the installed ssh is asked about real configuration files."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest

from mux.errors import SharingError
from mux.protocol.messages import UNIX_SOCKET_PORT, Forward, ForwardKind
from mux.rendezvous.target import SshOptions, resolve
from mux.upstream import support
from mux.upstream.configuration import settings_of, ssh_defaults
from mux.upstream.settings import DEFAULT_REKEY_BYTES, AddKeys, Ask, Settings, Strict
from mux.upstream.values import home


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ssh_config"
    path.write_text("")
    return path


def of(config: Path, *options: str, host: str = "box.example", user: str | None = "me") -> Settings:
    return settings_of(resolve(host, user, SshOptions(config_file=str(config), options=options)))


def test_defaults(config: Path) -> None:
    settings = of(config)
    assert (settings.user, settings.hostname, settings.host, settings.port) == ("me", "box.example", "box.example", 22)
    assert settings.address_family == socket.AF_UNSPEC
    assert settings.strict is Strict.ASK and settings.update_host_keys is Ask.YES
    assert settings.user_known_hosts == (f"{home()}/.ssh/known_hosts", f"{home()}/.ssh/known_hosts2")
    assert settings.global_known_hosts[0] == "/etc/ssh/ssh_known_hosts"
    assert f"{home()}/.ssh/id_ed25519" in settings.identity_files
    assert settings.methods == ("publickey", "keyboard-interactive", "password")
    assert (settings.alive_interval_s, settings.alive_count) == (15, 3)
    assert (settings.rekey_bytes, settings.rekey_s) == (DEFAULT_REKEY_BYTES, None)
    assert settings.connect_timeout_s is None and settings.tcp_keepalive and not settings.compression
    assert settings.forwards == () and settings.forwarded_agent is None and not settings.forward_x11
    assert settings.permit_remote_open == ("any",) and settings.stream_local_mask == 0o177
    assert (settings.control_persist, settings.persist_s) == ("no", 0)
    assert settings.chosen == frozenset()
    assert settings.unhonoured() == () and settings.needs_ssh() is None


def test_everything_else_than_default(config: Path, tmp_path: Path) -> None:
    config.write_text(
        """
        Host box.example
            HostName 192.0.2.7
            HostKeyAlias Alias
            Port 2222
            User someone
            AddressFamily inet6
            BindAddress 192.0.2.1
            BindInterface lo
            ConnectTimeout 1m
            ConnectionAttempts 3
            TCPKeepAlive no
            IPQoS af21 none
            ProxyCommand nc %h %p
            StrictHostKeyChecking accept-new
            HashKnownHosts yes
            UpdateHostKeys no
            NoHostAuthenticationForLocalhost yes
            FingerprintHash md5
            IdentitiesOnly yes
            AddKeysToAgent confirm 5m
            KbdInteractiveDevices pam,otp
            NumberOfPasswordPrompts 1
            PreferredAuthentications password,publickey,hostbased
            RequiredRSASize 2048
            Compression yes
            RekeyLimit 512M 1h
            ServerAliveInterval 7
            ServerAliveCountMax 2
            SendEnv LANG LC_*
            SendEnv FOO
            SetEnv "A=b c" D=e
            ForwardX11 yes
            ForwardX11Trusted no
            ForwardX11Timeout 1h
            GatewayPorts yes
            ExitOnForwardFailure yes
            StreamLocalBindMask 0117
            StreamLocalBindUnlink yes
            PermitRemoteOpen a:1 b:2
            RequestTTY force
            RemoteCommand ignored
            LogLevel QUIET
            ControlMaster autoask
            ControlPersist 90
        """
    )
    settings = of(config, user=None)
    assert (settings.user, settings.hostname, settings.port) == ("someone", "192.0.2.7", 2222)
    assert (settings.host_key_alias, settings.known_as) == ("alias", "alias")
    assert settings.address_family == socket.AF_INET6
    assert (settings.bind_address, settings.bind_interface) == ("192.0.2.1", "lo")
    assert (settings.connect_timeout_s, settings.connection_attempts, settings.tcp_keepalive) == (60, 3, False)
    assert settings.ip_qos == ("af21", "none")
    assert settings.proxy_command == "nc %h %p"
    assert settings.tokens.expand(settings.proxy_command, "ProxyCommand") == "nc 192.0.2.7 2222"
    assert (settings.strict, settings.update_host_keys) == (Strict.ACCEPT_NEW, Ask.NO)
    assert settings.hash_known_hosts and settings.no_host_authentication_for_localhost
    assert settings.fingerprint_hash == "md5" and settings.identities_only
    assert settings.add_keys == AddKeys(Ask.YES, confirm=True, lifetime_s=300)
    assert (settings.kbd_interactive_devices, settings.password_prompts) == ("pam,otp", 1)
    assert settings.methods == ("password", "publickey")
    assert settings.required_rsa_bits == 2048 and settings.compression
    assert (settings.rekey_bytes, settings.rekey_s) == (512 << 20, 3600)
    assert (settings.alive_interval_s, settings.alive_count) == (7, 2)
    assert settings.send_env == ("LANG", "LC_*", "FOO")
    assert settings.set_env == ("A=b c", "D=e")
    assert settings.forward_x11 and not settings.forward_x11_trusted and settings.forward_x11_timeout_s == 3600
    assert settings.gateway_ports and settings.exit_on_forward_failure
    assert settings.stream_local_mask == 0o117 and settings.stream_local_unlink
    assert settings.permit_remote_open == ("a:1", "b:2")
    assert settings.request_tty == "force" and settings.quiet
    assert settings.control_ask and settings.control_master == "autoask" and settings.persist_s == 90
    assert settings.unhonoured() == () and settings.needs_ssh() is None


def test_lists_of_known_hosts_files(config: Path, tmp_path: Path) -> None:
    blank = tmp_path / "with blank"
    blank.write_text("")
    settings = of(config, f'UserKnownHostsFile=~/%n "{blank}" {tmp_path}/missing', "GlobalKnownHostsFile=none")
    assert settings.user_known_hosts == (f"{home()}/box.example", str(blank), f"{tmp_path}/missing")
    assert settings.global_known_hosts == ()
    assert of(config, "UserKnownHostsFile=none").user_known_hosts == ()
    assert of(config, "UserKnownHostsFile=known here").user_known_hosts == ("known", "here")


def test_files_with_tokens(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/keys")
    settings = of(
        config,
        "IdentityFile=${WHERE}/%r@%h:%p-%n-%%",
        "IdentityFile=~/.ssh/%u",
        "CertificateFile=%d/c-%L",
        "RevokedHostKeys=~/revoked-%k",
        "HostName=real",
        "Port=7",
    )
    assert settings.identity_files[0] == "/keys/me@real:7-box.example-%"
    assert settings.identity_files[1].startswith(f"{home()}/.ssh/")
    assert settings.certificate_files == (f"{home()}/c-{socket.gethostname().split('.')[0]}",)
    assert settings.revoked_host_keys == f"{home()}/revoked-box.example"
    with pytest.raises(SharingError, match="NOT_SET"):
        of(config, "IdentityFile=${NOT_SET}/x")
    with pytest.raises(SharingError, match="%Z"):
        of(config, "IdentityFile=/x%Z")


def test_the_hash_token_is_that_of_ssh(config: Path) -> None:
    theirs = resolve("box.example", "me", SshOptions(config_file=str(config), control_path="/x/%C")).control_path
    assert theirs == f"/x/{of(config, 'IdentityFile=%C').identity_files[0]}"


@pytest.mark.parametrize(
    ("option", "agent"),
    [
        ("IdentityAgent=none", None),
        ("IdentityAgent=SSH_AUTH_SOCK", "/usual"),
        ("IdentityAgent=$OTHER", "/other"),
        ("IdentityAgent=$MISSING", None),
        ("IdentityAgent=${OTHER}", "/other"),
        ("IdentityAgent=/a/%h", "/a/box.example"),
        ("BatchMode=no", "/usual"),
    ],
)
def test_the_agent(config: Path, monkeypatch: pytest.MonkeyPatch, option: str, agent: str | None) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/usual")
    monkeypatch.setenv("OTHER", "/other")
    monkeypatch.delenv("MISSING", raising=False)
    assert of(config, option).identity_agent == agent


@pytest.mark.parametrize(
    ("options", "forwarded"),
    [
        (("ForwardAgent=yes",), "/usual"),
        (("ForwardAgent=yes", "IdentityAgent=/dev/null"), "/dev/null"),
        (("ForwardAgent=$OTHER",), "/dev/zero"),
        (("ForwardAgent=/dev/null",), "/dev/null"),
        (("ForwardAgent=no",), None),
    ],
)
def test_the_agent_that_is_forwarded(
    config: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], forwarded: str | None
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/usual")
    monkeypatch.setenv("OTHER", "/dev/zero")
    assert of(config, *options).forwarded_agent == forwarded


def local(host: bytes, port: int, to: bytes, to_port: int) -> Forward:
    return Forward(ForwardKind.LOCAL, host, port, to, to_port)


@pytest.mark.parametrize(
    ("option", "forward"),
    [
        ("LocalForward=8080 localhost:80", local(b"", 8080, b"localhost", 80)),
        ("LocalForward=*:8080 [2001:db8::1]:80", local(b"*", 8080, b"2001:db8::1", 80)),
        ("LocalForward=:8080 h:80", local(b"*", 8080, b"h", 80)),
        ("LocalForward=localhost:8 /run/x", local(b"localhost", 8, b"/run/x", UNIX_SOCKET_PORT)),
        ("LocalForward=/tmp/%h.s /run/x", local(b"/tmp/box.example.s", UNIX_SOCKET_PORT, b"/run/x", UNIX_SOCKET_PORT)),
        ('LocalForward="/tmp/a b" h:1', local(b"/tmp/a b", UNIX_SOCKET_PORT, b"h", 1)),
        ("RemoteForward=0 h:1", Forward(ForwardKind.REMOTE, b"", 0, b"h", 1)),
        ("RemoteForward=1080", Forward(ForwardKind.REMOTE, b"", 1080, b"socks", 0)),
        ("RemoteForward=/r x:9", Forward(ForwardKind.REMOTE, b"/r", UNIX_SOCKET_PORT, b"x", 9)),
        ("DynamicForward=1080", Forward(ForwardKind.DYNAMIC, b"", 1080, b"socks", 0)),
        ("DynamicForward=[::1]:1080", Forward(ForwardKind.DYNAMIC, b"::1", 1080, b"socks", 0)),
    ],
)
def test_a_forwarding(config: Path, option: str, forward: Forward) -> None:
    assert of(config, option).forwards == (forward,)
    assert of(config, option, "ClearAllForwardings=yes").forwards == ()


def test_forwardings_in_the_order_of_ssh(config: Path) -> None:
    options = ("RemoteForward=1 h:1", "DynamicForward=2", "LocalForward=3 /x", "LocalForward=4 h:4")
    assert [forward.listen_port for forward in of(config, *options).forwards] == [3, 4, 2, 1]


@pytest.mark.parametrize(
    ("value", "strict"),
    [
        ("yes", Strict.YES),
        ("no", Strict.NO),
        ("off", Strict.NO),
        ("ask", Strict.ASK),
        ("accept-new", Strict.ACCEPT_NEW),
    ],
)
def test_strict(config: Path, value: str, strict: Strict) -> None:
    assert of(config, f"StrictHostKeyChecking={value}").strict is strict


def test_update_host_keys(config: Path) -> None:
    assert of(config, "UpdateHostKeys=ask").update_host_keys is Ask.ASK
    assert of(config, "UserKnownHostsFile=/x").update_host_keys is Ask.NO
    assert of(config, "UserKnownHostsFile=/x", "UpdateHostKeys=yes").update_host_keys is Ask.YES
    assert of(config, "VerifyHostKeyDNS=yes").update_host_keys is Ask.NO


@pytest.mark.parametrize(
    ("value", "add"),
    [
        ("no", AddKeys()),
        ("yes", AddKeys(Ask.YES)),
        ("ask", AddKeys(Ask.ASK)),
        ("confirm", AddKeys(Ask.YES, confirm=True)),
        ("2h", AddKeys(Ask.YES, lifetime_s=7200)),
    ],
)
def test_adding_keys(config: Path, value: str, add: AddKeys) -> None:
    assert of(config, f"AddKeysToAgent={value}").add_keys == add


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        (("PubkeyAuthentication=no",), ("keyboard-interactive", "password")),
        (("PubkeyAuthentication=unbound",), ("publickey", "keyboard-interactive", "password")),
        (("PasswordAuthentication=no", "KbdInteractiveAuthentication=no"), ("publickey",)),
        (("GSSAPIAuthentication=yes",), ("gssapi-with-mic", "publickey", "keyboard-interactive", "password")),
        (("PreferredAuthentications=password",), ("password",)),
        (("PreferredAuthentications=none",), ()),
    ],
)
def test_methods(config: Path, options: tuple[str, ...], methods: tuple[str, ...]) -> None:
    assert of(config, *options).methods == methods


@pytest.mark.parametrize(
    ("options", "interval_s"),
    [
        ((), 15),
        (("ServerAliveInterval=0",), 15),
        (("ServerAliveInterval=40",), 40),
        (("BatchMode=yes",), 15),
        (("BatchMode=yes", "ServerAliveInterval=40"), 40),
    ],
)
def test_a_dead_connection_is_always_noticed(config: Path, options: tuple[str, ...], interval_s: int) -> None:
    assert of(config, *options).alive_interval_s == interval_s


@pytest.mark.parametrize(("value", "persist_s"), [("no", 0), ("yes", math.inf), ("0", math.inf), ("5m", 300)])
def test_persist(config: Path, value: str, persist_s: float) -> None:
    assert of(config, f"ControlPersist={value}").persist_s == persist_s


class TestAlgorithms:
    """What is offered of what is asked for."""

    def test_ours_where_the_configuration_says_nothing(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mux.upstream.algorithms.cpu_has_aes", lambda: True)
        options = of(config).asyncssh_options()
        assert options["encryption_algs"][:2] == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
        assert "chacha20-poly1305@openssh.com" in options["encryption_algs"]
        assert options["kex_algs"][0] in ("mlkem768x25519-sha256", "sntrup761x25519-sha512")
        monkeypatch.setattr("mux.upstream.algorithms.cpu_has_aes", lambda: False)
        assert of(config).asyncssh_options()["encryption_algs"][0] == "chacha20-poly1305@openssh.com"

    def test_what_the_configuration_names_and_in_its_order(self, config: Path) -> None:
        options = of(
            config,
            "Ciphers=chacha20-poly1305@openssh.com,aes256-gcm@openssh.com",
            "MACs=hmac-sha2-256,umac-64@openssh.com",
            "KexAlgorithms=ecdh-sha2-nistp256,curve25519-sha256",
            "PubkeyAcceptedAlgorithms=ssh-ed25519-cert-v01@openssh.com,rsa-sha2-512",
        ).asyncssh_options()
        assert options["encryption_algs"] == ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]
        assert options["mac_algs"][0] == "hmac-sha2-256"
        assert options["kex_algs"] == ["ecdh-sha2-nistp256", "curve25519-sha256"]
        assert options["signature_algs"] == ["ssh-ed25519", "rsa-sha2-512"]

    def test_changes_to_the_default_list_are_a_choice(self, config: Path) -> None:
        options = of(config, "Ciphers=-aes128-gcm@openssh.com").asyncssh_options()
        assert options["encryption_algs"][0] == "chacha20-poly1305@openssh.com"
        assert "aes128-gcm@openssh.com" not in options["encryption_algs"]

    def test_compression(self, config: Path) -> None:
        assert of(config, "Compression=yes").asyncssh_options()["compression_algs"][0] == "zlib@openssh.com"
        assert of(config).asyncssh_options()["compression_algs"][0] == "none"


class TestLimits:
    """What cannot be honoured is named; what only ssh can do goes to ssh."""

    def test_options_without_effect(self, config: Path) -> None:
        settings = of(config, "VisualHostKey=yes", "PermitLocalCommand=yes", "LocalCommand=x", "Ciphers=aes128-ctr")
        assert settings.unhonoured() == ("PermitLocalCommand", "VisualHostKey")

    def test_an_option_of_a_later_ssh_is_named(self) -> None:
        told = support.unhonoured({"quantumleap": ("yes",), "port": ("22",), "novelty": ("none",)}, {"port": ("22",)})
        assert told == ("quantumleap",)

    def test_no_default_is_named(self) -> None:
        assert support.unhonoured(ssh_defaults(), ssh_defaults()) == ()

    @pytest.mark.parametrize(
        ("option", "reason"),
        [
            ("PKCS11Provider=/x.so", "PKCS11Provider is set"),
            ("KnownHostsCommand=/bin/true", "KnownHostsCommand is set"),
            ("HostbasedAuthentication=yes", "HostbasedAuthentication is on"),
            ("Tunnel=yes", "Tunnel is on"),
            ("VerifyHostKeyDNS=ask", "VerifyHostKeyDNS is on"),
            ("ProxyUseFdpass=yes", "ProxyUseFdpass is on"),
            ("KexAlgorithms=sntrup761x25519-sha512@openssh.com", "nothing in KexAlgorithms is known to asyncssh"),
        ],
    )
    def test_only_ssh_can(self, config: Path, option: str, reason: str) -> None:
        assert of(config, option).needs_ssh() == reason

    def test_kerberos_counts_where_it_matters(
        self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Debian switches GSSAPIAuthentication on for everybody."""
        monkeypatch.setattr(support, "has_gssapi", lambda: False)
        monkeypatch.delenv("KRB5CCNAME", raising=False)
        on = "GSSAPIAuthentication=yes"
        assert of(config, on).needs_ssh() is None
        assert "only authentication" in str(of(config, on, "PreferredAuthentications=gssapi-with-mic").needs_ssh())
        monkeypatch.setenv("KRB5CCNAME", "/tmp/ticket")
        assert "ticket" in str(of(config, on).needs_ssh())
        assert of(config).needs_ssh() is None
        monkeypatch.setattr(support, "has_gssapi", lambda: True)
        assert of(config, on).needs_ssh() is None

    def test_a_list_of_revocations(self, config: Path, tmp_path: Path) -> None:
        revoked = tmp_path / "revoked"
        revoked.write_bytes(b"SSHKRL\n\0rest")
        assert of(config, f"RevokedHostKeys={revoked}").needs_ssh() == "RevokedHostKeys is a key revocation list"
        revoked.write_text("ssh-ed25519 AAAA\n")
        assert of(config, f"RevokedHostKeys={revoked}").needs_ssh() is None

    def test_a_key_on_a_token(self, config: Path, tmp_path: Path) -> None:
        path = tmp_path / "id_sk"
        option = f"IdentityFile={path}"
        assert of(config, option).needs_ssh() is None
        blob = "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t"
        Path(f"{path}.pub").write_text(f"sk-ssh-ed25519@openssh.com {blob} token\n")
        assert of(config, option).needs_ssh() == f"{path} is on a security key, and no agent has it"
        assert of(config, option, "PubkeyAuthentication=no").needs_ssh() is None
