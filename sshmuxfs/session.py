"""The link under a mount: the channel there is now, and a new one when it ended.

The rule of this file: a channel that died never takes the mount with it. Who needs the server asks for `client()`;
while there is none, one attempt at a time is made to open another on the same connection, and everyone else who comes
meanwhile shares its outcome or is refused at once, so that nothing hangs.

Imported by `sshmuxfs.questions`, `sshmuxfs.mount`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import monotonic

import trio

from mux.downstream.join import sftp_failure
from mux.downstream.openssh import SessionStream
from mux.errors import SharingError
from sshmuxfs.sftp.client import ChannelLost, Client, RequestTimeout
from sshmuxfs.sftp.protocol import DecodeError, StatusError

log = logging.getLogger(__name__)

# After a failed attempt, the next is not made before this long; doubled each time up to the last. A dead connection is
# then asked for gently, and a new one is found soon enough for a person.
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 5.0
# What the remote sftp-server wrote as it died comes right behind the end of its output, or not at all.
LAST_WORDS_S = 1.0


class Link:
    """Opens the sftp channel of a mount, and opens it again.

    `open_stream` starts a session on the shared connection, `make_client` puts a client on it; `server` is what runs
    there, for messages.
    """

    def __init__(
        self,
        open_stream: Callable[[], Awaitable[SessionStream]],
        make_client: Callable[[SessionStream], Client],
        nursery: trio.Nursery,
        *,
        server: str,
        deadline_s: float,
    ) -> None:
        self._open_stream = open_stream
        self._make_client = make_client
        self._nursery = nursery
        self._server = server
        self._deadline_s = deadline_s
        self._client: Client | None = None
        self._opening = trio.Lock()
        self._pause_s = FIRST_PAUSE_S
        self._next_attempt_s = 0.0
        self._refusal = ""
        self._watched: tuple[int, ...] = ()

    async def client(self) -> Client:
        """Return a live client, without waiting if there is one. Raises ChannelLost."""
        if self._client is not None and self._client.lost is None:
            return self._client
        with trio.move_on_after(self._deadline_s):
            async with self._opening:
                if self._client is not None and self._client.lost is None:
                    return self._client
                if monotonic() < self._next_attempt_s:
                    raise ChannelLost(self._refusal)
                return await self._open_again()
        raise self._refused(f"no connection within {self._deadline_s:g} s")

    async def _open_again(self) -> Client:
        try:
            return await self.start()
        except (SharingError, ChannelLost, RequestTimeout, StatusError, DecodeError, OSError) as error:
            log.warning("no channel could be opened: %s", error)
            raise self._refused(f"no connection: {error}") from error

    def _refused(self, reason: str) -> ChannelLost:
        """An attempt failed: until the pause is over, others are told the same at once."""
        self._refusal = reason
        self._next_attempt_s = monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
        return ChannelLost(reason)

    async def start(self) -> Client:
        """Open a channel; whatever is wrong is raised as it is: SharingError, ChannelLost, RequestTimeout."""
        stream = await self._open_stream()
        client = self._make_client(stream)
        client.watched = self._watched
        self._nursery.start_soon(self._serve, client, stream)
        opened = False
        try:
            await client.start()
            opened = True
        except ChannelLost as error:
            if client.greeted or client.broke_protocol:
                raise
            raise sftp_failure(self._server, *await _last_words(stream)) from error
        finally:
            if not opened:  # nobody else knows of it: given up, it would stay for ever
                client.end("it could not be opened")
                stream.close()
        if self._client is not None:
            log.warning("a new channel is open")
        self._client = client
        self._pause_s = FIRST_PAUSE_S
        return client

    async def _serve(self, client: Client, stream: SessionStream) -> None:
        await client.serve()
        if client is not self._client:
            return  # it never came to life: `start` tells why
        exit_value, text = await _last_words(stream)
        stream.close()
        log.warning(
            "the channel ended: %s%s%s",
            client.lost,
            "" if exit_value is None else f" (exit status {exit_value})",
            f": {text}" if text else "",
        )

    def watch(self, *descriptors: int) -> None:
        """While a client waits in place, what comes in here is not to be kept waiting."""
        self._watched = descriptors
        if self._client is not None:
            self._client.watched = descriptors

    def close(self) -> None:
        """End the channel, as the mount ends."""
        if self._client is not None:
            self._client.end("the mount ends")


async def _last_words(stream: SessionStream) -> tuple[int | None, str]:
    """The exit value of a session that ended, if it comes and can be understood, and what it wrote on stderr."""
    exit_value = None
    with trio.move_on_after(LAST_WORDS_S, shield=True):
        try:
            exit_value = await stream.wait_closed()
        except SharingError as error:
            log.debug("how the session ended is not known: %s", error)
    return exit_value, stream.stderr_text()
