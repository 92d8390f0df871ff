"""Trees of files to work on, and what two trees have to have in common. For the tests only."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

WORDS = ("alpha", "beta", "gamma", "delta", "needle", "epsilon", "zeta", "eta")


def make_tree(top: Path, *, files: int = 120, seed: int = 1) -> None:
    """Directories, text and binary files of many sizes, modes, times long ago, links; the same for the same seed."""
    chance = random.Random(seed)
    top.mkdir(exist_ok=True)
    directories = [top]
    for number in range(files // 8):
        directory = chance.choice(directories) / f"dir {number}"
        directory.mkdir()
        directories.append(directory)
    made = []
    for number in range(files):
        path = chance.choice(directories) / f"file-{number}.txt"
        if number % 3:
            words = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, 400)))
            path.write_text(f"file {number}\n{words}\n")
        else:
            path.write_bytes(chance.randbytes(chance.choice((0, 1, 4096, 4097, 70_000, 300_001))))
        path.chmod(chance.choice((0o644, 0o600, 0o755, 0o444)))
        made.append(path)
    (top / "empty").mkdir()
    (top / "näme with 'quotes' \n and more").write_text("odd")
    os.symlink("empty", top / "link to directory")
    os.symlink(made[0].relative_to(top), top / "link to file")
    os.symlink("nowhere", top / "dangling")
    os.link(made[1], top / "hard link")
    for path in [*made, top / "link to file", top / "dangling", *reversed(directories), top / "empty", top]:
        seconds = 1_000_000_000 + chance.randrange(500_000_000)
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def describe(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything that copying keeps, by name: kind, mode, time, content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        what: object = None
        if stat.S_ISREG(status.st_mode):
            what = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            what = os.readlink(path)
        found[str(path.relative_to(top))] = (oct(status.st_mode), int(status.st_mtime), what)
    return found


def differing(one: Path, other: Path) -> list[str]:
    """The names that differ between two trees; short enough to be read."""
    first, second = describe(one), describe(other)
    return [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
