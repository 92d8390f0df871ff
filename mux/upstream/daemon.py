"""The upstream process from its order to its end: log in, publish, report, detach, serve, withdraw.

The one rule: until it has reported that it is ready it belongs to its starter: it has the terminal, for questions, and
ends when the pipe with the order is closed, on Ctrl-C, or with the one report that says why. From then on it belongs to
those who ride on it: own session, no terminal, `/` as its directory, and it ends when nobody needs it.

In the foreground (`-f`) it stays with its starter. What was started by itself ends with that. For a mount it stays as
long as that needs it, whatever signal comes to both; and once the mount has gone Ctrl-C ends it for all who still ride.

`main` is run by `__main__`. The event loop and asyncssh are loaded when the process has forked, while the starter goes
on with its own work.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mux.errors import ExitCode, RemoteProtocolError, SharingError, printable
from mux.rendezvous.order import LONGEST_LINE_BYTES, Kind, Order, Report

if TYPE_CHECKING:
    from .service import Service

PROGRAM: Final = "sshmux"
_READ_BYTES: Final = 65536

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Carry out the order that comes through a pipe.

    `arguments`: the descriptors of the pipe with the order, of that for reports, and of the lock if there is one.
    """
    orders, reports, *lock = (int(argument) for argument in arguments)
    for descriptor in (orders, reports, *lock):
        os.set_inheritable(descriptor, False)
    try:
        order = _read_order(orders)
        if order is None:
            return ExitCode.INTERRUPTED
    except RemoteProtocolError as error:
        print(f"{PROGRAM}: {error}; `sshmux start` starts an upstream", file=sys.stderr)
        return ExitCode.USAGE
    if not order.foreground and os.fork():
        os._exit(0)  # so that nobody has to wait for the rest of us
    starter = Starter(orders, reports, lock[0] if lock else None, order)
    try:
        return _carry_out(order, starter)
    finally:
        logging.shutdown()


class Starter:
    """Who gave the order, as far as this process knows: two pipes and a lock."""

    def __init__(self, orders: int, reports: int, lock: int | None, order: Order) -> None:
        self.orders = orders
        self._reports = reports
        self._lock = lock
        self._order = order

    def report(self, report: Report) -> None:
        """Say how it went, once. The lock is let go of first.

        With a failure the pipe stays open: whoever waits for its end then knows that this process has ended as well.
        """
        self.unlock()
        if self._reports < 0:
            return
        try:
            os.write(self._reports, report.to_json().encode())
        except BrokenPipeError:
            pass
        if report.kind is not Kind.FAILED:
            os.close(self._reports)
        self._reports = -1

    def let_go(self) -> None:
        """The pipe with the order is of no more use. Idempotent."""
        if self.orders >= 0:
            os.close(self.orders)
            self.orders = -1

    def unlock(self) -> None:
        """Let others look at the path. Idempotent."""
        from mux.rendezvous.publish import Lock

        if self._lock is not None:
            Lock.of(self._order.path, self._lock).release()
            self._lock = None

    def leave(self) -> None:
        """Detach: own session, no terminal, no directory. What is still open are sockets to the server."""
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)


def _carry_out(order: Order, starter: Starter) -> int:
    try:
        _log_to(order)
        return _service(order, starter).run()
    except SharingError as error:
        starter.report(Report(Kind.FAILED, error.message, error.hint, error.exit_code))
        return error.exit_code
    except Exception as error:
        log.exception("the upstream process fails in a way it should not")
        message = (
            f"the upstream process failed in a way it should not ({type(error).__name__}: {printable(str(error))})"
        )
        hint = "`sshmux start -f` and `sshmuxfs -d` tell more"
        starter.report(Report(Kind.FAILED, message, hint, ExitCode.FAILURE))
        return ExitCode.FAILURE


def _service(order: Order, starter: Starter) -> Service:
    from .service import Service

    return Service(order, starter)


def _read_order(descriptor: int) -> Order | None:
    """Return the order; None when the starter ended before it gave one. Raises RemoteProtocolError."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(descriptor, _READ_BYTES)
        line += more
        if not line:
            return None
        if not more or len(line) > LONGEST_LINE_BYTES:
            raise RemoteProtocolError("an order that does not end")
    return Order.from_json(line)


def _log_to(order: Order) -> None:
    from mux import logs

    handler = logs.handler(PROGRAM, file=order.log_file, foreground=order.foreground)
    logging.basicConfig(level=logging.DEBUG if order.debug else logging.INFO, handlers=[handler], force=True)
    # asyncssh logs every channel and authentication step at INFO.
    logging.getLogger("asyncssh").setLevel(logging.DEBUG if order.debug else logging.WARNING)
