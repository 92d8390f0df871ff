"""One descriptor and the event loop: whether it is watched for something to read, and for room to write.

One rule: whoever watches says what should be and need not know what is; to ask for that again costs nothing. Imported
by those who live by callbacks on a socket of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watch:
    """Registers a descriptor with the running loop. It is to be stopped before the descriptor is closed.

    reading, writing   what it is watched for now
    """

    __slots__ = ("_descriptor", "_loop", "_readable", "_writable", "reading", "writing")

    def __init__(
        self, descriptor: int, readable: Callable[[], None], writable: Callable[[], None] | None = None
    ) -> None:
        """Watches for nothing yet. Without `writable`, `write` is not to be called."""
        self._descriptor = descriptor
        self._readable = readable
        self._writable = writable
        self._loop = asyncio.get_running_loop()
        self.reading = False
        self.writing = False

    def read(self, on: bool) -> None:
        """Have `readable` called whenever there is something to read, or the other end has hung up; or no more."""
        if on != self.reading:
            self.reading = on
            if on:
                self._loop.add_reader(self._descriptor, self._readable)
            else:
                self._loop.remove_reader(self._descriptor)

    def write(self, on: bool) -> None:
        """Have `writable` called whenever there is room to write; or no more."""
        if on != self.writing:
            self.writing = on
            if not on:
                self._loop.remove_writer(self._descriptor)
            elif self._writable is not None:
                self._loop.add_writer(self._descriptor, self._writable)

    def stop(self) -> None:
        """Neither any more. Idempotent."""
        self.read(False)
        self.write(False)
