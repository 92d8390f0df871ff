"""What is mounted, read from /proc/self/mountinfo (proc(5)): never by touching a mount, which may hang."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FUSERMOUNT_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount: its id (never used twice at a time), where, what kind, from what, with which options."""

    number: int
    device: str
    path: str
    kind: str
    source: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source} at {self.path} ({self.kind})"


def _unescaped(field: str) -> str:
    return (
        re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field).encode("latin-1").decode(errors="replace")
    )


def mounts() -> list[Mounted]:
    """Everything mounted in our namespace, in the order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines():
        before, _, after = line.partition(" - ")
        number, _, device, _, path, options, *_ = before.split(" ")
        kind, source, super_options = after.split(" ")
        every = (*options.split(","), *super_options.split(","))
        found.append(Mounted(int(number), device, _unescaped(path), kind, _unescaped(source), every))
    return found


def mounted_at(path: Path | str) -> Mounted | None:
    """The topmost mount exactly at `path`."""
    return next((mount for mount in reversed(mounts()) if mount.path == str(path)), None)


def fusermount(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run fusermount3; the result is the caller's to judge."""
    program = shutil.which("fusermount3") or "/usr/bin/fusermount3"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=FUSERMOUNT_DEADLINE_S)


def remove_tree(path: Path | str) -> None:
    """Remove a directory and all that is in it; with OSError(EBUSY) where a mount is in it, whose files are not ours.

    What cannot be removed for another reason stays.
    """
    below = [mount for mount in mounts() if mount.path == str(path) or mount.path.startswith(f"{path}/")]
    if below:
        raise OSError(errno.EBUSY, f"still mounted: {'; '.join(map(str, below))}", str(path))
    shutil.rmtree(path, ignore_errors=True)
