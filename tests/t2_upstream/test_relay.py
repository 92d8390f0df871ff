"""`ssh -O proxy` through an upstream: everything a connection of its own would do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd

from .proxied import proxied, proxy, relays, start, works
from .riding import DEADLINE_S, eventually, riding

BULK_BYTES = 24 << 20


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    """A server on loopback that reads to the end, and answers; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await reader.read()))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def exchange(port: int, data: bytes) -> bytes:
    """Send all, half-close, read all."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


async def ended(process: asyncio.subprocess.Process) -> tuple[bytes, str]:
    """Close a program's input, and read all of its output to its end."""
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate(b"")
    return out, err.decode()


def test_output_and_exit_code(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            for code in (0, 3, 255):
                done = await proxy(ride, HOST, f"echo out; echo err >&2; exit {code}")
                assert (done.code, done.out, done.err) == (code, b"out\n", "err\n")
            assert (await proxy(ride, HOST, "kill -9 $$")).code == 255
            done = await proxy(ride, HOST, data=b"echo from a shell; exit 4\n")
            assert (done.code, done.out) == (4, b"from a shell\n")

    asyncio.run(main())


def test_a_terminal(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            done = await proxy(ride, "-tt", "-oSetEnv=TERM=vt220", HOST, "test -t 0 && test -t 1 && echo $TERM; exit 7")
            assert (done.code, done.out) == (7, b"vt220\r\n")

    asyncio.run(main())


def test_bulk_both_ways_six_at_once(sshd: Sshd, path: str) -> None:
    data = random.Random(1).randbytes(BULK_BYTES)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            alone = await proxy(ride, HOST, "cat", data=data)
            assert alone.code == 0 and alone.out == data
            # The same numbers in each of them; each its own bytes.
            parts = [data[start : start + (4 << 20)] for start in range(0, BULK_BYTES, 4 << 20)]
            together = await asyncio.gather(*(proxy(ride, HOST, "md5sum; cat /dev/null", data=part) for part in parts))
            assert [done.out.split()[0].decode() for done in together] == [hashlib.md5(p).hexdigest() for p in parts]
            back = await asyncio.gather(*(proxy(ride, HOST, "cat", data=part) for part in parts))
            assert [done.out for done in back] == parts
            await eventually(lambda: not relays(ride))

    asyncio.run(main())


def test_many_one_after_the_other(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            before = len(os.listdir("/proc/self/fd"))
            for number in range(30):
                assert (await proxy(ride, HOST, f"exit {number}")).code == number
            await eventually(lambda: not ride.upstream.clients)
            await eventually(lambda: len(os.listdir("/proc/self/fd")) == before)

    asyncio.run(main())


def test_subsystems(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            client = await start(ride, "-s", HOST, "sftp")
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(bytes.fromhex("00000005 01 00000003"))
            async with asyncio.timeout(DEADLINE_S):
                assert (await client.stdout.readexactly(9))[4:] == bytes.fromhex("02 00000003")
            await ended(client)
            refused = await proxy(ride, "-s", HOST, "nosuch")
            assert refused.code == 255 and "subsystem request failed" in refused.err

    asyncio.run(main())


def test_local_forwarding(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, answering(bytes.swapcase) as target:
            port, nobody = free_port(), free_port()
            forwards = ("-L", f"{port}:127.0.0.1:{target}", "-L", f"{nobody}:127.0.0.1:{free_port()}")
            client = await start(ride, *forwards, HOST, "echo up; cat")
            assert client.stdout is not None
            assert await client.stdout.readline() == b"up\n"
            data = b"Hello" * 100_000
            answers = await asyncio.gather(*(exchange(port, data) for _ in range(8)))
            assert answers == [data.swapcase()] * 8
            for _ in range(20):  # each an open that the server refuses
                assert await exchange(nobody, b"") == b""
            assert await exchange(port, data) == data.swapcase()
            await ended(client)
            assert await works(ride)

    asyncio.run(main())


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def told(client: asyncio.subprocess.Process, words: str) -> str:
    """What it says on stderr, up to the line with these words: of the server's reply, when something listens there."""
    assert client.stderr is not None
    said = ""
    async with asyncio.timeout(DEADLINE_S):
        while words not in said:
            line = await client.stderr.readline()
            assert line, said
            said += line.decode()
    return said


@pytest.mark.parametrize("chosen", ["by us", "by the server"])
def test_remote_forwarding(sshd: Sshd, path: str, chosen: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, answering(bytes.upper) as target:
            port = free_port() if chosen == "by us" else 0
            client = await start(ride, "-v", "-R", f"{port}:127.0.0.1:{target}", HOST, "cat")
            said = await told(client, "remote forward success" if port else "Allocated port")
            if not port:
                found = re.search(r"Allocated port (\d+) for remote forward", said)
                assert found is not None, said
                port = int(found[1])
            data = b"answer me" * 10_000
            answers = await asyncio.gather(*(exchange(port, data) for _ in range(5)))
            assert answers == [data.upper()] * 5
            assert relays(ride)[0].forwardings == [(b"forwarded-tcpip", (b"localhost", port))]
            if chosen == "by us":
                other = await proxy(ride, "-oExitOnForwardFailure=yes", "-R", f"{port}:127.0.0.1:9", HOST, "true")
                assert other.code == 255 and "remote port forwarding failed" in other.err
            client.kill()
            await ended(client)
            await eventually(lambda: not relays(ride))
            async with asyncio.timeout(DEADLINE_S):
                while await listens(port):
                    await asyncio.sleep(0.01)
            assert await works(ride)

    asyncio.run(main())


def test_remote_forwarding_of_a_unix_socket(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, answering(bytes.upper) as target:
            remote = sshd.directory / "forwarded"
            client = await start(ride, "-v", "-R", f"{remote}:127.0.0.1:{target}", HOST, "cat")
            await told(client, "remote forward success")
            async with asyncio.timeout(DEADLINE_S):
                reader, writer = await asyncio.open_unix_connection(remote)
                writer.write(b"hello")
                writer.write_eof()
                assert await reader.read() == b"HELLO"
                writer.close()
                await writer.wait_closed()
            await ended(client)
            await eventually(lambda: not ride.upstream.clients)
            remote.unlink(missing_ok=True)

    asyncio.run(main())


def test_its_own_keepalive_is_answered(sshd: Sshd, path: str) -> None:
    """A client of a real master dies when as many as it waits for have gone unanswered."""

    async def main() -> None:
        async with riding(sshd, path) as ride:
            alive = ("-oServerAliveInterval=1", "-oServerAliveCountMax=4")
            done = await proxy(ride, *alive, HOST, "sleep 7; echo alive")
            assert (done.code, done.out) == (0, b"alive\n")

    asyncio.run(main())


def test_sessions_the_server_refuses(make_sshd: Callable[..., Sshd]) -> None:
    """The refused open that ends a real master."""
    sshd = make_sshd(max_sessions=1)

    async def main() -> None:
        async with riding(sshd, str(sshd.control_dir / "upstream")) as ride:
            first = await start(ride, HOST, "echo up; cat")
            assert first.stdout is not None and first.stdin is not None
            assert await first.stdout.readline() == b"up\n"
            for _ in range(5):
                refused = await proxy(ride, HOST, "true")
                assert refused.code == 255 and "open failed" in refused.err
            first.stdin.write(b"still here\n")
            assert await first.stdout.readline() == b"still here\n"
            await ended(first)
            await eventually(lambda: not ride.upstream.clients)
            assert await works(ride)

    asyncio.run(main())


def test_killed_at_many_moments(sshd: Sshd, path: str) -> None:
    """Between its first packets, in the middle of bulk, with a forwarding half open: all of it goes."""
    moments = random.Random(2)

    async def killed(ride: object, arguments: list[str], after: int, delay_s: float) -> None:
        client = await start(ride, *arguments)  # type: ignore[arg-type]
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(bytes(1 << 20))
        if after:
            await client.stdout.read(after)
        await asyncio.sleep(delay_s)  # somewhere between exec and the first output
        client.kill()
        await ended(client)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            busy = await start(ride, HOST, "while read line; do echo $line; done")
            assert busy.stdin is not None and busy.stdout is not None
            for _ in range(6):
                lives = [
                    killed(
                        ride,
                        [*moments.choice([[], ["-R", "0:127.0.0.1:9"], ["-tt"]]), HOST, "cat /dev/zero"],
                        moments.choice([0, 0, 1, 100_000]),
                        moments.random() / 20,
                    )
                    for _ in range(4)
                ]
                await asyncio.gather(*lives)
                busy.stdin.write(b"on and on\n")
                async with asyncio.timeout(DEADLINE_S):
                    assert await busy.stdout.readline() == b"on and on\n"
            await ended(busy)
            await eventually(lambda: not ride.upstream.clients)
            await eventually(lambda: not [p for p in sshd.sessions() if p.command.startswith("cat /dev/zero")])
            async with proxied(ride) as look:
                await look.open_session()
                (relay,) = relays(ride)
                assert len(relay.channels) == 1 and relay._nat.requests.held == []
                # All that is left at the server is what is here.
                await eventually(lambda: relay._nat._table._shares.places == 1)
            assert await works(ride)

    asyncio.run(main())


def test_the_end_of_the_connection_is_told(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            client = await start(ride, HOST, "echo up; cat")
            assert client.stdout is not None
            assert await client.stdout.readline() == b"up\n"
            ride.upstream.engine.disconnect("enough")
            _, said = await ended(client)
            assert client.returncode == 255 and said
            await ride.served

    asyncio.run(main())
