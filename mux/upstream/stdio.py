"""A stdio forwarding (`ssh -W`): two descriptors of a client joined to a channel to where the server connects.

One rule: it is over when both ways are, or when its client goes; nothing is said to the client in between. Imported by
`clients.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .channels import SESSION_WINDOW_BYTES, LiveChannel
from .passages import open_direct
from .pumps import Stream

if TYPE_CHECKING:
    from .engine import Engine

ORIGIN: Final = ("127.0.0.1", 65535)  # what OpenSSH says of a client that has no address


class StdioForwarding:
    """One of them, open.

    number    of its channel, which the client is told
    channel   for lists
    """

    def __init__(self, stream: Stream, channel: LiveChannel) -> None:
        self.channel = channel
        self.number = channel.number
        self._stream = stream

    @classmethod
    async def open(
        cls, engine: Engine, host: bytes, port: int, descriptors: tuple[int, ...], ended: Callable[[], None]
    ) -> StdioForwarding:
        """Open it; the descriptors (stdin, stdout) are its own from the call on. Raises `OpenRefused`."""
        source, sink = descriptors
        stream = Stream(source, sink, ended)
        try:
            return cls(stream, await open_direct(engine, stream, host, port, ORIGIN, SESSION_WINDOW_BYTES))
        except BaseException:
            stream.close()
            raise

    def hang_up(self) -> None:
        """The client has gone."""
        self._stream.close()
