"""How bytes reach the server: over TCP, through a program (ProxyCommand), or through other servers (ProxyJump).

One rule: what comes out of here is a connected socket and a way to end what stands behind it; the program's words
(stderr) never get among the server's bytes. A jump is a child `ssh -W`, as in OpenSSH itself: it has its own
configuration, host keys and prompts. Imported by `mux.upstream.login`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mux.errors import ExitCode, SharingError, printable

from .addresses import Address, addresses
from .programs import Program
from .settings import Settings

Say: TypeAlias = Callable[[str], None]
Close: TypeAlias = Callable[[], Awaitable[None]]

# ssh waits as long between two of ConnectionAttempts.
BETWEEN_ATTEMPTS_S: Final = 1.0
# Without ConnectTimeout the system gives up by itself, after some two minutes; asking for a name has no such end.
RESOLVE_DEADLINE_S: Final = 60.0
# [user@]host[:port], where an IPv6 address with a port is in brackets; or the same as an address of the scheme ssh.
_JUMP: Final = re.compile(
    r"""
    (?: ssh:// )?
    (?: (?P<user> .+ ) @ )?
    (?: \[ (?P<v6> [^]@]+ ) \] | (?P<host> [^:@\[\]/]+ | [^@\[\]/]* : [^@\[\]/]* : [^@\[\]/]* ) )
    (?: : (?P<port> \d+ ) )?
    /?
    """,
    re.VERBOSE,
)
_WORDS_OF_SERVICE: Final = {"lowdelay": 0x10, "throughput": 0x08, "reliability": 0x04, "ef": 0xB8, "le": 0x04}


@dataclass(frozen=True, slots=True)
class Connected:
    """A connected socket; `close` ends and reaps what it leads to, but not the socket, and may be called twice."""

    sock: socket.socket
    close: Close


async def connect(settings: Settings, say: Say) -> Connected:
    """Connect as the configuration says. `say` is given what a program in between writes to its stderr, line by line,
    for as long as it runs.

    Raises `SharingError` (UNREACHABLE) with what the system said.
    """
    if settings.proxy_command is not None:
        return await _through(_shell_command(settings), say)
    if settings.proxy_jump is not None:
        return await _through(jump_command(settings), say)
    sock = await _reach(settings)
    return Connected(sock, _nothing)


async def _nothing() -> None:
    """Nothing stands behind a TCP connection."""


# Through a program


async def _through(command: Sequence[str], say: Say) -> Connected:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            program = await Program.start(command, theirs, say)
    except BaseException as error:
        ours.close()
        if isinstance(error, OSError):
            raise SharingError(f"{command[0]} cannot be run: {error.strerror}", ExitCode.UNREACHABLE) from None
        raise
    return Connected(ours, program.end)


def _shell_command(settings: Settings) -> list[str]:
    """ProxyCommand: given to the user's shell, which becomes the program (ssh_config(5)).

    No name that was typed can be more than a word to the shell: `rendezvous.target` has seen to that.
    """
    text = settings.proxy_command or ""
    shell = os.environ.get("SHELL") or "/bin/sh"
    return [shell, "-c", "exec " + settings.tokens.expand(text, "ProxyCommand")]


def jump_command(settings: Settings) -> list[str]:
    """The `ssh -W` that ProxyJump stands for: to the last jump, which is reached through those before it (ssh.c)."""
    text = settings.tokens.expand(settings.proxy_jump or "", "ProxyJump")
    before, _, last = text.rpartition(",")
    match = _JUMP.fullmatch(last)
    if match is None:
        raise SharingError(f"ProxyJump {printable(text)}: {printable(last)} is not [user@]host[:port]", ExitCode.USAGE)
    command = ["ssh"]
    if "-F" in settings.arguments:
        command += ["-F", settings.arguments[settings.arguments.index("-F") + 1]]
    if settings.batch:
        command += ["-o", "BatchMode=yes"]
    if match["port"]:
        command += ["-p", match["port"]]
    if match["user"]:
        command += ["-l", match["user"]]
    if before:
        command += ["-J", before]
    return [*command, "-W", f"[{settings.hostname}]:{settings.port}", "--", match["v6"] or match["host"]]


# Over TCP


async def _reach(settings: Settings) -> socket.socket:
    for left in reversed(range(settings.connection_attempts)):
        try:
            return await _attempt(settings)
        except OSError as error:
            # asyncio puts other words into `strerror`.
            reason = "Connection timed out" if isinstance(error, TimeoutError) else os.strerror(error.errno or 0)
            if not left:
                where = f"{printable(settings.hostname)} port {settings.port}"
                raise SharingError(f"cannot connect to {where}: {reason}", ExitCode.UNREACHABLE) from None
            await asyncio.sleep(BETWEEN_ATTEMPTS_S)
    raise AssertionError("at least one attempt is made")


async def _attempt(settings: Settings) -> socket.socket:
    """Try one address after the other. Raises the last one's `OSError`, `TimeoutError` when ConnectTimeout is over.

    ConnectTimeout is for all of it, with the name, which is not asked for again: that is a `SharingError`.
    """
    loop = asyncio.get_running_loop()
    until = None if settings.connect_timeout_s is None else loop.time() + settings.connect_timeout_s
    found = await _resolve(settings.hostname, settings.port, settings.address_family, until)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    async with asyncio.timeout_at(until):
        for family, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await _prepare(sock, settings, until)
                await loop.sock_connect(sock, address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
    raise failure


async def _resolve(host: str, port: int, family: int, until: float | None) -> list[Address]:
    """The addresses of a name, by `until` on the loop's clock. Raises `SharingError` (UNREACHABLE)."""
    last = asyncio.get_running_loop().time() + RESOLVE_DEADLINE_S
    try:
        async with asyncio.timeout_at(last if until is None else min(until, last)):
            return await addresses(host, port, family=family)
    except socket.gaierror as error:
        said = error.strerror
    except TimeoutError:
        said = "no answer in time"
    except UnicodeError:
        said = "not a name"
    raise SharingError(
        f"could not resolve hostname {printable(host)}: {said}",
        ExitCode.UNREACHABLE,
        hint="the name is the one of HostName, after the configuration",
    )


async def _prepare(sock: socket.socket, settings: Settings, until: float | None) -> None:
    """Set what has to be set before a connection is made."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(settings.tcp_keepalive))
    service = _type_of_service(settings.ip_qos[0]) if settings.ip_qos else None
    if service is not None:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, service)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, service)
    if settings.bind_address is not None:
        found = await _resolve(settings.bind_address, 0, sock.family, until)
        sock.bind(found[0][1])
    elif settings.bind_interface is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(settings.bind_interface))


def _type_of_service(word: str) -> int | None:
    """A word of IPQoS (RFC 2474, 2597, 3246, 8622) as the octet; None for `none`, and for what is no such word."""
    word = word.lower()
    if word in _WORDS_OF_SERVICE:
        return _WORDS_OF_SERVICE[word]
    if match := re.fullmatch(r"af([1-4])([1-3])", word):
        return int(match[1]) << 5 | int(match[2]) << 3
    if match := re.fullmatch(r"cs([0-7])", word):
        return int(match[1]) << 5
    if re.fullmatch(r"\d+|0x[0-9a-f]+", word):
        return min(int(word, 0), 0xFF)
    return None
