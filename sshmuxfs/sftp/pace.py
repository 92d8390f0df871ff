"""How fast a channel delivers and how far away its server is, measured on the traffic itself. Pure.

The rule of this file: it sees numbers, and time only as an argument. The two filters are those of congestion control by
bandwidth and delay: the highest rate and the shortest round trip of the last seconds; their product is what must be in
flight to keep the path full.

Imported by `sshmuxfs.sftp.client`; read by `sshmuxfs.io.plan`.
"""

from __future__ import annotations

# A rate or a round trip that was not seen again for this long is no longer believed: paths change (a laptop moves), and
# one queue that stood for seconds must not look like distance for ever.
MEMORY_S = 10.0
# A server nearer than this is next door.
NEAR_S = 0.001
# What its answers may take lately, when all of them stand in queues of ours: beyond it, it is not believed any more.
NEAR_LATELY_S = 0.01


class _Extreme:
    """The greatest sample of the last MEMORY_S, kept as two half-windows; constant time and memory."""

    def __init__(self) -> None:
        self._now = self._before = 0.0
        self._turn_at_s = 0.0

    def add(self, value: float, now_s: float) -> None:
        if now_s - self._turn_at_s > MEMORY_S / 2:
            self._before, self._now = self._now if now_s - self._turn_at_s < MEMORY_S else 0.0, 0.0
            self._turn_at_s = now_s
        self._now = max(self._now, value)

    @property
    def value(self) -> float:
        return max(self._now, self._before)


class Pace:
    """Rate and round trip of one channel."""

    def __init__(self) -> None:
        self._rate = _Extreme()
        self._nearness = _Extreme()  # 1 / round trip, so that the shortest round trip is the greatest sample
        self.shortest_s = float("inf")  # the shortest round trip ever seen

    def answered(self, sent_at_s: float, now_s: float) -> None:
        """A reply came for a request sent at `sent_at_s`."""
        round_trip_s = max(now_s - sent_at_s, 1e-6)
        self.shortest_s = min(self.shortest_s, round_trip_s)
        self._nearness.add(1.0 / round_trip_s, now_s)

    def delivered(self, count_bytes: int, since_s: float, now_s: float) -> None:
        """`count_bytes` of payload came between `since_s` and `now_s`."""
        self._rate.add(count_bytes / max(now_s - since_s, 1e-6), now_s)

    @property
    def rate_bytes_per_s(self) -> float:
        """The highest rate seen lately; 0.0 before any."""
        return self._rate.value

    @property
    def round_trip_s(self) -> float:
        """The shortest round trip seen lately; 0.0 before any."""
        nearness = self._nearness.value
        return 1.0 / nearness if nearness else 0.0

    @property
    def near(self) -> bool:
        """Whether the server is next door."""
        return self.shortest_s < NEAR_S and self._nearness.value > 1.0 / NEAR_LATELY_S

    @property
    def in_flight_bytes(self) -> float:
        """What fills the path: rate times round trip."""
        return self.rate_bytes_per_s * self.round_trip_s
