"""A source: what reads a descriptor for a channel.

One rule: it reads only as much as the channel takes now, so that nothing is held here but what an escape made longer
or a window made shorter meanwhile. All sources of a loop read into one buffer, because a channel is done with the
bytes when `write` returns. Which calls may be made where is `ports.py`'s knowledge. Imported through `pumps.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from .ports import Port
from .workers import WORKERS

READ_BYTES: Final = 256 * 1024  # a system call per eight packets; more than a unix socket or a pipe holds

Bytes: TypeAlias = bytes | bytearray | memoryview
Translation: TypeAlias = Callable[[memoryview], Bytes]


class Outlet(Protocol):
    """What a source needs of a channel: `LiveChannel`."""

    @property
    def room_bytes(self) -> int: ...
    def want_room(self) -> None: ...
    def write(self, data: Bytes, stream: int = 0) -> int: ...


class Source:
    """Reads a descriptor for a channel, from `start` until it ends or is closed.

    `room` is to be called whenever the channel says that it takes more.
    """

    def __init__(
        self,
        descriptor: int,
        channel: Outlet,
        *,
        ended: Callable[[], None],
        closed: Callable[[], None] | None = None,
        translate: Translation | None = None,
    ) -> None:
        """Takes ownership of `descriptor`.

        `ended` is called once when nothing more can be read, an error being an end like any other, and not after
        `close`. `closed` is called when the descriptor is closed, if there was need to wait for that: `closing`.
        `translate` turns what was read into what is sent (escapes), and may close the source.
        """
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._ended = ended
        self._closed = closed
        self._translate = translate
        self._port: Port | None
        try:
            self._port = Port(descriptor, writing=False)
        except OSError:
            self._port = None
        self._held: memoryview | None = None  # read, and not taken by the channel yet
        self._watching = False
        self._busy = False  # a thread is reading, or a file's turn is to come
        self._done = False
        self.closing = False  # a thread closes the descriptor

    @property
    def done(self) -> bool:
        """Whether it has ended or was closed."""
        return self._done

    def start(self) -> None:
        """Begin to read. `ended` may be called before this returns."""
        self._go_on()

    def room(self) -> None:
        """The channel takes more."""
        if not self._done:
            self._go_on()

    def close(self) -> None:
        """Read no more, and release the descriptor; a thread that reads still has it until it returns. Idempotent."""
        self._done = True
        self._held = None
        self._unwatch()
        if self._port is not None and not self._busy:
            port, self._port = self._port, None
            self.closing = not port.close(self._port_closed)

    def _port_closed(self) -> None:
        self.closing = False
        if self._closed is not None:
            self._closed()

    def _go_on(self) -> None:
        """Do what comes next: send what is held, then wait for more, in whichever way this descriptor can be."""
        if self._held is not None and not self._send(self._held):
            return
        if self._done or self._busy or self._watching:
            return
        if self._port is None or self._port.null:
            self._end()
        elif not self._port.known:
            self._busy = True
            WORKERS.submit(self._port.find_out, self._found_out)
        elif not self._channel.room_bytes:
            self._channel.want_room()
        elif self._port.pollable:
            self._watching = True
            self._loop.add_reader(self._port.descriptor, self._readable)
        elif self._port.cached:
            self._busy = True
            self._loop.call_soon(self._read_file)
        else:
            self._read_in_thread()

    def _found_out(self, _: object, error: OSError | None) -> None:
        self._busy = False
        if self._done:
            self.close()
        elif error is not None:
            self._end()
        else:
            self._go_on()

    def _read_file(self) -> None:
        """Read what is at hand, which takes no thread. One piece in a turn of the loop, as from all others."""
        self._busy = False
        room, port = self._channel.room_bytes, self._port
        if self._done or port is None:
            self.close()
            return
        if not room:
            self._go_on()
            return
        buffer = _buffer()
        count = port.read_cached(buffer[:room])
        if count is None:
            self._read_in_thread()
        elif count:
            self._send_anew(buffer[:count])
            self._go_on()
        else:
            self._end()

    def _readable(self) -> None:
        room = self._channel.room_bytes
        port = self._port
        if not room or port is None:
            self._unwatch()
            self._channel.want_room()
            return
        if not port.direct:
            self._unwatch()
            self._read_in_thread()
            return
        buffer = _buffer()
        try:
            count = port.read_into(buffer[:room])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if count:
            self._send_anew(buffer[:count])
        else:
            self._end()

    def _read_in_thread(self) -> None:
        port, count = self._port, min(self._channel.room_bytes, READ_BYTES)
        if port is not None:
            self._busy = True
            WORKERS.submit(lambda: port.read(count), self._read)

    def _read(self, data: bytes | None, error: OSError | None) -> None:
        self._busy = False
        if self._done:
            self.close()
        elif data:
            self._send_anew(memoryview(data))
            self._go_on()
        elif isinstance(error, BlockingIOError) and self._port is not None and self._port.pollable:
            self._go_on()  # its owner has made it non-blocking, and somebody else was faster
        else:
            self._end()

    def _send_anew(self, data: memoryview) -> None:
        if self._translate is not None:
            data = memoryview(self._translate(data))
            if self._done:
                return
        self._send(data)

    def _send(self, data: memoryview) -> bool:
        """Returns whether all of it is sent; what is not is held, and the source waits for room."""
        taken = self._channel.write(data)
        if taken == len(data):
            self._held = None
            return True
        # Bytes of our own: the buffer belongs to all.
        self._held = memoryview(bytes(data[taken:]))
        self._unwatch()
        return False

    def _end(self) -> None:
        self.close()
        self._ended()

    def _unwatch(self) -> None:
        if self._watching and self._port is not None:
            self._loop.remove_reader(self._port.descriptor)
        self._watching = False


class _Local(threading.local):
    """One buffer for all sources of a thread, and so of a loop."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_LOCAL: Final = _Local()


def _buffer() -> memoryview:
    return _LOCAL.view
