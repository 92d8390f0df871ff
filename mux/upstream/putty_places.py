"""Where PuTTY's tools find us: one socket for each name that the connection has, kept there as long as it is shared.

One rule: what is somebody else's stays somebody else's. A name where another upstream is alive is left to it until it
has gone. Our own sockets are looked after: any PuTTY replaces one that it takes for dead, and whoever tidies /tmp may
remove one; then it is published again. Nothing here blocks: files are locked and made in a thread.

Imported by `upstream.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Final

from mux.errors import JoinError, printable
from mux.rendezvous import putty, putty_socket
from mux.rendezvous.putty_socket import PuttySocket, Taken

from .entrance import Entrance

# Between two looks at our names, which cost some microseconds. As long may a stolen one be lost.
WATCH_S: Final = 3.0
# What did not change is asked again whether it still lives; each time it gets a connection, as by `plink -shareexists`.
ASK_AGAIN_S: Final = 30.0

log = logging.getLogger(__name__)


class PuttyPlaces:
    """All names of one connection. `open` publishes them, `close` takes them back."""

    def __init__(
        self, names: Iterable[str], take_in: Callable[[socket.socket], None], *, watch_s: float = WATCH_S
    ) -> None:
        self._places = [_Place(name, take_in) for name in dict.fromkeys(names)]
        self._watch_s = watch_s
        self._timer: asyncio.TimerHandle | None = None

    @property
    def published(self) -> list[dict[str, str]]:
        """Name and path of those we have, for lists."""
        sockets = [place.socket for place in self._places if place.socket is not None]
        return [{"name": printable(one.name), "path": one.path} for one in sockets]

    async def open(self) -> list[str]:
        """Publish them, and begin to look after them; returns why that is impossible, in words, if it is."""
        asked = [place.publish() for place in self._places]
        # Before the wait, in which `close` may come.
        self._timer = asyncio.get_running_loop().call_later(self._watch_s, self._watch)
        if asked:
            await asyncio.wait(asked)
        return list(dict.fromkeys(place.failure for place in self._places if place.failure))

    def close(self) -> None:
        """Withdraw all, and take in nobody more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for place in self._places:
            place.close()

    def _watch(self) -> None:
        for place in self._places:
            place.look()
        self._timer = asyncio.get_running_loop().call_later(self._watch_s, self._watch)


class _Place:
    """One name. `socket`: ours, while it is there; `failure`: why there can be none."""

    def __init__(self, name: str, take_in: Callable[[socket.socket], None]) -> None:
        self.socket: PuttySocket | None = None
        self.failure = ""
        self._name = name
        self._take_in = take_in
        self._loop = asyncio.get_running_loop()
        self._entrance: Entrance | None = None
        self._asked: asyncio.Future[PuttySocket] | None = None
        self._closed = False
        self._put_off = False
        self._taken: Taken | None = None
        self._ask_at_s = 0.0

    def publish(self) -> asyncio.Future[PuttySocket]:
        """Try to take the name."""
        # Not a task: what the thread makes after the end has to be taken back, whoever was cancelled.
        self._asked = self._loop.run_in_executor(None, putty_socket.publish, self._name)
        self._asked.add_done_callback(self._answered)
        return self._asked

    def look(self) -> None:
        """See whether the name is ours, or can be."""
        if self._closed or self.failure or self._asked is not None:
            return
        if self.socket is not None:
            if self.socket.is_there():
                return
            log.info("the PuTTY socket of %s is not ours any more", printable(self._name))
            self._give_up()
            self.publish()
        elif self._taken is None or self._loop.time() >= self._ask_at_s or self._has_changed(self._taken):
            self.publish()

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        if self.socket is not None:
            self.socket.withdraw()
        self._give_up()

    def _has_changed(self, taken: Taken) -> bool:
        return putty_socket.identity(taken.path) != taken.identity

    def _give_up(self) -> None:
        self.socket = None
        if self._entrance is not None:
            self._entrance.close()
            self._entrance = None

    def _answered(self, asked: asyncio.Future[PuttySocket]) -> None:
        self._asked = None
        if asked.cancelled():
            return
        try:
            published = asked.result()
        except Taken as taken:
            if self._taken is None:
                log.info("%s: %s", printable(self._name), taken)
            self._taken = taken
            self._ask_at_s = self._loop.time() + ASK_AGAIN_S
        except TimeoutError as error:
            if not self._put_off:  # once: it is tried again every few seconds
                log.info("not shared with PuTTY as %s for now: %s", printable(self._name), error)
            self._put_off = True
        except (JoinError, putty.NotThere) as error:
            self.failure = str(error)
        else:
            self._taken = None
            self._put_off = False
            if self._closed:
                published.withdraw()
                published.listener.close()
            else:
                log.info("shared with PuTTY as %s", printable(self._name))
                self.socket = published
                self._entrance = Entrance(published.listener, self._take_in, socket.SOMAXCONN)
