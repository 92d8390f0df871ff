"""`sshmux top`: the traffic of shared connections, live.

The one rule: what is shown is a difference between two answers of the upstream, divided by the time between them, so
it needs no clock of the other side. rich is imported here only. Masters of OpenSSH do not tell of traffic: of them
there is the number of clients.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mux import signals
from mux.errors import ExitCode, SharingError, printable

from .reach import Reached, reach
from .status import Program, facts, programs
from .tables import age, milliseconds, size
from .upstreams import masters

_PERIOD_S: Final = 1.0
_SOON_S: Final = 0.3  # between the two answers of a look without a terminal
_REMEMBERED: Final = 30  # looks in a sparkline
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PLAIN_WIDTH: Final = 120  # where there is no terminal that has one

Counter = tuple[int, int]  # received and sent bytes


@dataclass(slots=True)
class Meter:
    """Two counters that only grow -> rates, and the past of their sum."""

    counter: Counter | None = None
    at_s: float = 0.0
    received: float = 0.0  # bytes per second
    sent: float = 0.0
    past: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def look(self, counter: Counter, now_s: float) -> None:
        """Take what the counters say at `now_s`. One that fell belongs to somebody new, and begins again."""
        before, since_s = self.counter, now_s - self.at_s
        self.counter, self.at_s = counter, now_s
        if before is None or since_s <= 0:
            return
        self.received = max(0, counter[0] - before[0]) / since_s
        self.sent = max(0, counter[1] - before[1]) / since_s
        self.past.append(self.received + self.sent)


def sparkline(past: deque[float]) -> str:
    """Blocks in proportion to the highest of them; a row without traffic is a row of the lowest."""
    highest = max(past, default=0.0)
    if highest <= 0:
        return _BLOCKS[0] * len(past)
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(value / highest * len(_BLOCKS)))] for value in past)


class Watch:
    """What was seen so far of some connections."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._one = reach(arguments) if arguments.host is not None else None
        self._meters: dict[tuple[str, int, float], Meter] = {}

    def look(self) -> Group:
        """Ask everybody, and return what is to be shown. Raises SharingError when the one that is watched is gone."""
        if self._one is not None:
            with self._one.open() as master:
                return Group(self._shown(facts(self._one, master)))
        shown = [self._shown(told) for told in _all()]
        return Group(*shown) if shown else Group(Text("no connection is shared now"))

    def _shown(self, told: Mapping[str, Any]) -> Table:
        host = printable(str(told["host"] or told["path"]))
        title = f"{host}  {told['kind']} {told['pid']}  up {age(told['age_s'])}"
        table = Table(title_justify="left", expand=True, box=None, header_style="bold")
        if told["kind"] == "sshmux":
            link = told["connection"]
            meter = self._meter(told["path"], 0, 0.0, (link["received_bytes"], link["sent_bytes"]))
            title += f"  trip {milliseconds(link['round_trip_s'])}  {_rates(meter)}  {sparkline(meter.past)}"
        table.title = Text(title)
        for name in ("PID", "IN", "OUT", "PAST"):
            table.add_column(name, justify="left" if name == "PAST" else "right", no_wrap=True)
        table.add_column("COMMAND", no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        for rider in programs(told):
            table.add_row(*self._row(told, rider))
        return table

    def _row(self, told: Mapping[str, Any], rider: Program) -> list[Text]:
        rates = ["-", "-", ""]
        if told["kind"] == "sshmux":
            meter = self._meter(told["path"], rider.pid, rider.since_s, (rider.received_bytes, rider.sent_bytes))
            rates = [f"{size(meter.received)}/s", f"{size(meter.sent)}/s", sparkline(meter.past)]
        # As Text, so that nothing in a command line is taken for markup.
        return [Text(word) for word in (str(rider.pid or "-"), *rates, rider.command)]

    def _meter(self, path: str, pid: int, since_s: float, counter: Counter) -> Meter:
        meter = self._meters.setdefault((path, pid, since_s), Meter())
        meter.look(counter, time.monotonic())
        return meter


def _rates(meter: Meter) -> str:
    return f"{size(meter.received)}/s in, {size(meter.sent)}/s out"


def _all() -> Iterator[Mapping[str, Any]]:
    for one in masters({}):
        if one.pid is None or one.state != "live":
            continue
        try:
            found = Reached(one.path, one.pid)
            with found.open() as master:
                told = facts(found, master)
        except SharingError:  # it ended meanwhile
            continue
        yield {**told, "host": told["host"] or one.host}


def top(arguments: argparse.Namespace) -> int:
    """Show it until q or Ctrl-C; once where there is no terminal."""
    watch = Watch(arguments)
    if arguments.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        watch.look()
        time.sleep(_SOON_S)
        width = None if sys.stdout.isatty() else _PLAIN_WIDTH
        Console(width=width, highlight=False).print(watch.look())
        return ExitCode.OK
    try:
        _live(watch)
    except KeyboardInterrupt:  # how it is left
        pass
    return ExitCode.OK


def _live(watch: Watch) -> None:
    """Show it until q, or an interrupt, which comes when nothing is being drawn: a drawing broken off would stay."""
    shown = watch.look()
    with signals.held_back(), _keys(), Live(shown, screen=True, auto_refresh=False) as live:
        while True:
            with signals.let_through():
                if _quits(_PERIOD_S):
                    return
                shown = watch.look()
            live.update(shown, refresh=True)


@contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and unseen; Ctrl-C still is one."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _quits(period_s: float) -> bool:
    """Wait for a period; whether q was pressed, or the terminal is gone."""
    until_s = time.monotonic() + period_s
    while (left_s := until_s - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys or b"Q" in keys:
                return True
    return False
