"""Who we say we are: asyncssh's client object, which it asks for keys, passwords and answers.

The one rule: nothing is sent to a server whose key was not accepted, and nobody is asked twice for what was answered.
Each method keeps its own count (NumberOfPasswordPrompts), remembers what it tried for the message of a failure, and
turns an interrupted question into the end of the login. Imported by `login.py`; the order of methods is asyncssh's,
after PreferredAuthentications.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import asyncssh

from mux.errors import SharingError, printable

from .hostkeys import HostKeys
from .keys import Keys
from .prompts import Prompts, shown
from .settings import Settings

# Questions in one round, and rounds: a server that goes on asking for ever is not let to.
_MAX_QUESTIONS = 32
_MAX_ROUNDS = 64
# A banner comes before anybody is authenticated.
_MAX_BANNERS = 16


class Client(asyncssh.SSHClient):
    """One connection's part of a login."""

    def __init__(
        self, settings: Settings, prompts: Prompts, host_keys: HostKeys, keys: Keys, say: Callable[[str], None]
    ) -> None:
        self.failure: SharingError | None = None  # what ended the login from our side
        self.offered: tuple[str, ...] = ()  # methods, as the server listed them last
        self.tried: list[str] = []  # in words
        self.key_refused = False  # the connection ended over the host's key
        self.authenticating = False  # the host's key was accepted, its turn to accept us
        self._settings = settings
        self._prompts = prompts
        self._host_keys = host_keys
        self._keys = keys
        self._say = say
        self._passwords = 0
        self._rounds = 0
        self._dialogues = 0
        self._questions_seen = False
        self._banners = 0
        self._signing: asyncssh.SSHKeyPair | None = None

    # The server

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Synchronous on purpose: a coroutine would count as yes."""
        return self._judged(lambda: self._host_keys.validate_key(addr, key))

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Synchronous on purpose: a coroutine would count as yes."""
        return self._judged(lambda: self._host_keys.validate_authority(key))

    def _judged(self, judge: Callable[[], bool]) -> bool:
        accepted = judge() is True
        self.key_refused = not accepted
        return accepted

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self._banners += 1
        if not self._settings.quiet and self._banners <= _MAX_BANNERS:
            for line in shown(msg).rstrip("\n").split("\n"):
                self._say(line)

    def auth_failed(self, methods: Sequence[str], partial: bool) -> None:
        """Called by the engine for each failure, with the server's list."""
        self.authenticating = True
        self.offered = tuple(methods)
        if partial:
            self._keys.offer_again()

    # Keys

    async def public_key_auth_requested(self) -> list[asyncssh.SSHKeyPair] | None:
        self.authenticating = True
        if self.failure is not None:
            return None
        try:
            found = await self._keys.next()
        except SharingError as error:
            self.failure = error
            return None
        if found is None:
            return None
        name, pair = found
        self.tried.append(f"key {name}")
        return [pair]

    # Passwords

    async def password_auth_requested(self) -> str | None:
        self.authenticating = True
        if self._passwords >= self._settings.password_prompts or self._is_closed("password"):
            return None
        if self._passwords > 0:
            self._say("Permission denied, please try again.")
        self._passwords += 1
        answer = await self._ask(f"{self._account}'s password: ", echo=False, password=True)
        if answer is not None:
            self.tried.append("password")
        else:
            self._passwords = self._settings.password_prompts  # dismissed: not to be asked again
        return answer

    async def password_change_requested(self, prompt: str, lang: str) -> tuple[str, str]:
        if prompt.strip():
            for line in shown(prompt).rstrip("\n").split("\n"):
                self._say(line)
        old = await self._ask(f"Enter {self._account}'s old password: ", echo=False)
        for _ in range(self._settings.password_prompts):
            if old is None:
                break
            new = await self._ask(f"Enter {self._account}'s new password: ", echo=False)
            again = await self._ask(f"Retype {self._account}'s new password: ", echo=False) if new is not None else None
            if new is None or again is None:
                break
            if new == again:
                return old, new
            self._say("Mismatch; try again, EOF to quit.")
        return cast(tuple[str, str], NotImplemented)  # asyncssh's word for "go on to the next method"

    # Questions of the server's own

    def kbdint_auth_requested(self) -> str | None:
        self.authenticating = True
        if self._dialogues >= self._settings.password_prompts or self._is_closed("keyboard-interactive"):
            return None
        if self._dialogues > 0 and not self._questions_seen:
            return None  # it asked nothing the last time, and would not now
        self._dialogues += 1
        return self._settings.kbd_interactive_devices

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        self._questions_seen = True
        self._rounds += 1
        if self._rounds > _MAX_ROUNDS or len(prompts) > _MAX_QUESTIONS or self.failure is not None:
            return None
        for text in (name, instructions):
            for line in shown(text).rstrip("\n").split("\n") if text.strip() else ():
                self._say(line)
        answers = []
        for text, echo in prompts:
            # With the account before it, so that no server can make it look like a question of our own.
            answer = await self._ask(f"({self._account}) {shown(text)}", echo=echo, password=not echo)
            if answer is None:
                self._dialogues = self._settings.password_prompts
                return None
            answers.append(answer)
        if prompts:
            self.tried.append("keyboard-interactive")
        return answers

    @property
    def _account(self) -> str:
        return f"{printable(self._settings.user)}@{printable(self._settings.known_as)}"

    def _is_closed(self, method: str) -> bool:
        """Whether a method that needs a person is out of the question; it is not even begun then."""
        if self.failure is not None or self._host_keys.unsafe:
            return True
        return not (self._prompts.has_password or self._prompts.can_ask())

    async def _ask(self, text: str, *, echo: bool, password: bool = False) -> str | None:
        if self.failure is not None:
            return None
        try:
            return await (self._prompts.password(text) if password else self._prompts.ask(text, echo=echo))
        except SharingError as error:
            self.failure = error
            return None
