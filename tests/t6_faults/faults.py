"""What the tests of faults share: a mount on an evil server, and calls whose outcome is all that counts.

The rule: no test touches a mount with its own hands. Every call is made in a child that is given up after a bound:
PROMPT_S where an answer does not depend on the deadline (of 30 s, then), WITHIN_DEADLINE_S where it does.
"""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import bounded, mounts, processes
from tests.support.evil_answers import REACHED
from tests.support.mounted import Mount
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until

EVIL_SERVER = Path(__file__).resolve().parents[1] / "support" / "evil_sftp.py"

# Mounts that are to wait for their deadline get this one. It bounds a server's greeting as well, before which sshd has
# to start a Python; and twice of it is less than a mount that ends waits for what is unsaved (10 s).
DEADLINE_S = 4.0
AT_DEADLINE = f"deadline={DEADLINE_S:g}"
# For a test that counts on each name being asked for by itself, and not learned from a listing of its directory.
ONE_BY_ONE = "dcache_dir_timeout=0"
# A server that neither answers nor is silent is given up when requests sent a deadline later have been answered, or a
# deadline after the last of them; the watch comes round every eighth; the rest is for a busy machine.
WITHIN_DEADLINE_S = 2 * DEADLINE_S + 11.0
# Half the default deadline of 30 s: what ends within it was told of the fault, and did not wait for it.
PROMPT_S = 15.0
# Unmounting, whatever state the server is in: a fraction of a second on an idle machine; waiting would take ten.
UNMOUNT_S = 8.0
# The whole process, in every test.
MEMORY_BYTES = 120 * 1024 * 1024

# What a caller is told whose channel died under it.
DISCONNECTED = ("EIO", "ENOTCONN")

MIB = 1 << 20
CONTENT = b"".join(b"%07d\n" % number for number in range(3 * MIB // 8))

_numbers = itertools.count(1)


def fill(root: Path) -> None:
    """What an evil server serves besides its evil: something good."""
    (root / "good").write_bytes(b"good")
    (root / "content").write_bytes(CONTENT)
    (root / "others").mkdir()


def make(root: Path, case: str, kind: str = "file", *, below: str = "") -> str:
    """A file (of CONTENT), a directory (of `first` and `last`) or a link (to `good`) for a case; return its name."""
    path = root / below / f"evil:{case}"
    if kind == "file":
        os.link(root / "content", path)
    elif kind == "directory":
        path.mkdir()
        for name in ("first", "last"):
            (path / name).write_bytes(name.encode())
    else:
        path.symlink_to("good")
    return path.name


def server_option(conversation: str, root: Path) -> str:
    """The mount option that has the evil server run on the other side."""
    return f"sftp_server={shlex.join([sys.executable, str(EVIL_SERVER), conversation, str(root)])}"


def attempt(task: Callable[..., Any], *arguments: Any) -> Any:
    """What `task` returns, or the name of the errno it fails with."""
    try:
        return task(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def outcome(task: Callable[..., Any], *arguments: Any, within_s: float = PROMPT_S) -> Any:
    """`attempt` in a child. Raises Stuck when it does not end."""
    return bounded.in_subprocess(lambda: attempt(task, *arguments), within_s)


def together(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """`attempt` all at once, in threads: one child for all of them, see `outcome`."""
    with ThreadPoolExecutor(len(tasks)) as executor:
        return [*executor.map(attempt, tasks)]


@contextmanager
def under_way(task: Callable[[], Any], within_s: float) -> Iterator[Future[Any]]:
    """The outcome to be of what runs while the block does; one at a time, for a second child holds the first's pipe."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(outcome, task, within_s=within_s)


def await_path(path: Path) -> None:
    """Return when it is there."""
    wait_until(path.exists, f"{path} to appear")


def await_reached(root: Path) -> None:
    """Return when the evil server that serves `root` has come to what it is to do wrong."""
    await_path(root / os.fsdecode(REACHED))


def read(path: Path) -> bytes:
    return path.read_bytes()


def size(path: Path) -> int:
    return os.stat(path).st_size


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def serves_others(mount: Mount, root: Path) -> None:
    """The mount is there, and the server is asked for something never heard of."""
    assert mounts.mounted_at(mount.path) is not None
    name = f"others/new-{next(_numbers)}"  # in a directory that no test lists: names not listed are not there
    (root / name).write_bytes(name.encode())
    assert outcome(read, mount.path / name) == name.encode()
    assert outcome(read, mount.path / "good") == b"good"


def sound(mount: Mount, root: Path) -> None:
    """Nothing of what happened has hurt it."""
    serves_others(mount, root)
    assert mount.running
    assert mount.peak_rss_bytes() < MEMORY_BYTES


def ends_by(mount: Mount, way: str) -> None:
    """Unmount in one of two ways, and see that it is quick."""
    if way == "fusermount":
        mount.unmount(deadline_s=UNMOUNT_S)
    else:
        mount.send_signal(signal.SIGTERM)
        mount.wait_ended(deadline_s=UNMOUNT_S)
        mount.close()


def evil_servers(sshd: Sshd, root: Path) -> list[processes.Process]:
    """The processes of evil servers that serve `root`."""
    command = [sys.executable, str(EVIL_SERVER)]
    return [
        process
        for process in sshd.sessions()
        if process.command.split(" ")[:2] == command and process.command.endswith(str(root))
    ]


def evil_server(sshd: Sshd, root: Path) -> processes.Process:
    """The one process of that kind."""
    (found,) = evil_servers(sshd, root)
    return found
