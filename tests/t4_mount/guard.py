"""A process beside the tests that ends what hangs.

A request that a mount never answers holds its caller in the kernel; not even SIGKILL frees it, and a page fault on a
mapping holds the whole interpreter. What frees everybody is the death of the mount's process. So the tests run in the
open, and this program, which never touches a mount itself, waits beside them: `arm` before a test, `disarm` after it,
and when the time is over it kills the mounts it was told of and detaches their mount points. The test then fails with
ENOTCONN and the next one gets a new mount. When the tests die, it cleans up.

It is a script of its own (standard library only); tests.t4_mount.trees starts it and talks to it in lines of JSON.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time


def main() -> int:
    """Serve commands from standard input until it ends; then clean up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watched: dict[str, int] = {}
    deadline: float | None = None
    fired = False
    pending = b""
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([0], [], [], left_s)[0]:
            fired, deadline = True, None
            end_all(watched)
            continue
        data = os.read(0, 65536)
        if not data:
            end_all(watched)
            return 0
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            word, *arguments = json.loads(line)
            if word == "watch":
                watched[arguments[1]] = arguments[0]
            elif word == "unwatch":
                watched.pop(arguments[0], None)
            elif word == "arm":
                fired, deadline = False, time.monotonic() + arguments[0]
            elif word == "disarm":
                deadline = None
                os.write(1, b"fired\n" if fired else b"calm\n")


def end_all(watched: dict[str, int]) -> None:
    """Kill each mount's process, if it is still that process, and detach its mount point."""
    for path, pid in watched.items():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if os.fsencode(path) in file.read():
                    os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
        subprocess.run(["fusermount3", "-u", "-z", path], stderr=subprocess.DEVNULL, check=False)
    watched.clear()


if __name__ == "__main__":
    sys.exit(main())
