"""How much the clients of one connection may take of it: channels, and bytes that we may come to hold for them.

One rule: what is lent is either on its way from the server or waits for the client, and comes back when the client has
read it, or when the channel closes. The server is told of a client's windows only as far as they are lent; so a client
that grants 4 GiB and reads nothing makes us hold no more than its share, and need not be cut off for it. Several
libraries grant so much by habit, and a client that is stopped for a while is no reason to end its sessions. It also
keeps the sum the server is told below 2^32, over which OpenSSH's ends the whole connection.

Imported by the parts of `nat.py`, and by `mux.upstream.relay`, which has one `Shares` for each connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# sshd dies at 10000 channels and listening sockets (CHANNELS_MAX_CHANNELS of channels.c): all clients of this kind
# together leave it half.
MAX_PLACES: Final = 5000
# What the server may have sent us, or be about to send us, for one client, and for all. The first is sixteen windows
# of ssh; with more channels each gets a quarter of what is left.
CLIENT_BYTES: Final = 32 << 20
ALL_CLIENTS_BYTES: Final = 96 << 20
LEAST_WINDOW_BYTES: Final = 64 << 10  # for every channel, however many there are: two full packets
# With more than this unread a channel waits for its share (with more than the least window, when no more is left for
# it): whoever reads at all empties this in a moment.
READ_UP_BYTES: Final = 1 << 20


class Shares:
    """What all clients of one connection have taken of it together."""

    def __init__(self) -> None:
        self.places = 0
        self.lent_bytes = 0

    def take(self, places: int) -> bool:
        """Take places among the server's channels; False when there are not so many."""
        if self.places + places > MAX_PLACES:
            return False
        self.places += places
        return True

    def give(self, places: int) -> None:
        """Give places back."""
        self.places -= places


class Loan:
    """One channel's part.

    credit_bytes     what the server may still send
    withheld_bytes   what the client granted beyond that
    """

    __slots__ = ("credit_bytes", "tell", "withheld_bytes")

    def __init__(self, tell: Callable[[int], None]) -> None:
        """`tell`: called to tell the server of so much more window."""
        self.tell = tell
        self.credit_bytes = 0
        self.withheld_bytes = 0


class Loans:
    """One client's part.

    waiting_bytes   data for the client that it has not read, to be counted by whoever delivers it
    """

    def __init__(self, shares: Shares) -> None:
        self.waiting_bytes = 0
        self._shares = shares
        self._lent_bytes = 0
        self._short: dict[int, Loan] = {}  # those of which something is withheld

    def begin(self, loan: Loan, window_bytes: int) -> int:
        """The client grants its first window; returns how much of it to tell the server with the channel itself.

        The rest may be told, by `lend`, from when the server knows the channel.
        """
        loan.withheld_bytes = window_bytes
        told = self._take(loan)
        self._short.pop(id(loan), None)
        return told

    def lend(self, loan: Loan, more_bytes: int = 0) -> None:
        """The client grants so much more; the server is told as far as that is lent."""
        loan.withheld_bytes += more_bytes
        told = self._take(loan)
        if told:
            loan.tell(told)

    def take_back(self, loan: Loan) -> None:
        """The server sends no more on this channel."""
        self._lent(-loan.credit_bytes)
        loan.credit_bytes = loan.withheld_bytes = 0
        self._short.pop(id(loan), None)

    def read_up(self, queued_bytes: int) -> None:
        """So much of everything delivered is left unread. Where something was withheld for that, it is lent now."""
        read = self.waiting_bytes - min(self.waiting_bytes, queued_bytes)
        self.waiting_bytes -= read
        self._lent(-read)
        if self._short and self.waiting_bytes <= READ_UP_BYTES:
            for loan in tuple(self._short.values()):
                self.lend(loan)

    def forgive(self) -> None:
        """The client has gone: what still comes for it is not kept."""
        self._lent(-self.waiting_bytes)
        self.waiting_bytes = 0

    def _take(self, loan: Loan) -> int:
        left = min(CLIENT_BYTES - self._lent_bytes, ALL_CLIENTS_BYTES - self._shares.lent_bytes)
        share, unread = left // 4, READ_UP_BYTES
        if share < LEAST_WINDOW_BYTES:
            share = unread = LEAST_WINDOW_BYTES
        told = 0
        # By large pieces: what is told with every few bytes costs a packet each time.
        if self.waiting_bytes <= unread and loan.credit_bytes <= share // 2:
            told = min(loan.withheld_bytes, share - loan.credit_bytes)
        loan.withheld_bytes -= told
        loan.credit_bytes += told
        self._lent(told)
        if loan.withheld_bytes:
            self._short[id(loan)] = loan
        else:
            self._short.pop(id(loan), None)
        return told

    def _lent(self, more_bytes: int) -> None:
        self._lent_bytes += more_bytes
        self._shares.lent_bytes += more_bytes
