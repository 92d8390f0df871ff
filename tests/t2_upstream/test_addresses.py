"""Names of hosts: what is known waits for nothing; a name that nobody answers for delays no other, and no end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mux.errors import ConnectionLost, ExitCode
from mux.upstream import addresses, targets
from mux.upstream.listeners import listen_tcp
from mux.upstream.workers import Workers
from tests.support import processes
from tests.support.sshd import HOST, Sshd

from .riding import DEADLINE_S, eventually

DEAD = "dead.invalid"
DEAF_RESOLVER = Path(__file__).with_name("deaf_resolver.py")


class Lookups:
    """What the system's resolver is asked, of which it never answers for names that begin with `DEAD`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over = threading.Event()
        self._ask: Callable[..., Any] = socket.getaddrinfo

    def __call__(self, host: str, port: object, family: int, kind: int, protocol: int, flags: int) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            self.asked.append(host)
            if host.startswith(DEAD):
                self.over.wait()
                raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return self._ask(host, port, family, kind, protocol, flags)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    """No resolver here is dead, and none may be made so for the whole machine: the call into the system stands in."""
    found = Lookups()
    monkeypatch.setattr(addresses, "_RESOLVERS", Workers(4))
    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield found
    found.over.set()


@pytest.mark.parametrize(("literal", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_an_address_is_not_looked_up(lookups: Lookups, literal: str, family: int) -> None:
    ((found, address),) = asyncio.run(addresses.addresses(literal, 22))
    assert (found, address[:2]) == (family, (literal, 22))
    assert not lookups.asked


def test_a_name_is_looked_up_with_the_port_it_is_wanted_for() -> None:
    async def main() -> None:
        found = await asyncio.gather(*(addresses.addresses("localhost", port) for port in (1, 2)))
        assert [{address[1] for _, address in one} for one in found] == [{1}, {2}]
        assert all((socket.AF_INET, ("127.0.0.1", port)) in one for port, one in zip((1, 2), found, strict=True))
        with pytest.raises(OSError):
            await addresses.addresses("no such name", 1)
        with pytest.raises(UnicodeError):
            await addresses.addresses("a" * 64 + ".example", 1)

    asyncio.run(main())
    assert not addresses._ASKED


def test_many_who_wait_for_a_dead_name_delay_nobody(lookups: Lookups) -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(targets.connect(DEAD.encode(), port)) for port in range(1, 65)]
        await eventually(lambda: lookups.asked)
        listeners = [*await listen_tcp(("127.0.0.1",), 0, socket.AF_INET)]
        listeners += await listen_tcp(("localhost",), 0, socket.AF_INET)
        for listener in listeners:
            (await targets.connect(b"localhost", listener.getsockname()[1])).close()
            listener.close()
        assert lookups.asked.count(DEAD) == 1
        for one in waiting[1:]:
            one.cancel()
        lookups.over.set()
        with pytest.raises(ConnectionLost, match=r"dead\.invalid port 1: nobody answers"):
            await waiting[0]
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())
    assert not addresses._ASKED


def test_the_end_waits_for_no_name(lookups: Lookups) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionLost, match="no answer within"):
            await targets.connect(DEAD.encode(), 1, deadline_s=0.02)
        again = asyncio.create_task(targets.connect(DEAD.encode(), 1))
        await asyncio.sleep(0)
        assert not again.done()

    asyncio.run(main())
    assert lookups.asked == [DEAD]
    assert not lookups.over.is_set() and not addresses._ASKED


@pytest.mark.parametrize("ending", ["ConnectTimeout", "Ctrl-C"])
def test_a_login_waits_no_longer_for_a_name_than_it_is_to(sshd: Sshd, tmp_path: Path, ending: str) -> None:
    """A resolver that gives up by itself only long after the test would, with everything that is real about it."""
    before = set(os.listdir(sshd.control_dir))
    namespaces = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    options = ["-o", f"HostName={DEAD}", *(["-o", "ConnectTimeout=1"] if ending == "ConnectTimeout" else [])]
    command = [sys.executable, "-m", "mux", "start", "-F", str(sshd.ssh_config), *options, HOST]
    with processes.running(
        [*namespaces, sys.executable, str(DEAF_RESOLVER), str(tmp_path), *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=sshd.environment(), start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"asked\n"
        if ending == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        # Nobody has their end of these pipes any more: the upstream process has ended as well.
        shown, said = process.communicate(timeout=DEADLINE_S)
    if ending == "Ctrl-C":
        assert (shown, said, process.returncode) == (b"", b"", ExitCode.INTERRUPTED)
    else:
        text = b"sshmux: could not resolve hostname dead.invalid: no answer in time"
        assert (shown, said.splitlines()[0], process.returncode) == (b"", text, ExitCode.UNREACHABLE)
    assert set(os.listdir(sshd.control_dir)) == before
