"""Another SSH server than OpenSSH's, in a thread of the test: asyncssh, which lets a test say what it accepts.

It takes passwords and keyboard-interactive dialogues, which a real sshd takes only with accounts of the machine. The
rule: it ends with the test, and whatever a client does is only written down.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import asyncssh

from tests.support.sshd import HOST

DEADLINE_S = 60.0
Round = tuple[str, str, Sequence[tuple[str, bool]]]  # name, instruction, questions


@dataclass
class Wish:
    """What the server wants of a client."""

    passwords: Sequence[str] = ()  # accepted
    rounds: Sequence[Round] = ()  # of keyboard-interactive
    answers: Sequence[Sequence[str]] = ()  # accepted, per round
    keys: Sequence[asyncssh.SSHKey] = ()
    steps: Sequence[str] = ()  # methods that all must succeed, in this order; () for any one
    banner: str = ""
    change: Sequence[str] = ()  # passwords that must be changed first
    seen: list[str] = field(default_factory=list)  # what clients did


class _Server(asyncssh.SSHServer):
    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.done = 0
        self.round = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.conn = conn

    def begin_auth(self, username: str) -> bool:
        if self.wish.banner:
            self.conn.send_auth_banner(self.wish.banner)
        return True

    def now(self, method: str) -> bool:
        steps = self.wish.steps
        return not steps or (self.done < len(steps) and steps[self.done] == method)

    def password_auth_supported(self) -> bool:
        return bool(self.wish.passwords) and self.now("password")

    def validate_password(self, username: str, password: str) -> bool:
        self.wish.seen.append(f"password {password}")
        if password in self.wish.change:
            raise asyncssh.PasswordChangeRequired("Your password\x1b[31m has expired.")
        return password in self.wish.passwords

    def change_password(self, username: str, old_password: str, new_password: str) -> bool:
        self.wish.seen.append(f"change {old_password} {new_password}")
        return True

    def public_key_auth_supported(self) -> bool:
        return bool(self.wish.keys) and self.now("publickey")

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self.wish.seen.append(f"key {key.get_fingerprint()}")
        return key in self.wish.keys

    def kbdint_auth_supported(self) -> bool:
        return bool(self.wish.rounds) and self.now("keyboard-interactive")

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        self.round = 0
        self.wish.seen.append(f"dialogue {submethods}")
        return self._question()

    def _question(self) -> Any:
        name, instruction, questions = self.wish.rounds[self.round]
        return name, instruction, "", questions

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> Any:
        self.wish.seen.append(f"answers {list(responses)}")
        if self.wish.answers and list(responses) != list(self.wish.answers[self.round]):
            return False
        self.round += 1
        return self._question() if self.round < len(self.wish.rounds) else True


class _Connection(asyncssh.SSHServerConnection):
    """More than one method for one login: asyncssh's server knows no partial success, so it is added here."""

    async def send_userauth_success(self) -> None:
        owner: Any = self._owner
        owner.done += 1
        if owner.done < len(owner.wish.steps):
            self.send_userauth_failure(True)
        else:
            await super().send_userauth_success()


class OtherServer:
    """Listens once constructed; a context manager. `config` is a client configuration with the host `box`."""

    def __init__(self, directory: Path, wish: Wish, **options: Any) -> None:
        self.wish = wish
        self.config = directory / "other_config"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._acceptor: asyncssh.SSHAcceptor = self._run(self._listen(options))
        self.port = self._acceptor.get_port()
        known = directory / "other_known_hosts"
        known.write_text(f"{HOST} {self._host_key.export_public_key().decode()}")
        lines = [
            f"Host {HOST}",
            "HostName 127.0.0.1",
            f"HostKeyAlias {HOST}",
            f"Port {self.port}",
            "User tester",
            "IdentityFile none",
            "IdentityAgent none",
            f"UserKnownHostsFile {known}",
            "GlobalKnownHostsFile /dev/null",
            "StrictHostKeyChecking yes",
            "UpdateHostKeys no",
            "ControlPath none",
        ]
        self.config.write_text("\n    ".join(lines) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    async def _listen(self, options: dict[str, Any]) -> asyncssh.SSHAcceptor:
        stock = asyncssh.connection.SSHServerConnection
        asyncssh.connection.SSHServerConnection = _Connection  # type: ignore[misc]
        try:
            self._stock = stock
            return await asyncssh.listen(
                "127.0.0.1", 0, server_factory=lambda: _Server(self.wish), server_host_keys=[self._host_key], **options
            )
        except BaseException:
            asyncssh.connection.SSHServerConnection = stock  # type: ignore[misc]
            raise

    async def _close(self) -> None:
        asyncssh.connection.SSHServerConnection = self._stock  # type: ignore[misc]
        self._acceptor.close()
        await self._acceptor.wait_closed()
        await asyncio.sleep(0)
        ending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)
