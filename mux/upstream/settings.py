"""What the configuration says about one connection: `Settings`, frozen and typed; `configuration.py` reads them.

The one rule: every option of ssh is either honoured, or meaningless here, or named. `Settings.unhonoured` finds the
last kind by comparing with what `ssh -G` prints without any configuration, so that an option of a later OpenSSH is
never dropped silently; `Settings.needs_ssh` says when only ssh itself can do what is asked. Imported by everything in
`mux.upstream`; asyncssh is loaded only by the methods that need it.

Three defaults are ours. ServerAliveInterval is 15 s (and ServerAliveCountMax 3 of ssh) where the configuration says 0:
`ssh -G` prints 0 for unset too, and a shared connection that died unnoticed hangs everybody. Debian's ssh sets 300 with
BatchMode by itself; that one counts as unset as well. RekeyLimit without a size is 1 GiB, as RFC 4253 section 9 says
(ssh: 64 GiB with AES). CheckHostIP is never done, as in ssh by default since 8.5.
"""

from __future__ import annotations

import enum
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mux.protocol.messages import Forward

from . import support, values
from .values import Tokens

DEFAULT_ALIVE_S: Final = 15
DEFAULT_REKEY_BYTES: Final = 1 << 30
# Order of ssh (ssh_config(5), PreferredAuthentications), as far as it can be done here.
DEFAULT_METHODS: Final = ("gssapi-with-mic", "hostbased", "publickey", "keyboard-interactive", "password")


class Strict(enum.Enum):
    """StrictHostKeyChecking."""

    YES = "yes"
    NO = "no"
    ASK = "ask"
    ACCEPT_NEW = "accept-new"


class Ask(enum.Enum):
    """An option that may be left to a person."""

    YES = "yes"
    NO = "no"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class AddKeys:
    """AddKeysToAgent."""

    how: Ask = Ask.NO
    confirm: bool = False  # the agent asks at each use
    lifetime_s: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """One connection's options. Paths are expanded; times are in seconds and say so."""

    # Where to, and how bytes get there
    typed: str
    user: str
    hostname: str
    port: int
    tokens: Tokens
    arguments: tuple[str, ...]  # for ssh, the host last
    address_family: int = socket.AF_UNSPEC
    bind_address: str | None = None
    bind_interface: str | None = None
    connect_timeout_s: int | None = None  # of the TCP connection alone
    connection_attempts: int = 1
    tcp_keepalive: bool = True
    ip_qos: tuple[str, ...] = ()  # interactive, bulk; names or numbers of ssh_config, `none` for the system's
    proxy_command: str | None = None  # tokens not expanded
    proxy_jump: str | None = None

    # Who the server is
    host_key_alias: str | None = None
    strict: Strict = Strict.ASK
    user_known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    hash_known_hosts: bool = False
    update_host_keys: Ask = Ask.NO
    revoked_host_keys: str | None = None
    no_host_authentication_for_localhost: bool = False
    fingerprint_hash: str = "sha256"

    # Who we are
    identity_files: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    identity_agent: str | None = None  # the agent's socket; None for none
    identities_only: bool = False
    add_keys: AddKeys = AddKeys()
    methods: tuple[str, ...] = DEFAULT_METHODS  # those wished for, best first
    kbd_interactive_devices: str = ""
    password_prompts: int = 3
    batch: bool = False
    required_rsa_bits: int = 1024

    # The transport
    kex: tuple[str, ...] = ()
    ciphers: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    host_key_algorithms: tuple[str, ...] = ()
    key_algorithms: tuple[str, ...] = ()  # PubkeyAcceptedAlgorithms
    chosen: frozenset[str] = frozenset()  # which of these lists the configuration names, by lower-case option
    compression: bool = False
    rekey_bytes: int = DEFAULT_REKEY_BYTES
    rekey_s: int | None = None
    alive_interval_s: int = DEFAULT_ALIVE_S
    alive_count: int = 3

    # What rides on it
    send_env: tuple[str, ...] = ()  # patterns of names
    set_env: tuple[str, ...] = ()  # "NAME=value"
    forwarded_agent: str | None = None  # the socket to forward to; None: not forwarded
    forward_x11: bool = False
    forward_x11_trusted: bool = False
    forward_x11_timeout_s: int = 1200
    xauth: str = "/usr/bin/xauth"
    request_tty: str = "auto"
    forwards: tuple[Forward, ...] = ()  # local and dynamic ones, then remote ones, as ssh opens them
    gateway_ports: bool = False
    exit_on_forward_failure: bool = False
    stream_local_mask: int = 0o177
    stream_local_unlink: bool = False
    permit_remote_open: tuple[str, ...] = ("any",)

    # Sharing and telling
    control_master: str = "no"  # no, yes, ask, auto, autoask
    control_persist: str = "no"  # no, yes, or a number of seconds
    log_level: str = "INFO"

    config: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    defaults: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def persist_s(self) -> float:
        """How long the connection stays when nobody uses it: 0 for not at all, infinity for ever."""
        if self.control_persist == "yes":
            return math.inf
        return float(values.seconds(self.control_persist) or 0)

    @property
    def host(self) -> str:
        """The host in questions about the shared connection (mux.c)."""
        return self.hostname

    @property
    def control_ask(self) -> bool:
        """Whether ControlMaster wants a person asked before anybody shares."""
        return self.control_master in ("ask", "autoask")

    @property
    def known_as(self) -> str:
        """The host's name in prompts and messages, as ssh puts it."""
        return self.host_key_alias or self.hostname

    @property
    def quiet(self) -> bool:
        """Whether remarks (as a banner) are unwanted: LogLevel below INFO; `ssh -G` prints QUIET as SILENT."""
        return self.log_level in ("SILENT", "QUIET", "FATAL", "ERROR")

    def wants(self, method: str) -> bool:
        """Whether an authentication method may be tried."""
        return method in self.methods

    def unhonoured(self) -> tuple[str, ...]:
        """Options that are set to something other than ssh's default and have no effect here, as ssh_config names them.

        To be told once, when the connection is made.
        """
        return support.unhonoured(self.config, self.defaults)

    def needs_ssh(self) -> str | None:
        """Why only ssh itself can make this connection, as a sentence's end ("because ..."), or None."""
        return support.needs_ssh(self)

    def asyncssh_options(self) -> dict[str, Any]:
        """Keyword arguments for asyncssh.SSHClientConnectionOptions; login.py adds those about host keys."""
        from . import algorithms

        compression = ["zlib@openssh.com", "zlib", "none"] if self.compression else ["none", "zlib@openssh.com", "zlib"]
        return {
            "host": self.hostname,
            "port": self.port,
            "username": self.user,
            "kex_algs": algorithms.kex(self.kex, chosen="kexalgorithms" in self.chosen),
            "encryption_algs": algorithms.ciphers(self.ciphers, chosen="ciphers" in self.chosen),
            "mac_algs": algorithms.macs(self.macs),
            "compression_algs": compression,
            "signature_algs": algorithms.signatures(self.key_algorithms),
            "rekey_bytes": self.rekey_bytes,
            "rekey_seconds": self.rekey_s or 0,
            "keepalive_interval": self.alive_interval_s,
            "keepalive_count_max": self.alive_count,
            "tcp_keepalive": self.tcp_keepalive,
            # Prompts run inside the login: its deadlines are login.py's.
            "login_timeout": 0,
            "connect_timeout": None,
            "x509_trusted_certs": None,
            "x509_trusted_cert_paths": [],
            # Every method that a server may name is in the list, so that the list of a failure is the server's own;
            # whether it may be tried is said one by one.
            "preferred_auth": [*self.methods, *(name for name in DEFAULT_METHODS if name not in self.methods)],
            "public_key_auth": self.wants("publickey"),
            "kbdint_auth": self.wants("keyboard-interactive"),
            "password_auth": self.wants("password"),
            "host_based_auth": False,
            "gss_auth": self.wants("gssapi-with-mic") and support.has_gssapi(),
            "gss_kex": False,
            "gss_host": self.hostname if self.wants("gssapi-with-mic") and support.has_gssapi() else None,
            "client_keys": None,
            "agent_forwarding": False,
            "env": None,
            "send_env": None,
        }
