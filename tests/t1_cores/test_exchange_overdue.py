"""Who has waited too long: silence counts, not size."""

from __future__ import annotations

import pytest

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.exchange import Pending
from tests.t1_cores import replies
from tests.t1_cores.replies import Stream, greeted

DEADLINE_S = 30.0


def overdue(
    sent_at_s: list[float], answered: list[int], *, heard_at_s: float, now_s: float, reads: bool = False
) -> list[int]:
    """Which of requests sent at these times are overdue, when those with the numbers `answered` have been answered."""
    exchange = greeted()
    asked: list[Pending] = []
    for at_s in sent_at_s:
        if reads:
            asked.append(exchange.read(b"h", 0, memoryview(bytearray(4)), at_s)[0])
        else:
            asked.append(exchange.request(sftp.Remove(b"/a"), at_s)[0])
    for number in answered:
        Stream(exchange).deliver(replies.status(number, 1))
    late = exchange.overdue(now_s, heard_at_s, DEADLINE_S)
    return [asked.index(pending) for pending in late]


@pytest.mark.parametrize(
    ("sent_at_s", "answered", "heard_at_s", "now_s", "late"),
    [
        ([], [], 0.0, 1000.0, []),
        # Silence since the request was sent.
        ([0.0], [], 0.0, 29.9, []),
        ([0.0], [], 0.0, 30.0, [0]),
        # A channel that was idle for long, and a request just sent.
        ([1000.0], [], 0.0, 1000.0, []),
        ([1000.0], [], 0.0, 1029.9, []),
        ([1000.0], [], 0.0, 1030.0, [0]),
        # Silence fails all that are old enough, oldest first, and none that is younger.
        ([0.0, 10.0, 20.0], [], 0.0, 45.0, [0, 1]),
        ([0.0, 10.0, 20.0], [], 0.0, 50.0, [0, 1, 2]),
        # While bytes come, a request behind a long queue is not late, however old.
        ([0.0, 0.0, 0.0], [], 599.0, 600.0, []),
        ([0.0, 0.0, 0.0], [0], 599.0, 600.0, []),
        # But one that younger ones overtook by the deadline is.
        ([0.0, 30.0], [1], 31.0, 31.0, []),
        ([0.0, 30.1], [1], 31.0, 31.0, [0]),
        ([0.0, 5.0, 30.1, 36.0], [3], 40.0, 40.0, [0, 1]),
        # Being overtaken is measured between the times of sending, not by the clock.
        ([0.0, 10.0], [1], 599.0, 600.0, []),
        # The answer to an older one overtakes nothing.
        ([0.0, 40.0], [0], 75.0, 80.0, []),
    ],
)
def test_overdue(sent_at_s: list[float], answered: list[int], heard_at_s: float, now_s: float, late: list[int]) -> None:
    assert overdue(sent_at_s, answered, heard_at_s=heard_at_s, now_s=now_s) == late
    assert overdue(sent_at_s, answered, heard_at_s=heard_at_s, now_s=now_s, reads=True) == late


def test_a_read_is_overdue_when_its_payload_stops_coming() -> None:
    """Half of it is there, and then nothing more: the reader is to be told all the same."""
    exchange = greeted()
    pending, _ = exchange.read(b"h", 0, memoryview(bytearray(8)), 0.0)
    younger, _ = exchange.request(sftp.Remove(b"/a"), 1.0)
    Stream(exchange).deliver(replies.data(0, b"12345678")[:-4])
    assert exchange.overdue(29.0, 0.0, DEADLINE_S) == []
    assert exchange.overdue(40.0, 20.0, DEADLINE_S) == []
    assert exchange.overdue(60.0, 20.0, DEADLINE_S) == [pending, younger]
    for each in (pending, younger):
        exchange.abandon(each, TimeoutError())
    assert exchange.overdue(100.0, 20.0, DEADLINE_S) == []
    assert Stream(exchange).deliver(b"5678" + replies.status(1)) == []


def test_what_was_abandoned_is_not_overdue_again() -> None:
    exchange = greeted()
    pending, _ = exchange.request(sftp.Remove(b"/a"), 0.0)
    exchange.abandon(pending, TimeoutError())
    assert exchange.overdue(100.0, 0.0, DEADLINE_S) == []
    assert exchange.oldest() is None
