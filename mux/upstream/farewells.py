"""The last words to clients who speak the connection protocol, and the moment in which they are heard.

One rule: a socket is not closed on a client's words. If anything is unread when it is closed, the kernel tells the
client of a reset, and a PuTTY then never looks at what was said to it before. So what is still to be sent is sent, our
direction ends, and what the client sends meanwhile is thrown away, until it hangs up or its time is over. Nobody waits
for that but the end of the process. Imported by `upstream.py`, `relay.py` and `putty.py`.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

from .unsent import Unsent
from .watching import Watch

PARTING_S: Final = 0.5  # a client that reads at all hangs up within milliseconds
MAX_PARTING: Final = 64  # at a time; others are told what their socket takes at once, and are not waited for
_THROWN_AWAY_BYTES: Final = 64 << 10  # of one turn of the loop


class Farewells:
    """Those of one upstream."""

    def __init__(self) -> None:
        self._parting: set[_Parting] = set()

    def part(self, connection: socket.socket, unsent: Unsent) -> None:
        """Send this and hang up. The socket, which does not block, is ours from now on."""
        if len(self._parting) >= MAX_PARTING:
            with suppress(OSError):
                unsent.send(connection)
            return connection.close()
        parting = _Parting(connection, unsent, self._parting)
        self._parting.add(parting)
        parting.start()
        return None

    async def over(self) -> None:
        """Wait for all, no longer than one may take."""
        ends = [parting.ended for parting in self._parting]
        try:
            if ends:
                await asyncio.wait(ends, timeout=PARTING_S)
        finally:
            for parting in tuple(self._parting):
                parting.close()


class _Parting:
    def __init__(self, connection: socket.socket, unsent: Unsent, others: set[_Parting]) -> None:
        self._socket = connection
        self._unsent = unsent
        self._others = others
        self._watch = Watch(connection.fileno(), self._throw_away, self._send)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        self._timer = self._loop.call_later(PARTING_S, self.close)
        self._watch.read(True)
        self._watch.write(True)
        self._send()

    def close(self) -> None:
        """Idempotent."""
        if self.ended.done():
            return
        self.ended.set_result(None)
        self._others.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._watch.stop()
        self._socket.close()

    def _send(self) -> None:
        try:
            self._unsent.send(self._socket)
            if not self._unsent.queued_bytes:
                self._watch.write(False)
                self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def _throw_away(self) -> None:
        try:
            if self._socket.recv(_THROWN_AWAY_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close()
