"""The signals that end a process of ours: which of them it heeds, and how one who only waits hands them on.

One rule: what whoever started us has set to be ignored (nohup(1), a shell's background) stays ignored, as with ssh.
Imported by `mux.upstream.service` and `mux.upstream.workers`, the commands that wait, `mux.cli`, `sshmuxfs.mount` and
`sshmuxfs.cli`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal's hang-up comes from the kernel, from the shell, and from a parent that hands it on; a person who wants to
# end the end as well takes longer than they.
SAME_S: Final = 1.0


def heeded() -> list[signal.Signals]:
    """Those of ENDING that are not ignored. SIGTERM is what ends a daemon, and always among them."""
    return [each for each in ENDING if each == signal.SIGTERM or signal.getsignal(each) is not signal.SIG_IGN]


def interrupt() -> None:
    """From now on each of them is a KeyboardInterrupt in the main thread: what was begun is taken back on the way out.

    One that follows at once is the same one, come another way, and does not cut that short.
    """
    struck_s = -SAME_S

    def strike(_: int, __: FrameType | None) -> None:
        nonlocal struck_s
        now_s = time.monotonic()
        if now_s - struck_s >= SAME_S:
            struck_s = now_s
            raise KeyboardInterrupt

    for each in heeded():
        signal.signal(each, strike)


def held_back() -> AbstractContextManager[None]:
    """While it lasts, what would end this process waits; what is started meanwhile, in this thread, never hears of it.

    For a program that must not end half-way: a terminal's Ctrl-C is for all that runs in front.
    """
    return _masked(signal.SIG_BLOCK)


def let_through() -> AbstractContextManager[None]:
    """While it lasts, what `held_back` holds is heard."""
    return _masked(signal.SIG_UNBLOCK)


@contextmanager
def _masked(how: int) -> Iterator[None]:
    before = signal.pthread_sigmask(how, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def noted() -> Iterator[list[signal.Signals]]:
    """While it lasts, the signals that would end this process are only noted, in the list that it gives.

    For the main thread, around an event loop: the loop's own handlers are there from one moment of it to another, and
    what comes before or after them would be a KeyboardInterrupt in the loop's own machinery.
    """
    taken: list[signal.Signals] = []
    before = {each: signal.signal(each, lambda number, _: taken.append(signal.Signals(number))) for each in heeded()}
    try:
        yield taken
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def pass_on(process: int) -> list[signal.Signals]:
    """From now on, have the signals that would end this process reach another one instead.

    `process` is a pidfd that stays open. Returns the list in which they are noted. For the main thread, which need not
    look: one of Python's own handlers would run only when that thread returns from whatever it waits in, and so never
    if the signal came just before the wait.
    """
    noted: list[signal.Signals] = []
    taken = heeded()
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)

    def serve() -> None:
        while True:
            number = signal.Signals(signal.sigwait(taken))
            noted.append(number)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)

    threading.Thread(target=serve, name="signals", daemon=True).start()
    return noted
