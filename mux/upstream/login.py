"""From settings to a live connection: reach the server, make sure of it, log in.

The one rule: what fails says what was tried, what the server wants, and what to do next; asyncssh's exceptions end
here. One login may take several connections (a key that a person had to be asked about is met again on the second),
but it is one login: what was answered is not asked again. Silence has a limit, a person's thinking has none.

Imported by `daemon.py`. `connect.py` knows how bytes reach the server, `engine.py` how they are packets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Final

import asyncssh

from mux.errors import ConnectionLost, ExitCode, RemoteProtocolError, SharingError, printable

from . import connect, engine
from .auth import Client
from .engine import Engine
from .hostkeys import HostKeys
from .keys import Keys
from .keyupdate import KeyUpdate
from .prompts import Prompts
from .settings import Ask, Settings

# A server that says nothing for so long while no person is being asked. sshd itself ends a login after 120 s
# (LoginGraceTime), within which it may wait for somebody to press a button on a telephone.
SILENCE_S: Final = 130.0
# One for the key that is asked about, one without certificates, one to meet what was decided.
_CONNECTIONS: Final = 4
_HOST_KEYS_DEADLINE_S: Final = 10.0

# RFC 4253 section 11.1, and what OpenSSH sends when MaxAuthTries is reached.
_PROTOCOL_ERROR: Final = 2
_NO_MORE_METHODS: Final = 14


async def login(settings: Settings, prompts: Prompts, say: Callable[[str], None]) -> Engine:
    """Connect and authenticate. `say` gets what is for the person at the terminal, line by line, already escaped.

    Raises SharingError: UNREACHABLE, HOST_KEY, AUTH_FAILED, INTERRUPTED, PROTOCOL.
    """
    refusal = settings.config.get("refuseconnection", ("",))[0]
    if refusal:
        raise SharingError(f"ssh_config refuses connections to {settings.known_as}: {printable(refusal)}")
    if unhonoured := settings.unhonoured():
        say(f"no effect here: {', '.join(unhonoured)}")
    keys = Keys(settings, prompts, say)
    host_keys = HostKeys(settings, prompts, say)
    try:
        for _ in range(_CONNECTIONS):
            found = await _attempt(settings, prompts, host_keys, keys, say)
            if found is not None:
                return found
            await host_keys.settle()
        raise SharingError(
            f"the host key of {settings.known_as} changes from one connection to the next", ExitCode.HOST_KEY
        )
    finally:
        await keys.close()


async def _attempt(
    settings: Settings, prompts: Prompts, host_keys: HostKeys, keys: Keys, say: Callable[[str], None]
) -> Engine | None:
    """One connection. None when it ended over the host's key."""
    client = Client(settings, prompts, host_keys, keys, say)
    update = KeyUpdate(settings, prompts, host_keys, say)
    options = {
        **settings.asyncssh_options(),
        **host_keys.asyncssh_options(),
        "server_host_keys_handler": update.offered,
    }
    connected = await connect.connect(settings, say)
    try:
        async with _Patience(prompts):
            found = await engine.start(connected.sock, client, options, deadline_s=None, close=connected.close)
    except asyncssh.HostKeyNotVerifiable as error:
        if not client.key_refused and "revoked" in str(error):
            raise SharingError(printable(str(error)), ExitCode.HOST_KEY) from None
        return None
    except (asyncssh.Error, OSError, TimeoutError, ValueError) as error:
        raise _translated(error, settings, prompts, client) from None
    if settings.update_host_keys is Ask.ASK and prompts.can_ask():
        await _let_host_keys_come(found, update)
    return found


async def _let_host_keys_come(found: Engine, update: KeyUpdate) -> None:
    """The server tells its keys right behind the login and proves them when asked: two round trips, then a question."""
    with contextlib.suppress(TimeoutError, SharingError):
        await found.measure(_HOST_KEYS_DEADLINE_S)
        await found.measure(_HOST_KEYS_DEADLINE_S)
        await update.settled()


class _Patience:
    """A limit on silence that does not run while a person is being asked."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._timeout = asyncio.timeout(SILENCE_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._prompts.watch = self._waiting

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._prompts.watch = None
        await self._timeout.__aexit__(kind, error, traceback)

    def _waiting(self, waiting: bool) -> None:
        if not self._timeout.expired():
            self._timeout.reschedule(None if waiting else asyncio.get_running_loop().time() + SILENCE_S)


def _translated(error: Exception, settings: Settings, prompts: Prompts, client: Client) -> SharingError:
    if client.failure is not None:
        return client.failure
    if isinstance(error, asyncssh.PermissionDenied):
        return _denied(settings, prompts, client)
    place = f"{settings.hostname} port {settings.port}"
    text = printable(str(error)) or type(error).__name__
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return RemoteProtocolError(
            f"unable to negotiate with {place}: {text}",
            hint="the algorithms of the server and of the configuration have nothing in common",
        )
    if isinstance(error, asyncssh.DisconnectError) and error.code in (_PROTOCOL_ERROR, _NO_MORE_METHODS):
        if "authentication failures" in error.reason.lower():
            return SharingError(
                f"{_account(settings)}: {text} (tried: {_tried(client)})",
                ExitCode.AUTH_FAILED,
                "the server counts every key that is offered: name the right one with IdentityFile and set "
                "IdentitiesOnly yes",
            )
        if client.authenticating and error.code == _NO_MORE_METHODS:
            return _denied(settings, prompts, client)
    if isinstance(error, TimeoutError):
        return ConnectionLost(f"{place} gave no answer for {SILENCE_S:.0f} s during the login", ExitCode.UNREACHABLE)
    if isinstance(error, (asyncssh.ProtocolError, asyncssh.MACError, asyncssh.CompressionError)):
        return RemoteProtocolError(f"{place} does not speak SSH as it should: {text}")
    if isinstance(error, ValueError) and not isinstance(error, (OSError, asyncssh.Error)):
        return SharingError(f"cannot connect to {place} with this configuration: {text}")
    return ConnectionLost(
        f"the connection to {place} ended {_when(client)}: {text}",
        ExitCode.UNREACHABLE,
        "the server's log may say why" if client.authenticating else "",
    )


def _denied(settings: Settings, prompts: Prompts, client: Client) -> SharingError:
    """ssh's words, then what was tried."""
    offered = ",".join(map(printable, client.offered))
    return SharingError(
        f"{_account(settings)}: Permission denied ({offered}); tried: {_tried(client)}",
        ExitCode.AUTH_FAILED,
        _advice(settings, prompts, set(client.offered)),
    )


def _advice(settings: Settings, prompts: Prompts, offered: set[str]) -> str:
    """What to do next, by what the server would have taken."""
    by_person = offered & {"password", "keyboard-interactive"}
    if by_person and settings.batch:
        return "BatchMode forbids asking for a password"
    if by_person & set(settings.methods) and not prompts.can_ask():
        return "nobody can be asked for a password: there is no terminal, and no SSH_ASKPASS with a display"
    if offered and not offered & set(settings.methods):
        return f"the configuration allows only {', '.join(settings.methods) or 'nothing'}"
    if offered <= {"gssapi-with-mic", "gssapi-keyex", "hostbased"}:
        return "only ssh itself can do that: give -o ssh_command=ssh"
    if by_person:
        return "check the user name and the password"
    return "check the user name, IdentityFile and what `ssh-add -l` lists"


def _tried(client: Client) -> str:
    counted: dict[str, int] = {}
    for what in client.tried:
        counted[what] = counted.get(what, 0) + 1
    words = [what if count == 1 else f"{what} ({count} times)" for what, count in counted.items()]
    return ", ".join(words) or "nothing, for there is nothing to offer"


def _account(settings: Settings) -> str:
    return f"{printable(settings.user)}@{printable(settings.known_as)}"


def _when(client: Client) -> str:
    return "during the authentication" if client.authenticating else "before the login began"
