"""Running real programs on a tree: with a deadline, a fixed environment, and their words in the failure.

For the tests only.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import bounded

DEADLINE_S = 120.0

ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Author",
    "GIT_AUTHOR_EMAIL": "author@example.org",
    "GIT_COMMITTER_NAME": "Committer",
    "GIT_COMMITTER_EMAIL": "committer@example.org",
    "GIT_TERMINAL_PROMPT": "0",
}


def attempt(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program; its exit status is the caller's to judge. Raises FileNotFoundError when it is not installed."""
    return bounded.in_subprocess([str(word) for word in command], DEADLINE_S, cwd=cwd, env=ENVIRONMENT)


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a program that has to succeed; what it wrote."""
    done = attempt(*command, cwd=cwd)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
