"""The upstream process, as `mux.downstream.start` runs it, but struck by Ctrl-C: before it has a loop, or at its end.

Run by its path, with the same arguments; what is above it is where our own packages are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from mux.upstream import service
from mux.upstream.daemon import main

close, run = asyncio.Runner.close, service.Service.run


def strike() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def struck_close(self: asyncio.Runner) -> None:
    strike()
    close(self)
    strike()


def struck_run(self: service.Service) -> int:
    strike()
    return run(self)


if os.environ["STRUCK"] == "at its end":
    asyncio.Runner.close = struck_close  # type: ignore[method-assign]
else:
    service.Service.run = struck_run  # type: ignore[method-assign]
raise SystemExit(main(sys.argv[1:]))
