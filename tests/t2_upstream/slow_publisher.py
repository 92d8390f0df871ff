"""The upstream process, as `mux.downstream.start` runs it, but slow to publish: until its order is taken back.

Run by its path, with the same arguments; what is above it is where our own packages are.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from mux.rendezvous.publish import Published, publish
from mux.upstream import service
from mux.upstream.daemon import main


def slowly(*arguments: Any, **options: Any) -> Published:
    place = publish(*arguments, **options)
    poll = select.poll()
    poll.register(int(sys.argv[1]), select.POLLIN)
    poll.poll()
    return place


service.publish = slowly  # type: ignore[attr-defined]
raise SystemExit(main(sys.argv[1:]))
