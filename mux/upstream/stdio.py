"""A stdio forwarding (`ssh -W`): two descriptors of a client joined to a channel to where the server connects.

One rule: it is over when both ways are, or when its client goes; nothing is said to the client in between. Its window
is a forwarded connection's, out of the same budget: there may be as many as there are clients, and none need ever read.
Imported by `clients.py` and `requests.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .channels import LiveChannel
from .passages import open_direct
from .pumps import Stream
from .windows import path_bytes

if TYPE_CHECKING:
    from .engine import Engine
    from .listeners import Gate

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
        cls, engine: Engine, gate: Gate, host: bytes, port: int, given: tuple[int, ...], ended: Callable[[], None]
    ) -> StdioForwarding:
        """Open it; the descriptors `given` (stdin, stdout) are its own from the call on, its window is the `gate`'s.

        Raises what `open_direct` does.
        """
        window_bytes = gate.enter(path_bytes(engine.shortest_round_trip_s))

        def over() -> None:
            gate.leave(window_bytes)
            ended()

        source, sink = given
        stream = Stream(source, sink, over)
        try:
            return cls(stream, await open_direct(engine, stream, host, port, ORIGIN, window_bytes))
        except BaseException:
            stream.close()
            raise

    def hang_up(self) -> None:
        """The client has gone."""
        self._stream.close()
