"""What the configuration says about one connection: `ssh -G` -> Settings, frozen and typed.

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
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from mux.protocol.messages import UNIX_SOCKET_PORT, Forward
from mux.rendezvous.target import Target

from . import support, values
from .values import Tokens

DEFAULT_ALIVE_S: Final = 15
# What Debian's ssh makes of an unset ServerAliveInterval under BatchMode.
_DEBIAN_BATCH_ALIVE_S: Final = 300
DEFAULT_REKEY_BYTES: Final = 1 << 30
# Order of ssh (ssh_config(5), PreferredAuthentications), as far as it can be done here.
DEFAULT_METHODS: Final = ("gssapi-with-mic", "hostbased", "publickey", "keyboard-interactive", "password")
_SSH_DEADLINE_S: Final = 10.0

_WHOLE_HASH: Final = re.compile(r"[0-9a-f]{40,}")
_FAMILIES: Final = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


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

    @classmethod
    def of(cls, target: Target, defaults: Mapping[str, tuple[str, ...]] | None = None) -> Settings:
        """`defaults`: what `ssh -G` prints without configuration; None asks ssh, once per process.

        Raises SharingError for values that mean nothing here: an unknown token, a variable that is not set.
        """
        return _Reading(target, ssh_defaults() if defaults is None else defaults).settings()

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


@lru_cache(maxsize=1)
def ssh_defaults() -> Mapping[str, tuple[str, ...]]:
    """What `ssh -G` prints for a host without any configuration; empty where ssh cannot be asked."""
    return _asked("-F", "none", "-G", "--", "localhost")


def _asked(*arguments: str) -> Mapping[str, tuple[str, ...]]:
    """What `ssh ARGUMENTS` prints, as Target.config; empty where ssh cannot be asked."""
    try:
        done = subprocess.run(
            ["ssh", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SSH_DEADLINE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return MappingProxyType({})
    found: dict[str, tuple[str, ...]] = {}
    for line in os.fsdecode(done.stdout).splitlines():
        name, _, value = line.partition(" ")
        found[name.lower()] = (*found.get(name.lower(), ()), value)
    return MappingProxyType(found)


class _Reading:
    """One pass over what `ssh -G` printed."""

    def __init__(self, target: Target, defaults: Mapping[str, tuple[str, ...]]) -> None:
        self.target = target
        self.config = target.config
        self.defaults = defaults
        self.tokens = Tokens(
            typed=target.typed,
            hostname=target.hostname,
            port=target.port,
            user=target.user,
            key_alias=self.text("hostkeyalias"),
            jump=self.text("proxyjump"),
            connection_hash=_connection_hash(target),
        )

    def first(self, name: str, default: str = "") -> str:
        return self.config.get(name, (default,))[0]

    def text(self, name: str) -> str | None:
        value = self.first(name)
        return None if value.lower() in ("", "none") else value

    def on(self, name: str, *, default: bool = False) -> bool:
        return values.switch(self.first(name), default=default)

    def number(self, name: str, default: int) -> int:
        found = values.seconds(self.first(name))
        return default if found is None else found

    def path(self, name: str) -> str | None:
        value = self.text(name)
        return None if value is None else self.tokens.path(value, name)

    def paths(self, name: str) -> tuple[str, ...]:
        found = (self.tokens.path(value, name) for value in self.config.get(name, ()) if value.lower() != "none")
        return tuple(dict.fromkeys(found))

    def update_host_keys(self) -> Ask:
        """`ask` is printed as no when there is a RemoteCommand, which Target needs for %C: so once more without it."""
        if self.on("updatehostkeys"):
            return Ask.YES
        if not self.text("userknownhostsfile") or "updatehostkeys" not in self.config:
            return Ask.NO
        again = _asked("-G", "-o", "RemoteCommand=none", *self.target.arguments)
        return Ask.ASK if again.get("updatehostkeys") == ("ask",) else Ask.NO

    def settings(self) -> Settings:
        target = self.target
        rekey_bytes, _, rekey_s = self.first("rekeylimit", "0 0").partition(" ")
        alive_s = self.number("serveraliveinterval", 0)
        batch = self.on("batchmode")
        if alive_s == 0 or (batch and alive_s == _DEBIAN_BATCH_ALIVE_S):
            alive_s = DEFAULT_ALIVE_S
        lists = ("kexalgorithms", "ciphers", "macs", "hostkeyalgorithms", "pubkeyacceptedalgorithms")
        return Settings(
            typed=target.typed,
            user=target.user,
            hostname=target.hostname,
            port=target.port,
            tokens=self.tokens,
            arguments=target.arguments,
            address_family=_FAMILIES.get(self.first("addressfamily"), socket.AF_UNSPEC),
            bind_address=self.text("bindaddress"),
            bind_interface=self.text("bindinterface"),
            connect_timeout_s=self.number("connecttimeout", 0) or None,
            connection_attempts=max(1, self.number("connectionattempts", 1)),
            tcp_keepalive=self.on("tcpkeepalive", default=True),
            ip_qos=tuple(self.first("ipqos").split()),
            proxy_command=self.text("proxycommand"),
            proxy_jump=self.text("proxyjump"),
            host_key_alias=self.text("hostkeyalias"),
            strict=_strict(self.first("stricthostkeychecking", "ask").lower()),
            user_known_hosts=values.paths(self.first("userknownhostsfile")),
            global_known_hosts=values.paths(self.first("globalknownhostsfile")),
            hash_known_hosts=self.on("hashknownhosts"),
            update_host_keys=self.update_host_keys(),
            revoked_host_keys=self.path("revokedhostkeys"),
            no_host_authentication_for_localhost=self.on("nohostauthenticationforlocalhost"),
            fingerprint_hash=self.first("fingerprinthash", "SHA256").lower(),
            identity_files=self.paths("identityfile"),
            certificate_files=self.paths("certificatefile"),
            identity_agent=values.agent_path(self.config.get("identityagent", (None,))[0], "IdentityAgent"),
            identities_only=self.on("identitiesonly"),
            add_keys=_add_keys(self.first("addkeystoagent", "no").lower().split()),
            methods=self.methods(),
            kbd_interactive_devices=self.first("kbdinteractivedevices"),
            password_prompts=self.number("numberofpasswordprompts", 3),
            batch=batch,
            required_rsa_bits=self.number("requiredrsasize", 1024),
            kex=values.names(self.first("kexalgorithms")),
            ciphers=values.names(self.first("ciphers")),
            macs=values.names(self.first("macs")),
            host_key_algorithms=values.names(self.first("hostkeyalgorithms")),
            key_algorithms=values.names(self.first("pubkeyacceptedalgorithms")),
            chosen=frozenset(name for name in lists if self.config.get(name) != self.defaults.get(name)),
            compression=self.on("compression"),
            rekey_bytes=int(rekey_bytes) or DEFAULT_REKEY_BYTES,
            rekey_s=values.seconds(rekey_s) or None,
            alive_interval_s=alive_s,
            alive_count=self.number("serveralivecountmax", 3),
            send_env=tuple(word for line in self.config.get("sendenv", ()) for word in line.split()),
            set_env=self.config.get("setenv", ()),
            forwarded_agent=self.forwarded_agent(),
            forward_x11=self.on("forwardx11"),
            forward_x11_trusted=self.on("forwardx11trusted"),
            forward_x11_timeout_s=self.number("forwardx11timeout", 1200),
            xauth=self.first("xauthlocation", "/usr/bin/xauth"),
            request_tty=self.first("requesttty", "auto"),
            forwards=self.forwards(),
            gateway_ports=self.on("gatewayports"),
            exit_on_forward_failure=self.on("exitonforwardfailure"),
            stream_local_mask=int(self.first("streamlocalbindmask", "0177"), 8),
            stream_local_unlink=self.on("streamlocalbindunlink"),
            permit_remote_open=tuple(self.first("permitremoteopen", "any").split()),
            control_master={"true": "yes", "false": "no"}.get(
                self.first("controlmaster", "no"), self.first("controlmaster", "no")
            ),
            control_persist=self.first("controlpersist", "no"),
            log_level=self.first("loglevel", "INFO").upper(),
            config=self.config,
            defaults=self.defaults,
        )

    def methods(self) -> tuple[str, ...]:
        """Those wished for and not switched off, in the order of preference."""
        allowed = {
            "publickey": self.first("pubkeyauthentication", "yes").lower() not in ("no", "false"),
            "keyboard-interactive": self.on("kbdinteractiveauthentication", default=True),
            "password": self.on("passwordauthentication", default=True),
            "gssapi-with-mic": self.on("gssapiauthentication"),
            "hostbased": self.on("hostbasedauthentication"),
        }
        preferred = values.names(self.first("preferredauthentications")) or DEFAULT_METHODS
        return tuple(name for name in dict.fromkeys(preferred) if allowed.get(name, False))

    def forwarded_agent(self) -> str | None:
        value = self.first("forwardagent", "no")
        if value.lower() == "yes":
            return values.agent_path(self.config.get("identityagent", (None,))[0], "IdentityAgent")
        return values.agent_path(value, "ForwardAgent")

    def forwards(self) -> tuple[Forward, ...]:
        if self.on("clearallforwardings"):
            return ()
        local = [values.local_forward(value) for value in self.config.get("localforward", ())]
        dynamic = [values.dynamic_forward(value) for value in self.config.get("dynamicforward", ())]
        remote = [values.remote_forward(value) for value in self.config.get("remoteforward", ())]
        # `ssh -G` prints a local forwarding to a unix socket a second time, as a dynamic one.
        to_paths = {(f.listen_host, f.listen_port) for f in local if f.connect_port == UNIX_SOCKET_PORT}
        dynamic = [f for f in dynamic if (f.listen_host, f.listen_port) not in to_paths]
        return (*local, *dynamic, *remote)


def _connection_hash(target: Target) -> str:
    """ssh's own %C, where our control path is made of the whole of it."""
    name = os.path.basename(target.own_control_path)
    return name if _WHOLE_HASH.fullmatch(name) else ""


def _strict(value: str) -> Strict:
    if value in ("ask", "accept-new"):
        return Strict(value)
    return Strict.YES if value in ("yes", "true") else Strict.NO


def _add_keys(words: list[str]) -> AddKeys:
    """`no`, `yes`, `ask`, `confirm`, each perhaps with a number of seconds, or that number alone."""
    how = next((word for word in words if not word.isdigit()), "yes" if words else "no")
    lifetime_s = next((int(word) for word in words if word.isdigit()), None) or None
    if how in ("no", "false"):
        return AddKeys()
    return AddKeys(Ask.ASK if how == "ask" else Ask.YES, confirm=how == "confirm", lifetime_s=lifetime_s)
