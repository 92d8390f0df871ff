"""A listening socket of ours: takes in whoever comes, at once, whatever else there is to do.

One rule: nobody waits in the queue longer than a turn of the loop. Who finds it full takes us for dead, and a PuTTY
then takes our place. At the end, too: who came before it is taken in. Imported by `upstream.py` and `putty_places.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

ACCEPTS_PER_TURN: Final = 16  # then those who are here already get their turn
ACCEPT_PAUSE_S: Final = 1.0  # out of descriptors: OpenSSH waits as long before it looks again (mux.c)

log = logging.getLogger(__name__)


class Entrance:
    """Owns a listening socket, until `close`."""

    def __init__(self, listener: socket.socket, take_in: Callable[[socket.socket], None], backlog: int) -> None:
        self._listener: socket.socket | None = listener
        self._take_in = take_in
        self._retry: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Take in those who have connected, and nobody any more. Idempotent."""
        listener, self._listener = self._listener, None
        if self._retry is not None:
            self._retry.cancel()
        if listener is None:
            return
        self._loop.remove_reader(listener.fileno())
        # From here on whoever comes is refused, and what is in the queue can be accepted to its end.
        listener.shutdown(socket.SHUT_RD)
        with listener:
            while (connection := _next(listener)) is not None:
                self._take_in(connection)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._listener is None:
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory
                return self._pause(error)
            self._take_in(connection)

    def _pause(self, error: OSError) -> None:
        log.info("no client can be taken in for now: %s", error.strerror)
        assert self._listener is not None
        self._loop.remove_reader(self._listener.fileno())
        self._retry = self._loop.call_later(ACCEPT_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)
            self._accept()


def _next(listener: socket.socket) -> socket.socket | None:
    """Whoever is first in the queue; None behind the last, or when there is no descriptor for it."""
    while True:
        try:
            return listener.accept()[0]
        except (InterruptedError, ConnectionAbortedError):
            continue
        except OSError:
            return None
