"""The demonstration: a server of our own, one connection to it, a mount through that connection, and what to try.

`scripts/demo` runs it. It waits until Ctrl-C (or SIGTERM, or the terminal's end, or until somebody unmounts), takes
everything away and exits 0. A signal never interrupts setting up or tidying, both of which end by their own
deadlines: it only ends the waiting.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

from tests.support import processes
from tests.support.master import Master
from tests.support.mounted import Mount, MountError
from tests.support.sshd import HOST, Sshd

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_event() -> int:
    """A descriptor that becomes readable with the first signal."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    # Written to by the signal itself: a handler runs between two steps of Python only, and a wait is none.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    return reading


def fill(server: Sshd) -> None:
    """Something to look at."""
    (server.root / "hello.txt").write_text("This file is served over SFTP, on a connection that others share.\n")
    (server.root / "notes").mkdir()
    for month in ("january", "february", "march"):
        (server.root / "notes" / f"{month}.txt").write_text(f"Notes of {month}.\n")


def explain(server: Sshd, master: Master, mount: Mount, say: Callable[[str], None]) -> None:
    """Where everything is, and commands to paste into another terminal."""
    ssh = f"ssh -F {server.ssh_config}"
    say(f"""
A throwaway SSH server listens on 127.0.0.1:{server.port} and serves {server.root}.
One connection to it is open, held by `ssh -M` (process {master.pid}). Through that connection,

    sshmuxfs -F {server.ssh_config} {mount.remote} {mount.path}

has mounted the directory, without a login of its own. In another terminal, try

    ls -l {mount.path}
    echo more >> {mount.path}/hello.txt; cat {server.root}/hello.txt
    git init {mount.path}/project

and see that plain ssh shares the same connection: the server counts one login, however often you ask.

    {ssh} -O check {HOST}
    {ssh} {HOST} uptime
    grep -c 'Accepted publickey' {server.log}

Ctrl-C here takes everything away.
""")


def wait(stop: int, mount: Mount) -> None:
    """Return at the first signal, or when the mount is served no more."""
    try:
        served = os.pidfd_open(mount.pid)
    except ProcessLookupError:
        return
    select.select([stop, served], [], [])
    os.close(served)


def main() -> int:
    def say(text: str) -> None:
        print(text, flush=True)

    processes.adopt_orphans()
    stop = stop_event()
    with Sshd() as server, Master(server) as master:
        fill(server)
        mount = Mount(master, server.root)
        explain(server, master, mount, say)
        wait(stop, mount)
        try:
            if mount.running:
                mount.unmount()
            else:
                mount.wait_ended()
        except MountError as error:
            if not select.select([stop], [], [], 0)[0]:
                say(f"the mount has ended by itself: {error}")
                return 1
            say(f"{mount.path} was still in use, and is detached all the same")
        finally:
            mount.close()
    say("unmounted; the connection and the server are gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
