"""What of ssh_config this program cannot do: options without effect here, and connections that only ssh can make.

The one rule: nothing is dropped silently. An option is in one of two tables, or it is named to the user as soon as it
is set to something other than ssh's own default; so a new option of a later OpenSSH is named until somebody puts it
into a table. Imported by `settings.py` alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from . import sshagent
from .values import home

if TYPE_CHECKING:
    from .settings import Settings

# What ssh itself does before it prints them, or what Settings and its users act on.
_HONOURED_NAMES: Final = """
    addkeystoagent addressfamily batchmode bindaddress bindinterface canonicaldomains canonicalizefallbacklocal
    canonicalizehostname canonicalizemaxdots canonicalizepermittedcnames certificatefile ciphers clearallforwardings
    compression connectionattempts connecttimeout controlmaster controlpath controlpersist dynamicforward
    exitonforwardfailure fingerprinthash forwardagent forwardx11 forwardx11timeout forwardx11trusted gatewayports
    globalknownhostsfile gssapiauthentication hashknownhosts host hostkeyalgorithms hostkeyalias hostname
    hostbasedauthentication identitiesonly identityagent identityfile ignoreunknown ipqos kbdinteractiveauthentication
    kbdinteractivedevices kexalgorithms knownhostscommand localforward loglevel macs nohostauthenticationforlocalhost
    numberofpasswordprompts passwordauthentication permitremoteopen pkcs11provider port preferredauthentications
    proxycommand proxyjump proxyusefdpass pubkeyacceptedalgorithms pubkeyauthentication refuseconnection rekeylimit
    remoteforward requesttty requiredrsasize revokedhostkeys securitykeyprovider sendenv serveralivecountmax
    serveraliveinterval setenv streamlocalbindmask streamlocalbindunlink stricthostkeychecking tag tcpkeepalive tunnel
    updatehostkeys user userknownhostsfile verifyhostkeydns xauthlocation
"""
# Of the one session that ssh itself would run, of how it logs, or of what another switch turns on.
_MEANINGLESS_NAMES: Final = """
    enableescapecommandline enablesshkeysign escapechar forkafterauthentication gssapiclientidentity
    gssapidelegatecredentials gssapikexalgorithms gssapikeyexchange gssapirenewalforcesrekey gssapiserveridentity
    gssapitrustdns hostbasedacceptedalgorithms localcommand logverbose remotecommand sessiontype stdinnull
    syslogfacility tunneldevice
"""
# The names of the rest as ssh_config(5) writes them; `ssh -G` prints them in lower case.
_OTHER_NAMES: Final = """
    CASignatureAlgorithms ChannelTimeout CheckHostIP ObscureKeystrokeTiming PermitLocalCommand VersionAddendum
    VisualHostKey WarnWeakCrypto
"""
_HONOURED: Final = frozenset(_HONOURED_NAMES.split())
_MEANINGLESS: Final = frozenset(_MEANINGLESS_NAMES.split())
_WRITTEN: Final = {name.lower(): name for name in _OTHER_NAMES.split()}
_KRL_MAGIC: Final = b"SSHKRL\n\0"


def unhonoured(config: Mapping[str, tuple[str, ...]], defaults: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of the options in `config` that differ from `defaults` and change nothing here; in their order."""
    return tuple(
        _WRITTEN.get(name, name)
        for name, value in config.items()
        if name not in _HONOURED
        and name not in _MEANINGLESS
        and value != defaults.get(name, value if _is_none(value) else None)
    )


def needs_ssh(settings: Settings) -> str | None:
    """Why only ssh can make this connection, or None."""
    return (
        _by_option(settings.config)
        or _by_algorithms(settings)
        or _by_kerberos(settings)
        or _by_revocation_list(settings)
        or _by_security_key(settings)
    )


def has_gssapi() -> bool:
    """Whether the Python package is there that asyncssh does Kerberos with."""
    return importlib.util.find_spec("gssapi") is not None


def _is_none(value: tuple[str, ...]) -> bool:
    return value in (("none",), ("",))


def _by_option(config: Mapping[str, tuple[str, ...]]) -> str | None:
    def first(name: str) -> str:
        return config.get(name, ("",))[0].lower()

    if first("pkcs11provider") not in ("", "none"):
        return "PKCS11Provider is set"
    if first("knownhostscommand") not in ("", "none"):
        return "KnownHostsCommand is set"
    if first("hostbasedauthentication") in ("yes", "true"):
        return "HostbasedAuthentication is on"
    if first("tunnel") not in ("", "no", "false"):
        return "Tunnel is on"
    if first("verifyhostkeydns") not in ("", "no", "false"):
        return "VerifyHostKeyDNS is on"
    if first("proxyusefdpass") in ("yes", "true"):
        return "ProxyUseFdpass is on"
    return None


def _by_algorithms(settings: Settings) -> str | None:
    from . import algorithms

    if not algorithms.kex(settings.kex, chosen=True):
        return "nothing in KexAlgorithms is known to asyncssh"
    if not algorithms.ciphers(settings.ciphers, chosen=True):
        return "nothing in Ciphers is known to asyncssh"
    if not algorithms.macs(settings.macs) and not any("gcm@" in name or "poly" in name for name in settings.ciphers):
        return "nothing in MACs is known to asyncssh"
    if not algorithms.host_keys(settings.host_key_algorithms):
        return "nothing in HostKeyAlgorithms is known to asyncssh"
    return None


def _by_kerberos(settings: Settings) -> str | None:
    """Distributions switch GSSAPI on for everybody: it matters to those who have a ticket, or nothing else to show."""
    if not settings.wants("gssapi-with-mic") or has_gssapi():
        return None
    if not set(settings.methods) - {"gssapi-with-mic", "hostbased"}:
        return "GSSAPI is the only authentication allowed, and the Python package gssapi is not there"
    if os.environ.get("KRB5CCNAME") or os.path.exists(f"/tmp/krb5cc_{os.getuid()}"):
        return "there is a Kerberos ticket, and the Python package gssapi is not there"
    return None


def _by_revocation_list(settings: Settings) -> str | None:
    try:
        with open(settings.revoked_host_keys or os.devnull, "rb") as file:
            return "RevokedHostKeys is a key revocation list" if file.read(len(_KRL_MAGIC)) == _KRL_MAGIC else None
    except OSError:
        return None


def _by_security_key(settings: Settings) -> str | None:
    """A key on a token of its own (FIDO) works through an agent that has it, else only through ssh."""
    if not settings.wants("publickey") or importlib.util.find_spec("fido2") is not None:
        return None
    blobs = {path: blob for path in settings.identity_files if (blob := sshagent.security_key(path)) is not None}
    if not blobs:
        return None
    held = sshagent.blobs(settings.identity_agent)
    for path, blob in blobs.items():
        if blob not in held:
            shown = path.replace(home(), "~", 1) if path.startswith(home() + "/") else path
            return f"{shown} is on a security key, and no agent has it"
    return None
