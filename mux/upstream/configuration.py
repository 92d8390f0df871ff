"""What `ssh -G` printed for a target, read as `Settings`.

The one rule: it is ssh that reads the configuration; here its words are only given types. Where `ssh -G` does not say
what was meant (a default that looks like a choice, an option printed twice), the reason for what is made of it stands
beside it. Imported by `service.py`.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from mux.protocol.messages import UNIX_SOCKET_PORT, Forward
from mux.rendezvous.target import Target

from . import values
from .settings import DEFAULT_ALIVE_S, DEFAULT_METHODS, DEFAULT_REKEY_BYTES, AddKeys, Ask, Settings, Strict
from .values import Tokens

# What Debian's ssh makes of an unset ServerAliveInterval under BatchMode.
_DEBIAN_BATCH_ALIVE_S: Final = 300
_SSH_DEADLINE_S: Final = 10.0

_WHOLE_HASH: Final = re.compile(r"[0-9a-f]{40,}")
_FAMILIES: Final = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def settings_of(target: Target, defaults: Mapping[str, tuple[str, ...]] | None = None) -> Settings:
    """`defaults`: what `ssh -G` prints without configuration; None asks ssh, once per process.

    Raises SharingError for values that mean nothing here: an unknown token, a variable that is not set.
    """
    return _Reading(target, ssh_defaults() if defaults is None else defaults).settings()


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
