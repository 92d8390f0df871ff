"""Who waits for the next request from the kernel: tasks take turns, and a turn is only passed on by who needs it.

pyfuse3 has several tasks that serve requests; one waits at the device, the others wait for its place in a lock. With
trio's own lock, each request wakes the next task at once, which costs a round of the scheduler even when the request is
answered without waiting for anything, as most are: a lookup that is known, a block that was read ahead, a close. Here
the place stays free until the handler first has to wait (`passing_on`); a handler that does not wait returns to the
device itself.

A read of the device blocks when there is nothing, and then the whole mount stands still. So who has waited there goes
to read only what is still there (`Device`).

The rule of this file: it alone reaches into pyfuse3, by the door that pyfuse3.asyncio uses: pyfuse3 takes its lock, its
nursery and its waits from the module attribute `trio`. `install` refuses what it does not recognise, and pyfuse3 then
works as it is made.

Imported by `sshmuxfs.errors` and `sshmuxfs.mount`.
"""

from __future__ import annotations

import errno
import functools
import logging
import select
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import ModuleType, SimpleNamespace, coroutine
from typing import Any, ParamSpec, TypeVar

import trio

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Turn:
    """The lock around the device. Leaving it wakes nobody; `pass_on` does."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[trio.lowlevel.Task] = deque()
        _turns.append(self)

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True  # no checkpoint: what follows is a wait at the device
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: Callable[[], Any]) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *_: object) -> None:
        self._held = False

    def pass_on(self) -> None:
        """If nobody is at the device, let the next task go there."""
        if not self._held and self._waiting:
            self._held = True
            trio.lowlevel.reschedule(self._waiting.popleft())


# pyfuse3 serves one mount per process, so there is one turn at a time.
_turns: deque[Turn] = deque(maxlen=1)


def _pass_on() -> None:
    if _turns:
        _turns[0].pass_on()


def passing_on(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have a handler pass the turn on when it first waits for something, and not at all if it never does."""

    @functools.wraps(method)
    @coroutine
    def stepping(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, T]:
        steps = method(*args, **kwargs)
        try:
            waits_for = steps.send(None)
            _pass_on()
            while True:
                try:
                    answer = yield waits_for
                except BaseException as error:
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    return stepping


class _Nursery:
    """A nursery whose tasks pass the turn on when they end, so that none waits for one that is gone.

    Where the mount is taken down in the moment in which a request is read, the kernel says ECONNABORTED in place of the
    ENODEV that is the usual end; it is one as well, and the next task hears the other.
    """

    def __init__(self) -> None:
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> _Nursery:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> bool | None:
        return await self._manager.__aexit__(*failure)

    def start_soon(self, run: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: object = None) -> None:
        async def run_and_pass_on() -> None:
            try:
                await run(*args)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    raise
                log.debug("the mount went while a request was read")
            finally:
                _pass_on()

        assert self._nursery is not None
        self._nursery.start_soon(run_and_pass_on, name=name)


class Device:
    """The waits at the device: one ends when a read will return at once.

    That it was readable a moment ago is not enough. The kernel tells us of a signal that meets somebody who waits for
    an answer, and takes that back when the answer is given; a request whose sender was killed is taken back as well.
    """

    def __init__(self) -> None:
        self._poll: Callable[[float], list[tuple[int, int]]] | None = None
        self._closing = False

    async def wait_readable(self, descriptor: int) -> None:
        """Wait until there is something to read, or the device has ended. Raises trio.ClosedResourceError."""
        poll = self._poll
        if poll is None:  # there is one device
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poll = self._poll = poller.poll
        while not self._closing:
            await trio.lowlevel.wait_readable(descriptor)
            if poll(0):
                return
        raise trio.ClosedResourceError

    def notify_closing(self, descriptor: int) -> None:
        """End the waits, those that begin from now on as well."""
        self._closing = True
        trio.lowlevel.notify_closing(descriptor)


def install(pyfuse3: ModuleType) -> bool:
    """Have pyfuse3 use what is here. Returns whether it could be done; call before the first request."""
    if getattr(pyfuse3, "trio", None) is not trio:
        log.warning("this pyfuse3 is not the one we know; its own way of taking turns is kept")
        return False
    device = Device()
    waits = {"wait_readable": device.wait_readable, "notify_closing": device.notify_closing}
    lowlevel = SimpleNamespace(**{**vars(trio.lowlevel), **waits})
    names = {**vars(trio), "Lock": Turn, "open_nursery": _Nursery, "lowlevel": lowlevel}
    setattr(pyfuse3, "trio", SimpleNamespace(**names))  # noqa: B010 - a name its stubs do not tell
    return True
