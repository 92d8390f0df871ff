"""The files that are served: deterministic, made once per run, known well enough to check every answer against them.

The rule: content depends on names and sizes alone, every time stamp is the same past second (so that git finds nothing
racily clean and a listing can be compared exactly), and nothing here runs while something is timed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

FILES_PER_DIRECTORY = 25
# Base64 makes four characters of three bytes: files of 8 to 14 KB, 11 KB on average.
TEXT_SOURCE_BYTES = (6_000, 10_500)
LINE_BYTES = 57
NEEDLE = "needle-in-the-tree"
NEEDLE_EVERY = 20
MTIME_S = 1_577_836_800
CHUNK_BYTES = 16 * 1024 * 1024
COMMAND_DEADLINE_S = 120.0


def make_big(path: Path, size_bytes: int) -> None:
    """A file of pseudo-random bytes."""
    source = random.Random(f"big {size_bytes}")
    with path.open("wb") as file:
        for start in range(0, size_bytes, CHUNK_BYTES):
            file.write(source.randbytes(min(CHUNK_BYTES, size_bytes - start)))
    settle(path)


def tree_paths(files: int) -> Iterator[str]:
    """Relative names of `files` files: 25 in each of the directories d00, d00/sub, d01, d01/sub..."""
    for number in range(files):
        directory, within = divmod(number, FILES_PER_DIRECTORY)
        middle = "sub/" if directory % 2 else ""
        yield f"d{directory // 2:02}/{middle}file{within:02}.txt"


def text(path: str, number: int) -> bytes:
    """The content of the `number`th file of a tree; every twentieth ends with a line that holds NEEDLE."""
    source = random.Random(f"text {path}")
    lines = base64.encodebytes(source.randbytes(source.randint(*TEXT_SOURCE_BYTES)))
    return lines if number % NEEDLE_EVERY else lines + f"{NEEDLE} {path}\n".encode()


def make_tree(root: Path, files: int) -> None:
    """A tree of `files` text files below `root`, which is made."""
    root.mkdir()
    for number, name in enumerate(tree_paths(files)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text(name, number))
    settle(root)


def make_listing(root: Path, entries: int) -> None:
    """One directory, `root`, with `entries` small files of various sizes."""
    root.mkdir()
    for number in range(entries):
        (root / f"entry-{number:05}.dat").write_bytes(b"x" * (number % 512))
    settle(root)


def make_tar(archive: Path, tree: Path) -> None:
    """`tree` as an uncompressed archive whose names begin with the tree's name."""
    run("tar", "-cf", str(archive), "-C", str(tree.parent), tree.name)


def make_repository(root: Path, files: int, environment: Mapping[str, str]) -> str:
    """A git repository of a tree of `files` files, one of them changed since, one new.

    Returns what `git status --porcelain` must say.
    """
    make_tree(root, files)
    names = list(tree_paths(files))
    identity = (
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@localhost",
        "-c",
        "gc.auto=0",
        "-c",
        "commit.gpgsign=false",
    )
    for arguments in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-q", "-m", "a tree of files")):
        run("git", *identity, *arguments, cwd=root, environment=environment)
    changed, new = names[len(names) // 2], "not-added.txt"
    # The same size as before: only reading it tells.
    content = bytearray((root / changed).read_bytes())
    content[0] ^= 1
    (root / changed).write_bytes(content)
    (root / new).write_bytes(b"new\n")
    settle(root)
    expected = f" M {changed}\n?? {new}\n"
    said = run("git", "status", "--porcelain", cwd=root, environment=environment)
    if said != expected:
        raise RuntimeError(f"git status of the served repository itself says {said!r}, not {expected!r}")
    return expected


def settle(path: Path) -> None:
    """Give `path` and everything below it the one time stamp."""
    for directory, _, names in os.walk(path, topdown=False):
        for name in names:
            os.utime(os.path.join(directory, name), (MTIME_S, MTIME_S), follow_symlinks=False)
        os.utime(directory, (MTIME_S, MTIME_S))
    os.utime(path, (MTIME_S, MTIME_S))


def listing(root: Path) -> set[tuple[str, str, int, int, int]]:
    """(type, name, permissions, size, mtime) of everything below `root`, and of `root` itself under the name "".

    The size of directories is 0: what it is, is the server's file system's affair.
    """
    found = set()
    for directory, subdirectories, names in os.walk(root):
        for name in ["", *names] if directory == str(root) else names:
            found.add(_entry(root, Path(directory, name)))
        found.update(_entry(root, Path(directory, name)) for name in subdirectories)
    return found


def _entry(root: Path, path: Path) -> tuple[str, str, int, int, int]:
    status = path.lstat()
    name = "" if path == root else str(path.relative_to(root))
    if stat.S_ISDIR(status.st_mode):
        return "d", name, stat.S_IMODE(status.st_mode), 0, int(status.st_mtime)
    return "f", name, stat.S_IMODE(status.st_mode), status.st_size, int(status.st_mtime)


def digest(root: Path) -> str:
    """One hash over the names, attributes and contents of a tree."""
    total = hashlib.sha256()
    for entry in sorted(listing(root), key=lambda entry: entry[1]):
        total.update(repr(entry).encode())
        if entry[0] == "f":
            total.update(hashlib.sha256((root / entry[1]).read_bytes()).digest())
    return total.hexdigest()


def read_all(root: Path) -> None:
    """Read every file below `root`, so that the server finds all of it in its page cache."""
    for directory, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(directory, name), "rb", buffering=0) as file:
                while file.read(CHUNK_BYTES):
                    pass


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(*command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a command of the preparation; its standard output. Raises subprocess.CalledProcessError, TimeoutExpired."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_DEADLINE_S,
        check=True,
    )
    return done.stdout.decode(errors="surrogateescape")
