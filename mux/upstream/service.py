"""The life of one upstream in its event loop: login, publication, service, end.

The one rule: whatever ends it, at any moment, ends it in order: nothing of ours stays at the control path, clients and
server are told, and the starter gets a report while it waits for one.

Imported by `daemon.py`, once the process has let go of its starter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mux import signals
from mux.errors import ExitCode, SharingError, printable
from mux.heap import keep_freed_memory
from mux.rendezvous.order import Kind, Order, Report
from mux.rendezvous.publish import Published, Taken, publish, remove_private_directory, remove_stale
from mux.rendezvous.putty import candidates as names
from mux.rendezvous.sockets import Found, probe, shown
from mux.scheduling import ask_for_short_turns

from .configuration import settings_of
from .lifetime import FIRST_RIDER_S, Lifetime, persist_s
from .login import login
from .prompts import Prompts
from .settings import Settings
from .upstream import Upstream

if TYPE_CHECKING:
    from .daemon import Starter

# What the server still has to be sent is a DISCONNECT; a dead link takes nothing.
GOODBYE_S: Final = 1.0
# The mount's own control connections end together with its leash, in any order.
TELL_RIDERS_S: Final = 0.2
# A mount in front that is told to end takes up to 10 s to have what was written acknowledged, and lets us off then.
MOUNT_ENDS_S: Final = 12.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class _TakenBack(SharingError):
    """The starter has gone, or was told to."""

    usual_exit_code = ExitCode.INTERRUPTED


class Service:
    """Carries out one order."""

    def __init__(self, order: Order, starter: Starter) -> None:
        self._order = order
        self._starter = starter
        self._host = printable(order.target.typed)
        self._step: asyncio.Task[Any] | None = None
        self._upstream: Upstream | None = None
        self._leashed = False  # in front, for a mount that has not let us off yet
        self._put_off = ""  # why it ends as soon as that mount lets it off
        self._ending = False  # it was told to end, maybe in the same turn of the loop in which a step was done

    def run(self) -> int:
        """Run to the end; returns the exit code. Raises SharingError while nothing was reported."""
        _allow_descriptors()
        ask_for_short_turns()
        keep_freed_memory()
        try:
            settings = settings_of(self._order.target)
            reason = settings.needs_ssh()
            if reason is not None:
                self._starter.report(Report(Kind.OTHER_ENGINE, reason))
                return ExitCode.OK
            return asyncio.run(self._live(settings))
        finally:
            if self._order.private:
                remove_private_directory(self._order.path)

    async def _live(self, settings: Settings) -> int:
        loop = asyncio.get_running_loop()
        for number in signals.heeded():
            loop.add_signal_handler(number, self._on_signal, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back since before this process was one
        loop.add_reader(self._starter.orders, self._on_starter)
        try:
            await self._log_in_and_serve(settings)
            return ExitCode.OK
        finally:
            # It ends in any case, and a loop that is being closed can no longer be told of a second one.
            signal.pthread_sigmask(signal.SIG_BLOCK, (*signals.ENDING, signal.SIGWINCH))

    async def _log_in_and_serve(self, settings: Settings) -> None:
        persists_s = self._persist_s(settings)
        prompts = Prompts(batch=self._order.batch or settings.batch, password=self._order.password)
        engine = await self._whole(login(settings, prompts, self._say))
        lifetime = Lifetime(persist_s=persists_s, first_rider_s=self._first_rider_s(), now_s=time.monotonic())
        upstream = Upstream(engine, settings, prompts=prompts, path=self._order.path, lifetime=lifetime)
        try:
            for failure in await self._whole(upstream.forwards.open_configured()):
                self._say(failure)
            place = self._publish()
            if place is not None:
                await self._serve(upstream, prompts, place)
        finally:
            upstream.stop_listening()
            upstream.forwards.close_all()
            if engine.lost is None:
                engine.disconnect("the upstream ends")
            try:
                await asyncio.wait_for(engine.closed(), GOODBYE_S)
            except TimeoutError:
                pass

    async def _whole(self, step: Coroutine[Any, Any, T]) -> T:
        """Do what the starter waits for, unless the order is taken back meanwhile."""
        self._step = asyncio.ensure_future(step)
        try:
            done: T = await self._step
        except asyncio.CancelledError:
            raise _TakenBack("interrupted") from None
        finally:
            self._step = None
        if self._ending:
            raise _TakenBack("interrupted")
        return done

    def _publish(self) -> Published | None:
        """Take the path; None when somebody else is alive there by now, which is reported."""
        path = self._order.path
        try:
            return publish(path, private=self._order.private)
        except Taken as taken:
            # Somebody who does not know our lock, as `ssh -M`, was faster.
            found = probe(path)
            if found.found is Found.LIVE:
                self._starter.report(Report(Kind.JOINED, pid=found.pid, path=path))
                return None
            if found.found is Found.STALE and remove_stale(path):
                return publish(path)
            raise Taken(f"while we logged in, somebody else came to {shown(path)}. {found.detail}") from taken

    async def _serve(self, upstream: Upstream, prompts: Prompts, place: Published) -> None:
        self._upstream = upstream
        log.info("connected to %s, shared at %s", self._host, printable(place.path))
        try:
            if self._order.putty and not self._order.private:
                await self._offer_to_putty(upstream)
            self._detach(prompts)
            self._starter.report(Report(Kind.READY, pid=os.getpid(), path=place.path))
            watch = asyncio.ensure_future(upstream.end_when_unneeded())
            try:
                reason = await upstream.serve(place.listener, place)
            finally:
                watch.cancel()
        finally:
            place.withdraw()
        log.info("the connection to %s ends: %s", self._host, reason)

    async def _offer_to_putty(self, upstream: Upstream) -> None:
        for failure in await self._whole(upstream.offer_to_putty(names(self._order.target))):
            self._say(f"PuTTY's tools cannot share this connection: {failure}")

    def _detach(self, prompts: Prompts) -> None:
        if self._is_taken_back():
            raise _TakenBack("interrupted")
        if self._order.foreground:
            self._leashed = not self._order.explicit_start  # what was started by itself ends with its starter
            return
        asyncio.get_running_loop().remove_reader(self._starter.orders)
        self._starter.let_go()
        prompts.detach()
        self._starter.leave()

    def _is_taken_back(self) -> bool:
        """Whether the order is, which `_on_starter` is told of in the loop's next turn only."""
        poll = select.poll()
        poll.register(self._starter.orders, select.POLLIN)
        return bool(poll.poll(0))

    def _persist_s(self, settings: Settings) -> float | None:
        """How long it stays without riders. Started by itself, it stays if nothing is said, as with `ssh -fNM`."""
        order = self._order
        try:
            seconds = persist_s(order.persist or settings.control_persist)
        except ValueError as error:
            raise SharingError(str(error), ExitCode.USAGE) from None
        if order.explicit_start:
            return seconds or None
        return 0.0 if order.private or order.foreground else seconds

    def _first_rider_s(self) -> float:
        return 0.0 if self._order.explicit_start else FIRST_RIDER_S

    def _on_starter(self) -> None:
        """The order's pipe is readable, which is its end: it is taken back, or who has us in front needs us no more."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._starter.orders)
        self._starter.let_go()
        if not self._leashed:
            self._end("the starter has gone")
            return
        self._leashed = False
        if self._put_off:
            self._end(self._put_off)
        elif self._upstream is not None:
            self._upstream.lifetime.expect_nobody()
            loop.call_later(TELL_RIDERS_S, self._tell_riders)

    def _tell_riders(self) -> None:
        riders = self._upstream.lifetime.riders if self._upstream is not None else 0
        if riders:
            who = "1 client still rides" if riders == 1 else f"{riders} clients still ride"
            self._say(f"{who} on the connection to {self._host}; Ctrl-C ends it for all")

    def _on_signal(self, number: int) -> None:
        reason = f"{signal.Signals(number).name} was received"
        if not self._leashed:
            self._end(reason)
        elif number != signal.SIGINT:  # Ctrl-C is meant for the mount, whose end lets us off
            # The others as well, as a rule: a hangup comes to the whole group, and the mount has writes to settle.
            self._put_off = reason
            asyncio.get_running_loop().call_later(MOUNT_ENDS_S, self._end, reason)

    def _end(self, reason: str) -> None:
        self._ending = True
        if self._step is not None:
            self._step.cancel()
        if self._upstream is not None:
            self._upstream.end(reason)

    def _say(self, line: str) -> None:
        try:
            print(f"sshmux: {line}", file=sys.stderr, flush=True)
        except OSError:  # nobody reads any more
            log.warning(line)


def _allow_descriptors() -> None:
    """As many as the system lets us have: each client brings up to three, and what is usual is meant for select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
