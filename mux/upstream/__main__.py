"""The upstream process, as `mux.downstream.start` runs it: this file, by its path, with descriptors as arguments.

The one rule: only what is next to nothing is loaded before the process has let go of its starter (`daemon.main`).
By its path, since the directory a user stands in must not decide which modules are loaded (`python -P`); our own
package is then found behind everything that is installed.
"""

from __future__ import annotations

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from mux.upstream.daemon import main  # noqa: E402

raise SystemExit(main(sys.argv[1:]))
