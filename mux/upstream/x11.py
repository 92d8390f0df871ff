"""X11 for sessions with -X, if the owner's options allow it.

One rule: the real cookie never leaves this machine. Each session is told one of its own, made up; what the server
opens has to begin with one of them, and gets the real one in its place (OpenSSH has one for all, x11_open_helper in
channels.c). Without ForwardX11Trusted the cookie that is used is one the X server made for untrusted clients, and after
ForwardX11Timeout nothing new is opened (`xauth generate`, as ssh does it).

The prefix of an X11 connection: X Window System Protocol, chapter 8. Imported by `incoming.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mux.errors import ConnectionLost, RemoteProtocolError, SharingError
from mux.protocol.connection import OpenFailure
from mux.protocol.messages import UNIX_SOCKET_PORT
from mux.protocol.wire import boolean, string, u32

from . import targets
from .ports import CLOSED_BEFORE_EXEC
from .preamble import Preamble
from .pumps import Stream
from .tasks import Tasks

if TYPE_CHECKING:
    from .engine import Engine, IncomingOpen
    from .settings import Settings

WINDOW_BYTES: Final = 256 << 10  # pictures go the other way; OpenSSH has 64 KiB, which is slow over a distance
PREFIX_DEADLINE_S: Final = 30.0  # a program sends it first; OpenSSH waits for ever
XAUTH_DEADLINE_S: Final = 10.0  # it may wait for the lock of its file, or a far X server
MAX_COOKIES: Final = 512  # as many as there can be sessions
MAX_CONNECTIONS: Final = 128  # windows; each holds a descriptor
SLACK_S: Final = 60  # an untrusted cookie is to live longer than we use it (X11_TIMEOUT_SLACK in clientloop.c)

PROTOCOL: Final = b"MIT-MAGIC-COOKIE-1"
COOKIE_BYTES: Final = 16
_FIRST_PORT: Final = 6000  # of display 0
_LAST_PORT: Final = 65535
_DISPLAY: Final = re.compile(r"(?P<host>[^:\s]*|\[[^\]\s]*\]):(?P<number>[0-9]{1,5})(\.(?P<screen>[0-9]{1,4}))?")

Refuse = Callable[["IncomingOpen", OpenFailure, str], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Display:
    """Where the X server of $DISPLAY is."""

    name: str  # for xauth
    host: bytes
    port: int
    screen: int


def display(text: str) -> Display | None:
    """Read a value of $DISPLAY (X(7)); None when it is none."""
    match = _DISPLAY.fullmatch(text)
    if match is None:
        return None
    host, number, screen = match["host"].strip("[]"), int(match["number"]), int(match["screen"] or 0)
    if number > _LAST_PORT - _FIRST_PORT:
        return None
    if host in ("", "unix"):
        return Display(text, f"/tmp/.X11-unix/X{number}".encode(), UNIX_SOCKET_PORT, screen)
    # xauth keeps what belongs to this machine's sockets under "unix", as ssh knows.
    name = f"unix:{text.rpartition(':')[2]}" if host == "localhost" else text
    return Display(name, host.encode(), _FIRST_PORT + number, screen)


class X11:
    """Cookies that sessions were told, and the connections that came with them."""

    def __init__(self, engine: Engine, settings: Settings, refuse: Refuse) -> None:
        self._engine = engine
        self._settings = settings
        self._refuse = refuse
        self._cookies: dict[bytes, bytes] = {}  # what a session was told: what the X server wants
        self._real: asyncio.Task[bytes | None] | None = None
        self._until_s: float | None = None
        self._tasks = Tasks("an X11 connection")
        self._streams: set[Stream] = set()

    @property
    def expected(self) -> bool:
        """Whether a session asked for it."""
        return bool(self._cookies)

    async def request(self) -> bytes | None:
        """The body of a session's x11-req (RFC 4254 section 6.3.1), or None when it is not to ask for X11."""
        found = display(os.environ.get("DISPLAY", ""))
        if found is None or not self._settings.forward_x11:
            return None
        if self._real is None:
            self._real = asyncio.ensure_future(self._find_cookie(found))
        real = await asyncio.shield(self._real)
        if real is None:
            self._real = None
            return None
        cookie = secrets.token_bytes(len(real))
        self._cookies[cookie] = real
        if len(self._cookies) > MAX_COOKIES:
            del self._cookies[next(iter(self._cookies))]
        return boolean(False) + string(PROTOCOL) + string(cookie.hex().encode()) + u32(found.screen)

    def opened(self, incoming: IncomingOpen) -> None:
        """The server opens a connection for some program that was given DISPLAY by sshd."""
        if self._until_s is not None and time.monotonic() > self._until_s:
            text = "ForwardX11Timeout is over"
            self._refuse(incoming, OpenFailure.ADMINISTRATIVELY_PROHIBITED, text)
        elif len(self._streams) + len(self._tasks) >= MAX_CONNECTIONS:
            self._refuse(incoming, OpenFailure.RESOURCE_SHORTAGE, "too many X11 connections")
        else:
            try:
                preamble = Preamble(self._engine, incoming, window_bytes=WINDOW_BYTES)
            except RemoteProtocolError as error:
                return self._refuse(incoming, OpenFailure.CONNECT_FAILED, str(error))
            preamble.channel.description = "x11"
            self._tasks.run(self._serve(preamble), preamble.give_up)

    def close(self) -> None:
        """The end."""
        self._tasks.cancel()
        if self._real is not None:
            self._real.cancel()
        for stream in tuple(self._streams):
            stream.close()

    async def _serve(self, preamble: Preamble) -> None:
        prefix = Prefix()
        try:
            async with asyncio.timeout(PREFIX_DEADLINE_S):
                while (cookie := prefix.find_cookie()) is None:
                    prefix.receive(await preamble.more())
            real = self._cookies.get(cookie)
            if real is None:
                raise RemoteProtocolError("X11 connection rejected because of wrong authentication.")
            found = display(os.environ.get("DISPLAY", ""))
            if found is None:
                raise ConnectionLost("there is no DISPLAY")
            connection = await targets.connect(found.host, found.port)
            stream = Stream(connection, None, lambda: self._streams.discard(stream))
            self._streams.add(stream)
            preamble.go_on(stream, prefix.with_cookie(real))
        except (SharingError, TimeoutError) as error:
            log.info("an X11 connection failed: %s", error)
            preamble.give_up()
        except BaseException:
            preamble.give_up()
            raise

    async def _find_cookie(self, found: Display) -> bytes | None:
        """What the X server wants to be shown, by xauth's word."""
        if self._settings.forward_x11_trusted:
            cookie = await self._listed(found)
            if cookie is None:
                log.info("xauth knows no cookie for the display: one is made up, which some servers take")
                cookie = secrets.token_bytes(COOKIE_BYTES)
            return cookie
        try:
            directory = tempfile.mkdtemp(prefix="sshmux-x11-")
        except OSError as error:
            log.info("no X11 without ForwardX11Trusted, since there is no place for a cookie: %s", error)
            return None
        try:
            file = os.path.join(directory, "xauthority")
            timeout_s = self._settings.forward_x11_timeout_s
            life = ("timeout", str(timeout_s + SLACK_S)) if timeout_s else ()
            await self._xauth("-f", file, "generate", found.name, PROTOCOL.decode(), "untrusted", *life)
            cookie = await self._listed(found, "-f", file)
            if cookie is None:
                log.info("the X server makes no cookie for untrusted clients: no X11 without ForwardX11Trusted")
            elif timeout_s:
                self._until_s = time.monotonic() + timeout_s
            return cookie
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _listed(self, found: Display, *options: str) -> bytes | None:
        for line in (await self._xauth(*options, "list", found.name)).splitlines():
            words = line.split()
            if len(words) == 3 and words[1] == PROTOCOL and re.fullmatch(rb"([0-9a-fA-F]{2}){1,64}", words[2]):
                return bytes.fromhex(words[2].decode())
        return None

    async def _xauth(self, *arguments: str) -> bytes:
        """Its output; nothing when it fails."""
        quiet = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *(self._settings.xauth, *arguments),
                stdin=quiet,
                stdout=asyncio.subprocess.PIPE,
                stderr=quiet,
                close_fds=CLOSED_BEFORE_EXEC,
            )
        except OSError as error:
            log.info("%s: %s", self._settings.xauth, error.strerror)
            return b""
        try:
            async with asyncio.timeout(XAUTH_DEADLINE_S):
                output, _ = await process.communicate()
                return output
        except TimeoutError:
            return b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


class Prefix:
    """What an X11 client sends first: byte order, version, and how it proves itself."""

    def __init__(self) -> None:
        self._data = bytearray()

    def receive(self, data: bytes) -> None:
        self._data += data

    def find_cookie(self) -> bytes | None:
        """What it proves itself with; None until that has come. Raises `RemoteProtocolError`."""
        data = self._data
        if data and data[0] not in b"Bl":
            raise RemoteProtocolError("what should be an X11 client names no byte order")
        if len(data) < 12:
            return None
        name_bytes, start, end = self._span()
        if name_bytes != len(PROTOCOL) or end - start > 256:
            raise RemoteProtocolError("an X11 client without the cookie it was given")
        if len(data) < _padded(end - start) + start:
            return None
        if data[12 : 12 + name_bytes] != PROTOCOL:
            raise RemoteProtocolError("an X11 client without the cookie it was given")
        return bytes(data[start:end])

    def with_cookie(self, cookie: bytes) -> bytes:
        """All that came, with this cookie, of the same length, in the place of the other."""
        _, start, end = self._span()
        return bytes(self._data[:start]) + cookie + bytes(self._data[end:])

    def _span(self) -> tuple[int, int, int]:
        """Length of the name, and where the cookie begins and ends."""
        order: Any = "big" if self._data[:1] == b"B" else "little"
        name_bytes = int.from_bytes(self._data[6:8], order)
        start = 12 + _padded(name_bytes)
        return name_bytes, start, start + int.from_bytes(self._data[8:10], order)


def _padded(count: int) -> int:
    return (count + 3) // 4 * 4
