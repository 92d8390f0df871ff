"""Is this the host that was meant? The policy of known_hosts, as ssh has it (sshconnect.c, clientloop.c).

The one rule: every host key comes here, asyncssh trusts none by itself. Its callbacks are synchronous (one that were a
coroutine would accept every key), so a key that a person must be asked about is refused first, the question is put
between two connections, and the second connection meets a key that is known. A changed or revoked key is told of in
ssh's words, so that the warning is recognised for what it is.

Imported by `auth.py`, which is asyncssh's client, and by `login.py`. Files are read and written by `knownhosts.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncssh

from mux.errors import ExitCode, SharingError, printable

from . import algorithms, knownhosts
from .knownhosts import Entry
from .prompts import Prompts, shown
from .publickeys import public_key, rsa_bits, word, word_of
from .settings import Settings, Strict
from .values import home

_FRAME: Final = "@" * 59
_CHANGED: Final = (
    _FRAME,
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
    _FRAME,
    "IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!",
    "Someone could be eavesdropping on you right now (man-in-the-middle attack)!",
    "It is also possible that a host key has just been changed.",
)
_REVOKED: Final = (_FRAME, "@       WARNING: REVOKED HOST KEY DETECTED!               @", _FRAME)
# Other names of a key that are listed with the question (sshconnect.c, MAX_OTHER_NAMES has a larger one).
_OTHER_NAMES: Final = 8
# A person who answers neither yes nor no is asked again; ssh does so for ever.
_ANSWERS: Final = 20


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A key to ask about."""

    name: str
    address: str
    key: asyncssh.SSHKey


class HostKeys:
    """The policy for one login, over all connections that it takes."""

    def __init__(self, settings: Settings, prompts: Prompts, say: Callable[[str], None]) -> None:
        self.unsafe = False  # changed, and StrictHostKeyChecking is no: nothing that a man in the middle could use
        self.failure: SharingError | None = None  # why the key was refused
        self.trusted: asyncssh.SSHKey | None = None  # the key met, if it was known or accepted by the person
        self._settings = settings
        self._prompts = prompts
        self._say = say
        self._unknown: _Unknown | None = None
        self._accepted: set[bytes] = set()  # by the person
        self._certificates = True
        alias = settings.host_key_alias
        self._plain_name = (alias or settings.hostname).lower()
        self.name = alias.lower() if alias else knownhosts.host_and_port(self._plain_name, settings.port)
        self._revoked = self._read_revoked()

    def asyncssh_options(self) -> dict[str, Any]:
        """What asyncssh is to be told about host keys."""
        return {
            "host_key_alias": self._settings.host_key_alias,
            "server_host_key_algs": self._algorithms(),
            "known_hosts": ([], [], self._revoked_keys() if self._has_authorities() else []),
        }

    def validate_key(self, address: str, key: asyncssh.SSHKey) -> bool:
        """Whether this plain key is the host's. Never a coroutine. Everything but `True` leaves its reason behind."""
        blob = key.public_data
        self.trusted = None
        if self._is_forced(address):
            return True
        kind, fingerprint = word(key), self._fingerprint(key)
        if self._is_in_revoked_file(blob, f"{kind} {fingerprint}") or self._is_too_small(key):
            return False
        user, others = self._entries()
        entries = [*user, *others]
        about = [entry for entry in entries if entry.names(self.name)]
        if any(entry.marker == knownhosts.REVOKED and entry.blob == blob for entry in about):
            return self._refuse_revoked(kind)
        plain = [entry for entry in about if not entry.marker]
        if any(entry.blob == blob for entry in plain):
            found = next(entry for entry in plain if entry.blob == blob)
            self.trusted = key if found.file in self._settings.user_known_hosts else None
            return True
        if plain:
            return self._refuse_changed(plain[-1], kind, fingerprint)
        if blob in self._accepted:
            self.trusted = key
            return True
        if self._is_known_without_port(entries, blob):
            return True
        return self._meet(address, key, kind)

    def validate_authority(self, key: asyncssh.SSHKey) -> bool:
        """Whether this key may sign the host's certificate."""
        blob = key.public_data
        user, others = self._entries()
        about = [entry for entry in (*user, *others) if entry.names(self.name) or entry.names(self._plain_name)]
        if any(entry.marker == knownhosts.REVOKED and entry.blob == blob for entry in about):
            return self._refuse_revoked(word(key))
        return any(entry.marker == knownhosts.CA and entry.blob == blob for entry in about)

    async def settle(self) -> None:
        """After a refusal: return if another connection may end otherwise, else raise SharingError (HOST_KEY)."""
        unknown, self._unknown = self._unknown, None
        if unknown is not None:
            if not await self._ask(unknown):
                raise self._failed("Host key verification failed: the key was not accepted")
            self._accepted.add(unknown.key.public_data)
            self._record(unknown.key)
        elif self.failure is None and self._certificates and self._has_authorities():
            # A certificate that proves nothing: ssh goes on with the plain key, and so do we, without certificates.
            self._certificates = False
        else:
            raise self.failure or self._failed("Host key verification failed")

    # What is known

    def _entries(self) -> tuple[list[Entry], list[Entry]]:
        settings = self._settings
        return knownhosts.read(settings.user_known_hosts), knownhosts.read(settings.global_known_hosts)

    def _has_authorities(self) -> bool:
        user, others = self._entries()
        names = (self.name, self._plain_name)
        return any(entry.marker == knownhosts.CA and any(map(entry.names, names)) for entry in (*user, *others))

    def _algorithms(self) -> list[str]:
        """Those of the configuration; ssh's own order puts first what is known of the host (order_hostkeyalgs)."""
        wanted = algorithms.host_keys(self._settings.host_key_algorithms)
        if not (self._certificates and self._has_authorities()):
            wanted = [name for name in wanted if not algorithms.is_certificate(name)] or wanted
        if "hostkeyalgorithms" in self._settings.chosen:
            return wanted
        user, others = self._entries()
        about = [entry for entry in (*user, *others) if not entry.marker and entry.names(self.name)]
        known = {entry.kind for entry in about}
        certified = [name for name in wanted if algorithms.is_certificate(name)]
        plain = [name for name in wanted if not algorithms.is_certificate(name)]
        plain.sort(key=lambda name: algorithms.key_type(name) not in known)
        return [*certified, *plain]

    def _is_known_without_port(self, entries: Sequence[Entry], blob: bytes) -> bool:
        """ssh takes a key that is recorded for the host alone for one at another port, and does not add it."""
        if self.name == self._plain_name:
            return False
        about = [entry for entry in entries if entry.names(self._plain_name)]
        revoked = any(entry.marker == knownhosts.REVOKED and entry.blob == blob for entry in about)
        return not revoked and any(not entry.marker and entry.blob == blob for entry in about)

    def _is_forced(self, address: str) -> bool:
        if not self._settings.no_host_authentication_for_localhost or self._settings.host_key_alias:
            return False
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return False

    # Refusals

    def _refuse_changed(self, offending: Entry, kind: str, fingerprint: str) -> bool:
        place = f"{offending.file}:{offending.number}"
        remove = f'ssh-keygen -f "{offending.file}" -R "{self.name}"'
        user_files = self._settings.user_known_hosts
        for text in (
            *_CHANGED,
            f"The fingerprint for the {kind} key sent by the remote host is",
            f"{fingerprint}.",
            "Please contact your system administrator.",
            f"Add correct host key in {user_files[0] if user_files else offending.file} to get rid of this message.",
            f"Offending {word_of(offending.kind)} key in {place}",
            "  remove with:",
            f"  {remove}",
        ):
            self._say(shown(text))
        if self._settings.strict is not Strict.NO:
            self.failure = self._failed(
                f"Host key for {self.name} has changed, and strict checking was requested; the old one is in {place}",
                f"if the change is expected, remove the old key with: {remove}",
            )
            return False
        return self._go_on_unsafely(place)

    def _go_on_unsafely(self, place: str) -> bool:
        """StrictHostKeyChecking no: ssh goes on without passwords and without the configured forwardings."""
        settings = self._settings
        if settings.forwards or settings.forwarded_agent or settings.forward_x11:
            self.failure = self._failed(
                f"Host key for {self.name} has changed (the old one is in {place}), and forwardings are configured",
                "if the change is expected remove the old key, else switch the forwardings off",
            )
            return False
        self._say("Password authentication is disabled to avoid man-in-the-middle attacks.")
        self._say("Keyboard-interactive authentication is disabled to avoid man-in-the-middle attacks.")
        self.unsafe = True
        return True

    def _refuse_revoked(self, kind: str) -> bool:
        for text in (
            *_REVOKED,
            f"The {kind} host key for {self.name} is marked as revoked.",
            "This could mean that a stolen key is being used to",
            "impersonate this host.",
        ):
            self._say(shown(text))
        self.failure = self._failed(
            f"{kind} host key for {self.name} was revoked",
            "a revoked key is never accepted here, whatever StrictHostKeyChecking says",
        )
        return False

    def _is_too_small(self, key: asyncssh.SSHKey) -> bool:
        bits = rsa_bits(key)
        if bits is None or bits >= self._settings.required_rsa_bits:
            return False
        self.failure = self._failed(f"the RSA host key of {self.name} has only {bits} bits", "see RequiredRSASize")
        return True

    def _failed(self, message: str, hint: str = "") -> SharingError:
        return SharingError(printable(message), ExitCode.HOST_KEY, printable(hint, 1000))

    # RevokedHostKeys: public keys, one on a line (a binary list is for ssh itself, see support.py)

    def _read_revoked(self) -> frozenset[bytes] | OSError:
        file = self._settings.revoked_host_keys
        if file is None:
            return frozenset()
        try:
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                text = lines.read()
        except OSError as error:
            return error
        # A public key line is a known_hosts line without the name.
        return frozenset(entry.blob for entry in knownhosts.parse("\n".join(f"* {x}" for x in text.splitlines()), file))

    def _is_in_revoked_file(self, blob: bytes, what: str) -> bool:
        file = self._settings.revoked_host_keys
        if isinstance(self._revoked, OSError):
            why = f"Error checking host key {what} in revoked keys file {file}: {self._revoked.strerror}"
        elif blob in self._revoked:
            why = f"Host key {what} revoked by file {file}"
        else:
            return False
        self._say(printable(why))
        self.failure = self._failed(why)
        return True

    def _revoked_keys(self) -> list[asyncssh.SSHKey]:
        """For certificates, whose own key asyncssh shows to nobody: what must not be in them."""
        user, others = self._entries()
        marked = (
            entry.blob for entry in (*user, *others) if entry.marker == knownhosts.REVOKED and entry.names(self.name)
        )
        blobs = {*marked, *(self._revoked if isinstance(self._revoked, frozenset) else ())}
        return [key for key in map(public_key, blobs) if key is not None]

    # A host that is new

    def _meet(self, address: str, key: asyncssh.SSHKey, kind: str) -> bool:
        strict = self._settings.strict
        if strict in (Strict.NO, Strict.ACCEPT_NEW):
            self._record(key)
            return True
        if strict is Strict.YES:
            self.failure = self._failed(
                f"No {kind} host key is known for {self.name} and you have requested strict checking",
                "connect once with plain ssh and compare the fingerprint, or set StrictHostKeyChecking to ask",
            )
            return False
        self._unknown = _Unknown(self.name, address, key)
        return False

    async def _ask(self, unknown: _Unknown) -> bool:
        fingerprint = self._fingerprint(unknown.key)
        if not self._prompts.can_ask():
            raise self._failed(
                f"the authenticity of host {unknown.name} cannot be established "
                f"({word(unknown.key)} key fingerprint is {fingerprint}), and nobody can be asked",
                "connect once with plain ssh, or set StrictHostKeyChecking=accept-new",
            )
        question = (
            f"The authenticity of host '{unknown.name} ({self._address(unknown.address)})' can't be established.\n"
            f"{word(unknown.key)} key fingerprint is {fingerprint}.\n"
            f"{self._other_names(unknown.key.public_data)}\n"
            "Are you sure you want to continue connecting (yes/no/[fingerprint])? "
        )
        for _ in range(_ANSWERS):
            answer = await self._prompts.ask(question, echo=True)
            answer = "" if answer is None else answer.strip()
            if answer.lower() in ("", "no"):
                return False
            if answer.lower() == "yes" or answer == fingerprint:
                return True
            question = "Please type 'yes', 'no' or the fingerprint: "
        return False

    def _address(self, address: str) -> str:
        if self._settings.proxy_command or self._settings.proxy_jump or not address:
            return "<no hostip for proxy command>"
        return knownhosts.host_and_port(address, self._settings.port)

    def _other_names(self, blob: bytes) -> str:
        user, others = self._entries()
        found = [entry for entry in (*user, *others) if entry.blob == blob and entry.marker != knownhosts.CA]
        if not found:
            return "This key is not known by any other names."
        lines = ["This host key is known by the following other names/addresses:"]
        for entry in found[:_OTHER_NAMES]:
            file = entry.file.replace(home() + "/", "~/", 1) if entry.file.startswith(home() + "/") else entry.file
            hosts = "[hashed name]" if entry.is_hashed else printable(entry.hosts)
            lines.append(f"    {file}:{entry.number}: {hosts}")
        if len(found) > _OTHER_NAMES:
            lines.append(f"    ({len(found) - _OTHER_NAMES} additional names omitted)")
        return "\n".join(lines)

    def _record(self, key: asyncssh.SSHKey) -> None:
        files = self._settings.user_known_hosts
        if not files:
            return
        try:
            knownhosts.add(files[0], self.name, key.public_data, hashed=self._settings.hash_known_hosts)
        except OSError as error:
            self._say(f"Failed to add the host to the list of known hosts ({printable(files[0])}): {error.strerror}")
            return
        if not self._settings.quiet:
            self._say(f"Warning: Permanently added '{printable(self.name)}' ({word(key)}) to the list of known hosts.")

    def _fingerprint(self, key: asyncssh.SSHKey) -> str:
        return key.get_fingerprint(self._settings.fingerprint_hash)
