"""Our own keys: which there are, in which order they are offered, and how each comes to sign.

The one rule: lazily. A key is offered by its public half; the private half is read, and a passphrase asked for, only
once the server has said that it would take it. The agent's keys come first, so that nobody is asked for a passphrase
whose key the agent holds. Order and conditions are those of ssh (sshconnect2.c, pubkey_prepare): certificates that the
configuration names, the agent's keys that it names too, the agent's other keys (not with IdentitiesOnly), files.

Imported by `auth.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import asyncssh

from mux.errors import printable

from . import algorithms
from .prompts import Prompts
from .publickeys import public_key, rsa_bits
from .settings import Ask, Settings
from .values import home
from .workers import in_thread

# A private key file is a few KiB; what is larger is none.
_MAX_FILE_BYTES: Final = 1 << 20
# The agent answers at once, unless it asks somebody: listing and adding keys never does.
_AGENT_DEADLINE_S: Final = 10.0


class FileKeyPair(asyncssh.SSHKeyPair):
    """A key in a file, known by its public half; `load` brings the private one when it has to sign."""

    _key_type = "local"

    def __init__(
        self,
        public: asyncssh.SSHKey,
        certificate: asyncssh.SSHCertificate | None,
        load: Callable[[], Awaitable[asyncssh.SSHKey]],
    ) -> None:
        super().__init__(
            public.algorithm,
            public.algorithm,
            public.sig_algorithms,
            public.sig_algorithms,
            public.public_data,
            None,
            certificate,
        )
        self._load = load

    async def sign_async(self, data: bytes) -> bytes:
        """Sign `data`; asyncssh prefers this to `sign`. Raises ValueError when there is no private key to be had."""
        private = await self._load()
        if private.public_data != self.key_public_data:
            raise ValueError("the private key is not the one of the public key beside it")
        return await in_thread(partial(private.sign, data, self.sig_algorithm))


class _Identity:
    """A key that could be offered."""

    def __init__(self, name: str, blob: bytes, pair: Callable[[], Awaitable[asyncssh.SSHKeyPair | None]]) -> None:
        self.name = name
        self.blob = blob  # b"" as long as it is not known
        self.pair = pair
        self.tried = False


class _File:
    """One IdentityFile."""

    def __init__(self, path: str, *, certified: bool) -> None:
        """`certified`: the certificate beside the key counts."""
        self.path = path
        self.public, self.needs_private = _public_half(path)
        self.certificate = _certificate(f"{path}-cert.pub") if certified else None
        self.private: asyncssh.SSHKey | None = None
        self.given_up = False


class Keys:
    """The keys of one login, over all connections that it takes."""

    def __init__(self, settings: Settings, prompts: Prompts, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._prompts = prompts
        self._say = say
        self._agent: asyncssh.SSHAgentClient | None = None
        self._identities: list[_Identity] | None = None
        self._passphrase = asyncio.Lock()

    async def next(self) -> tuple[str, asyncssh.SSHKeyPair] | None:
        """Return the next key to offer, with its name for messages; None when all were offered."""
        if self._identities is None:
            self._identities = await self._prepare()
        for identity in self._identities:
            if not identity.tried:
                identity.tried = True
                pair = await identity.pair()
                if pair is not None and self._is_allowed(pair):
                    return identity.name, pair
        return None

    def offer_again(self) -> None:
        """After a partial success the server may take what it would not take before (sshconnect2.c, pubkey_reset)."""
        for identity in self._identities or ():
            identity.tried = False

    async def close(self) -> None:
        """Let go of the agent. What was given out can sign no more; a later connection starts anew."""
        self._identities = None
        if self._agent is not None:
            agent, self._agent = self._agent, None
            agent.close()
            await agent.wait_closed()

    # What there is

    async def _prepare(self) -> list[_Identity]:
        settings = self._settings
        # Certificates that are named are the only ones (ssh.c, load_public_identity_files).
        certified = not settings.certificate_files
        files = await in_thread(lambda: [_File(path, certified=certified) for path in settings.identity_files])
        held = await self._held()
        holders = {pair.public_data: pair for pair in held}
        named = {file.public.public_data for file in files if file.public is not None}
        named |= {file.certificate.public_data for file in files if file.certificate is not None}

        found: list[_Identity] = []
        for path in self._settings.certificate_files:
            certificate = await in_thread(partial(_certificate, path))
            if certificate is not None:
                found += self._certified(path, certificate, holders, files)
        found += [self._of_agent(pair) for pair in held if pair.public_data in named]
        if not self._settings.identities_only:
            found += [self._of_agent(pair) for pair in held if pair.public_data not in named]
        for file in files:
            found += self._of_file(file, holders)
        unique = {identity.blob or identity.name: identity for identity in reversed(found)}
        return [identity for identity in found if unique[identity.blob or identity.name] is identity]

    async def _held(self) -> list[asyncssh.SSHKeyPair]:
        """The agent's keys; none when there is no agent, or one that does not answer."""
        if self._settings.identity_agent is None:
            return []
        agent = asyncssh.SSHAgentClient(self._settings.identity_agent)
        try:
            async with asyncio.timeout(_AGENT_DEADLINE_S):
                held = list(await agent.get_keys())
        except (OSError, ValueError, TimeoutError) as error:
            self._say(
                f"the agent at {printable(self._settings.identity_agent)} does not answer: {printable(str(error))}"
            )
            agent.close()
            await agent.wait_closed()
            return []
        self._agent = agent
        return held

    def _certified(
        self,
        path: str,
        certificate: asyncssh.SSHCertificate,
        holders: dict[bytes, asyncssh.SSHKeyPair],
        files: list[_File],
    ) -> list[_Identity]:
        """A certificate of the configuration, with whoever has its private key: the agent, else a file."""
        inner = certificate.key.public_data
        if inner in holders:
            return [self._of_agent(_with_certificate(holders[inner], certificate), _shown(path))]
        owner = next((file for file in files if file.public is not None and file.public.public_data == inner), None)
        return [self._pair_of(owner, certificate, _shown(path))] if owner is not None else []

    def _of_agent(self, pair: asyncssh.SSHKeyPair, name: str = "") -> _Identity:
        comment = (pair.get_comment_bytes() or b"").decode(errors="replace")

        async def made() -> asyncssh.SSHKeyPair:
            return copy.copy(pair)  # asyncssh writes the chosen algorithm into it

        return _Identity(printable(name or comment) + " (agent)", pair.public_data, made)

    def _of_file(self, file: _File, holders: dict[bytes, asyncssh.SSHKeyPair]) -> list[_Identity]:
        found: list[_Identity] = []
        name = _shown(file.path)
        if file.public is None:
            return [_Identity(name, b"", lambda: self._read_first(file))] if file.needs_private else []
        if file.certificate is not None and file.certificate.key.public_data == file.public.public_data:
            holder = holders.get(file.public.public_data)
            if holder is not None:
                found.append(self._of_agent(_with_certificate(holder, file.certificate), name))
            else:
                found.append(self._pair_of(file, file.certificate, f"{name}-cert.pub"))
        # A key on a token signs only through an agent here.
        if not file.public.get_algorithm().startswith("sk-"):
            found.append(self._pair_of(file, None, name))
        return found

    def _pair_of(self, file: _File, certificate: asyncssh.SSHCertificate | None, name: str) -> _Identity:
        public = file.public
        assert public is not None
        pair = FileKeyPair(public, certificate, lambda: self._private(file))

        async def made() -> asyncssh.SSHKeyPair:
            return copy.copy(pair)

        return _Identity(name, pair.public_data, made)

    async def _read_first(self, file: _File) -> asyncssh.SSHKeyPair | None:
        """A key in an old format without its public half beside it: to be read before it can be offered."""
        try:
            file.public = (await self._private(file)).convert_to_public()
        except ValueError:
            return None
        return FileKeyPair(file.public, None, lambda: self._private(file))

    def _is_allowed(self, pair: asyncssh.SSHKeyPair) -> bool:
        """PubkeyAcceptedAlgorithms and RequiredRSASize."""
        accepted = self._settings.key_algorithms
        is_certificate = pair.has_cert
        kinds = {algorithms.key_type(name) for name in accepted if algorithms.is_certificate(name) == is_certificate}
        key = public_key(pair.key_public_data) if not is_certificate else None
        bits = rsa_bits(key) if key is not None else None
        if bits is not None and bits < self._settings.required_rsa_bits:
            return False
        return not accepted or algorithms.key_type(pair.algorithm.decode("ascii", "replace")) in kinds

    # The private half

    async def _private(self, file: _File) -> asyncssh.SSHKey:
        async with self._passphrase:
            if file.private is None:
                if file.given_up:
                    raise ValueError("not available")
                try:
                    file.private = await self._read_private(file.path)
                except ValueError:
                    file.given_up = True
                    raise
                await self._add_to_agent(file)
            return file.private

    async def _read_private(self, path: str) -> asyncssh.SSHKey:
        try:
            data = await in_thread(partial(_private_file, path))
            return await in_thread(partial(asyncssh.import_private_key, data))
        except OSError as error:
            self._say(f"cannot read {printable(path)}: {error.strerror}")
            raise ValueError("unreadable") from error
        except TooOpen as error:
            for line in str(error).split("\n"):
                self._say(line)
            raise
        except asyncssh.KeyImportError as error:
            if not str(error).startswith("Passphrase"):
                self._say(f"cannot use {printable(path)}: {printable(str(error))}")
                raise
        for _ in range(max(1, self._settings.password_prompts)):
            passphrase = await self._prompts.ask(f"Enter passphrase for key '{printable(path)}': ", echo=False)
            if not passphrase:
                break
            with contextlib.suppress(asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
                return await in_thread(partial(asyncssh.import_private_key, data, passphrase))
        raise ValueError("no passphrase")

    async def _add_to_agent(self, file: _File) -> None:
        wish = self._settings.add_keys
        path = self._settings.identity_agent
        if wish.how is Ask.NO or path is None or file.private is None:
            return
        key = file.private
        comment = (key.get_comment_bytes() or os.fsencode(file.path)).decode(errors="replace")
        if not key.has_comment():
            key.set_comment(file.path)
        if wish.how is Ask.ASK and not await self._prompts.confirm(
            f"Add key {printable(file.path)} ({printable(comment)}) to agent?"
        ):
            return
        try:
            async with asyncio.timeout(_AGENT_DEADLINE_S):
                async with asyncssh.SSHAgentClient(path) as agent:
                    await agent.add_keys([key], lifetime=wish.lifetime_s, confirm=wish.confirm)
        except (OSError, ValueError, TimeoutError) as error:
            self._say(f"could not add {printable(file.path)} to the agent: {printable(str(error))}")


class TooOpen(ValueError):
    """A private key that others could read."""


def _private_file(path: str) -> bytes:
    """Read a private key, unless others may read it too (authfile.c, sshkey_perm_ok)."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid == os.getuid() and status.st_mode & 0o077:
            raise TooOpen(
                f"Permissions {status.st_mode & 0o777:04o} for '{printable(path)}' are too open.\n"
                "It is required that your private key files are NOT accessible by others.\n"
                "This private key will be ignored."
            )
        return file.read(_MAX_FILE_BYTES)


def _public_half(path: str) -> tuple[asyncssh.SSHKey | None, bool]:
    """(public key if it can be known without a passphrase, whether the file has to be read for it).

    Where ssh looks for it, in its order: in the private key, in the file itself, in the file with .pub.
    """
    data = b""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES)
    except OSError:
        pass
    with contextlib.suppress(ValueError):
        return asyncssh.import_public_key(data), False
    with contextlib.suppress(OSError, ValueError):
        return asyncssh.read_public_key(f"{path}.pub"), False
    return None, b"PRIVATE KEY" in data


def _certificate(path: str) -> asyncssh.SSHCertificate | None:
    try:
        return asyncssh.read_certificate(path)
    except (OSError, ValueError):
        return None


def _with_certificate(pair: asyncssh.SSHKeyPair, certificate: asyncssh.SSHCertificate) -> asyncssh.SSHKeyPair:
    certified = copy.copy(pair)
    certified.set_certificate(certificate)
    return certified


def _shown(path: str) -> str:
    return printable(path.replace(home(), "~", 1) if path.startswith(home() + "/") else path)
