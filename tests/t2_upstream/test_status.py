"""What an upstream tells of itself: the texts that ssh prints, and the JSON for `sshmux status`."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mux.protocol.messages import Forward, ForwardKind, Info, InfoRequest
from mux.upstream import status
from tests.support.sshd import HOST, Sshd, program

from .riding import DEADLINE_S, Ride, eventually, riding


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "c")


async def info(ride: Ride, name: bytes) -> Info:
    """Ask as a client of 10.3 does."""
    with await (await ride.raw()).greet() as client:
        answer = await client.ask(InfoRequest(client.core.new_request_id(), name))
        assert isinstance(answer, Info)
        return answer


async def told(ride: Ride) -> dict[str, Any]:
    answer = await info(ride, b"sshmux-status")
    assert answer.supported
    found: dict[str, Any] = json.loads(answer.text)
    return found


@asynccontextmanager
async def session(ride: Ride, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real ssh that has said a line and stays until its stdin ends."""
    process = await asyncio.create_subprocess_exec(
        *(program("ssh"), "-F", str(ride.sshd.ssh_config), "-S", ride.path, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=ride.sshd.environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert await process.stdout.readline() == b"here\n"
        yield process
    finally:
        process.stdin.close()
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.read()
            await process.wait()


def test_the_texts_of_openssh(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, session(ride, HOST, "echo here; cat"):
            connection = (await info(ride, b"connection")).text.decode()
            lines = connection.split("\r\n")
            assert lines.pop() == "" and "\n" not in connection.replace("\r\n", "")
            expected = [
                rf"Connection information for \S+ pid {os.getpid()}",
                rf"  tcp 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:{sshd.port}",
                r"  duration \d+s",
                r"  kexalgorithm \S+",
                r"  hostkeyalgorithm ssh-ed25519",
                r"  cipher aes\d+-gcm@openssh\.com",
                r"  mac <implicit>",
                r"  compression none",
                r"  rekey \d+ done",
                r"  traffic \S+ in, \S+ out",
            ]
            for line, pattern in zip(lines, expected, strict=True):
                assert re.fullmatch(pattern, line)

            channels = (await info(ride, b"channels")).text.decode()
            first, second, rest = channels.split("\r\n")
            assert (first, rest) == ("The following connections are open:", "")
            assert re.match(r"  #\d+ exec echo here; cat \(5 bytes in, 0 out, process \d+\)$", second)

            other = await info(ride, b"nonsense")
            assert (other.supported, other.text) == (False, b"info request type not supported")

    asyncio.run(main())


def test_the_status(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, session(ride, HOST, "echo here; cat") as process:
            client = next(iter(ride.upstream.clients))
            await eventually(lambda: client.command)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"x" * 1000 + b"\n")
            await process.stdout.readline()
            now = await told(ride)
            assert now["version"] == 1 and now["kind"] == "sshmux" and now["listening"]
            assert (now["pid"], now["path"], now["host"]) == (os.getpid(), path, HOST)
            assert (now["user"], now["hostname"], now["port"]) == (sshd.user, "127.0.0.1", sshd.port)
            link = now["connection"]
            assert link["peer"] == f"127.0.0.1:{sshd.port}"
            assert link["received_bytes"] > 1005 and link["sent_bytes"] > 1001
            assert link["server_version"].startswith("SSH-2.0-OpenSSH_")
            assert now["sessions"] == {"open": 1, "opened": 1, "refused": 0, "max_sessions_seen": None}
            mine, asking = now["clients"]
            assert (mine["pid"], mine["uid"], mine["purpose"]) == (process.pid, os.getuid(), "session")
            assert mine["command"].endswith(f"{HOST} echo here; cat")
            assert (mine["received_bytes"], mine["sent_bytes"]) == (1006, 1001)
            assert (asking["pid"], asking["purpose"], asking["sent_bytes"]) == (os.getpid(), "control", 0)
            (channel,) = now["channels"]
            assert (channel["description"], channel["pid"]) == ("exec echo here; cat", process.pid)
            assert (channel["received_bytes"], channel["sent_bytes"]) == (1006, 1001)
            assert now["counts"] == {"clients": 2, "channels": 1, "forwards": 0}

    asyncio.run(main())


def test_the_round_trip_is_measured_for_who_asks(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            await told(ride)
            await eventually(lambda: ride.upstream.engine.facts().round_trip_s is not None)
            first = (await told(ride))["connection"]["round_trip_s"]
            assert 0 < first < DEADLINE_S
            await eventually(lambda: ride.upstream.engine.facts().round_trip_s != first)

    asyncio.run(main())


def test_forwards_stdio_and_proxies(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, AsyncExitStack() as stack:
            local = Forward(ForwardKind.LOCAL, os.fsencode(f"{path}.l"), 0xFFFFFFFE, b"127.0.0.1", sshd.port)
            await ride.upstream.forwards.open(local)
            dynamic = Forward(ForwardKind.DYNAMIC, b"127.0.0.1", 0, b"socks", 0)
            remote = Forward(ForwardKind.REMOTE, b"localhost", 0, b"127.0.0.1", sshd.port)
            port = await ride.upstream.forwards.open(remote)
            reader, writer = await asyncio.open_unix_connection(f"{path}.l")
            stack.callback(writer.close)
            banner = await reader.readline()
            assert banner.startswith(b"SSH-2.0-")
            await stack.enter_async_context(session(ride, "-O", "proxy", HOST, "echo here; cat"))
            now = await told(ride)
            first, second = now["forwards"]
            assert first == {
                "kind": "local",
                "dynamic": False,
                "listen": f"{path}.l",
                "connect": f"127.0.0.1:{sshd.port}",
                "connections": 1,
                "taken": 1,
            }
            assert (second["kind"], second["listen"]) == ("remote", f"localhost:{port}")
            assert dynamic not in ride.upstream.forwards.standing
            through, proxied = sorted(now["channels"], key=lambda one: one["pid"] or 0)
            assert (through["pid"], through["received_bytes"]) == (None, len(banner))
            assert (proxied["description"], proxied["received_bytes"]) == ("proxy, session", 5)
            client = next(one for one in now["clients"] if one["purpose"] == "proxy")
            assert client["received_bytes"] > 5 and client["pid"] == proxied["pid"]
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_max_sessions_as_far_as_it_shows(make_sshd: Any, path: str) -> None:
    sshd = make_sshd(max_sessions=2)

    async def main() -> None:
        async with riding(sshd, path) as ride, AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(session(ride, HOST, "echo here; cat"))
            await ride.ssh("-W", "127.0.0.1:1", HOST)  # no session: says nothing of them
            assert (await told(ride))["sessions"]["max_sessions_seen"] is None
            assert "Session open refused" in (await ride.ssh(HOST, "true")).err
            assert (await told(ride))["sessions"] == {"open": 2, "opened": 2, "refused": 1, "max_sessions_seen": 2}

    asyncio.run(main())


def test_text_of_clients_is_escaped(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with (
            riding(sshd, path) as ride,
            session(ride, HOST, "echo here; cat; : \x1b[2J\r\n#\N{RIGHT-TO-LEFT OVERRIDE}"),
        ):
            client = next(iter(ride.upstream.clients))
            await eventually(lambda: client.command)
            for name in (b"channels", b"sshmux-status"):
                text = (await info(ride, name)).text.replace(b"\r\n", b"")
                assert b"\\x1b[2J" in text
                assert all(0x20 <= byte < 0x7F for byte in text)

    asyncio.run(main())


@pytest.mark.parametrize("count", [400])
def test_of_too_many_the_first_are_told(sshd: Sshd, path: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, AsyncExitStack() as stack:
            for _ in range(count):
                stack.enter_context(await ride.raw())
            await eventually(lambda: len(ride.upstream.clients) == count)
            for client in ride.upstream.clients:
                client.command = "\N{SNOWMAN}" * 1000
            now = await told(ride)
            assert now["counts"]["clients"] == count + 1
            assert 50 <= len(now["clients"]) < count
            oldest = min(client.since_s for client in ride.upstream.clients)
            assert now["clients"][0]["since_s"] == oldest
            assert len(status.info_text(ride.upstream, b"sshmux-status") or b"") <= status.LONGEST_TEXT_BYTES

    asyncio.run(main())
