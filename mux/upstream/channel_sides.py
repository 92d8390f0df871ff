"""The two sides of a channel: what it needs of the connection, and who uses it; and what a refused one is.

One rule: declarations only, so that either side can be another. Imported by `channels.py`, and through it by whoever
opens or accepts channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from mux.errors import ExitCode, SharingError
from mux.protocol.connection import OpenFailure, Packet, Part

from .company import Company
from .turns import Braked

if TYPE_CHECKING:
    from .channels import LiveChannel


class OpenRefused(SharingError):
    """The server refused a channel. `code` is of `OpenFailure`, 0 when it gave no answer; `text` is safe to show."""

    usual_exit_code = ExitCode.REFUSED

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"the server refused a channel: {text}" if text else "the server refused a channel")
        self.code = code
        self.text = text


class Transport(Braked, Protocol):
    """What is needed of `engine.Engine`."""

    @property
    def lost(self) -> str | None: ...
    @property
    def company(self) -> Company: ...
    def add_route(self, route: Any, /) -> int: ...
    def remove_route(self, number: int, /) -> None: ...
    def send(self, kind: int, /, *parts: Part) -> None: ...
    def send_all(self, packets: Sequence[Packet], /) -> None: ...
    def request(self, name: bytes, body: bytes, on_reply: Callable[[bool, bytes], None], /) -> None: ...


class ChannelEnd(Protocol):
    """Who uses a channel. All is called from the event loop, in the order of the packets; nothing may raise or wait.

    After `closed` or `lost`, of which exactly one comes, nothing more is called. A refused channel calls nothing.
    """

    def opened(self, channel: LiveChannel) -> None:
        """The channel is open, before anything else is said of it."""

    def data(self, stream: int, data: memoryview) -> None:
        """Data came; the view may be kept. Each byte is to be given back by `LiveChannel.consumed`, used or not."""

    def eof(self) -> None:
        """The server sends no more data."""

    def closed(self) -> None:
        """The server has closed, and so have we."""

    def request(self, name: bytes, want_reply: bool, body: bytes) -> bool:
        """A request; what is returned is the answer if one is wanted."""

    def room(self) -> None:
        """`write` may take more again."""

    def lost(self, reason: str) -> None:
        """The connection ended, or the server broke the rules: the channel is gone."""


class _Nobody:
    """The end of a channel that nobody wants to hear of any more."""

    def opened(self, channel: LiveChannel) -> None: ...
    def data(self, stream: int, data: memoryview) -> None: ...
    def eof(self) -> None: ...
    def closed(self) -> None: ...
    def room(self) -> None: ...
    def lost(self, reason: str) -> None: ...

    def request(self, name: bytes, want_reply: bool, body: bytes) -> bool:
        return False


NOBODY: Final = _Nobody()


def words(code: int) -> str:
    """What a reason code says, for a server that gives no text."""
    try:
        return OpenFailure(code).name.replace("_", " ").lower()
    except ValueError:
        return f"reason {code}"
