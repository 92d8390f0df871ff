"""UpdateHostKeys: what a server says of its other keys, learned into known_hosts (clientloop.c, client_input_hostkeys).

The one rule: only who is known already may say what else he is known by. ssh's conditions are all here: the key met was
in a file of the user's own or accepted by the person, the server proved every key it names, and no line about the host
is a pattern, a list, or has a marker. Imported by `login.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import asyncssh

from mux.errors import printable

from . import algorithms, knownhosts
from .hostkeys import HostKeys
from .prompts import Prompts
from .publickeys import public_key, word
from .settings import Ask, Settings

_UPDATE_ANSWERS: Final = 3  # clientloop.c, update_known_hosts


class KeyUpdate:
    """One login's part of it."""

    def __init__(self, settings: Settings, prompts: Prompts, host_keys: HostKeys, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._prompts = prompts
        self._host_keys = host_keys
        self._say = say
        self._lock = asyncio.Lock()

    async def settled(self) -> None:
        """Wait for the end of an update that a person is being asked about."""
        async with self._lock:
            pass

    async def offered(
        self,
        proven: Sequence[asyncssh.SSHKey],
        _removed: Sequence[asyncssh.SSHKey],
        _retained: Sequence[asyncssh.SSHKey],
        _revoked: Sequence[asyncssh.SSHKey],
    ) -> None:
        """The server told all of its keys after the login and proved that it has them.

        asyncssh was told of no known key, so all are new to it and all were proved.
        """
        if self._host_keys.trusted is None or self._settings.update_host_keys is Ask.NO:
            return
        kinds = {algorithms.key_type(name) for name in self._settings.host_key_algorithms}
        keys = {key.public_data: key for key in proven if key.get_algorithm() in kinds}
        async with self._lock:
            changes = self._changes(keys)
            if changes and (self._settings.update_host_keys is Ask.YES or await self._wants_update(changes)):
                for number, file in enumerate(self._settings.user_known_hosts):
                    self._rewrite(file, keys if number == 0 else (), add_missing=number == 0)

    def _changes(self, keys: Mapping[bytes, asyncssh.SSHKey]) -> list[str]:
        """What an update would do, in ssh's words; nothing where ssh would not dare either."""
        met = self._host_keys.trusted
        if met is None or met.public_data not in keys:
            return []
        user = knownhosts.read(self._settings.user_known_hosts)
        about = [entry for entry in user if entry.names(self._host_keys.name)]
        if any(entry.marker or entry.is_complex for entry in about):
            return []
        have = {entry.blob: entry for entry in about}
        # Keys that other names share are left alone: what this host says about them may not hold there.
        if any(entry.blob in have or entry.blob in keys for entry in user if not entry.names(self._host_keys.name)):
            return []
        told = [(f"Learned new hostkey: {word(key)}", key) for blob, key in keys.items() if blob not in have]
        gone = [key for key in map(public_key, set(have) - set(keys)) if key is not None]
        told += [(f"Deprecating obsolete hostkey: {word(key)}", key) for key in gone]
        return [f"{text} {key.get_fingerprint(self._settings.fingerprint_hash)}" for text, key in told]

    async def _wants_update(self, changes: Sequence[str]) -> bool:
        if not self._prompts.can_ask():
            return False
        self._say("The server has updated its host keys.")
        self._say("These changes were verified by the server's existing trusted key.")
        for change in changes:
            self._say(change)
        question = "Accept updated hostkeys? (yes/no): "
        for _ in range(_UPDATE_ANSWERS):
            answer = (await self._prompts.ask(question, echo=True) or "no").strip().lower()
            if answer in ("yes", "no"):
                return answer == "yes"
            question = "Please enter 'yes' or 'no': "
        return False

    def _rewrite(self, file: str, keys: Collection[bytes], *, add_missing: bool) -> None:
        try:
            knownhosts.replace(
                file, self._host_keys.name, keys, add_missing=add_missing, hashed=self._settings.hash_known_hosts
            )
        except OSError as error:
            self._say(f"cannot update {printable(file)}: {error.strerror}")
