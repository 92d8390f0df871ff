"""`python -m mux` is `sshmux`."""

from __future__ import annotations

from .cli import main

raise SystemExit(main())
