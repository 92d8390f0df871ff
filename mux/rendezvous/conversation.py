"""A control connection for who has no event loop: greet, ask, and have the answers, one after another.

The one rule: it never waits without an end. Each question has a deadline of its own, since the process at the other
end may be stopped, and OpenSSH's own client waits for ever then. The socket comes connected, and from somebody who
knows whose process is behind it (`sockets.connect`): nothing is checked here but the protocol.

Used by `sockets.probe`, and by the subcommands of `sshmux`. It blocks.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Final, Self

from mux.errors import ConnectionLost
from mux.protocol.control import ControlClient, Signal, State
from mux.protocol.messages import Alive, AliveCheck, Reply, Request

_READ_BYTES: Final = 64 * 1024  # a status can be long


class HungUp(ConnectionLost):
    """The other end closed before it had answered."""


class Conversation:
    """The client's side of a control connection; a context manager that owns its socket.

    Its methods raise `TimeoutError` at the deadline, `HungUp`, `RemoteProtocolError`, and `OSError` as sockets do;
    after any of them the conversation is over, because a late answer would be taken for another's.
    """

    def __init__(self, connection: socket.socket) -> None:
        """`connection` is connected and does not block."""
        self._socket = connection
        self._core = ControlClient()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the socket. Idempotent."""
        self._socket.close()

    def alive(self, *, deadline_s: float) -> int:
        """Return the pid of the process that holds the connection, by its own word."""
        reply = self.ask(AliveCheck, deadline_s=deadline_s)
        assert isinstance(reply, Alive)
        return reply.pid

    def ask(self, request: Callable[[int], Request], *, deadline_s: float) -> Reply:
        """Ask what `request` makes of a request id, and return the answer, refusals too."""
        deadline = time.monotonic() + deadline_s
        asked = False
        while True:
            event = self._core.next_event()
            if isinstance(event, Reply):
                return event
            if event is Signal.ENDED:
                raise HungUp("the other end closed before it had answered")
            if not asked and self._core.state is State.READY:
                self._core.send(request(self._core.new_request_id()))
                asked = True
            for data, _ in self._core.data_to_send():
                self._write(data, deadline)
            if event is Signal.NEED_DATA:
                self._wait(select.POLLIN, deadline)
                self._core.receive(self._socket.recv(_READ_BYTES))

    def _write(self, data: bytes, deadline: float) -> None:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)

    def _wait(self, event: int, deadline: float) -> None:
        left_s = deadline - time.monotonic()  # asked first: a peer that never stops talking must not outrun it
        poll = select.poll()
        poll.register(self._socket, event)
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError
