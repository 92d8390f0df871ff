"""Bytes as they are sent, both ways at the same time, under every kind of cipher, over new keys; and braking."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from asyncssh.crypto.cipher import GCMCipher
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from mux.protocol.connection import Packet
from mux.upstream import packets
from mux.upstream.engine import HIGH_WATER_BYTES, Engine
from mux.upstream.handle import FIRST_TRIPS
from mux.upstream.outbox import WRITE_BYTES, Outbox
from tests.support.delay_proxy import DelayProxy
from tests.support.sshd import Sshd
from tests.t2_upstream.harness import DEADLINE_S, Exec, connected

MIB = 1 << 20
ZLIB = {"compression_algs": ["zlib@openssh.com"]}
WAYS: dict[str, dict[str, Any]] = {
    "aes128-gcm": {"encryption_algs": ["aes128-gcm@openssh.com"]},
    "aes256-gcm": {"encryption_algs": ["aes256-gcm@openssh.com"]},
    "aes128-gcm, compressed": {"encryption_algs": ["aes128-gcm@openssh.com"], **ZLIB},
    "chacha20": {"encryption_algs": ["chacha20-poly1305@openssh.com"]},
    "aes-ctr, etm": {"encryption_algs": ["aes128-ctr"], "mac_algs": ["hmac-sha2-256-etm@openssh.com"]},
    "aes-ctr": {"encryption_algs": ["aes256-ctr"], "mac_algs": ["umac-64@openssh.com"]},
    "aes-cbc": {"encryption_algs": ["aes256-cbc"], "mac_algs": ["hmac-sha2-512"]},
}


@pytest.fixture(scope="module")
def every_cipher() -> Any:
    """A server that takes CBC too, and wants new keys after each MiB."""
    ciphers = (
        "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr,aes256-cbc"
    )
    with Sshd(ciphers=ciphers, extra=["RekeyLimit 1M"]) as server:
        yield server


@pytest.mark.parametrize("way", WAYS)
def test_bytes_are_exact_over_new_keys_of_both_sides(every_cipher: Sshd, way: str) -> None:
    async def main() -> None:
        async with connected(every_cipher, rekey_bytes=MIB, **WAYS[way]) as engine:
            assert engine.facts().sending.cipher.startswith(WAYS[way]["encryption_algs"][0])
            texts = [os.urandom(3 * MIB), os.urandom(3 * MIB + 1), os.urandom(17)]
            running = [Exec(engine, "cat", send=text) for text in texts]
            engine.rekey()
            for text, ran in zip(texts, running, strict=True):
                assert hashlib.sha256(await ran.done()).digest() == hashlib.sha256(text).digest()
                assert ran.status == 0
            # Each side wants them after each MiB it sent; some of the exchanges are for both.
            assert engine.facts().rekeys >= 6
            assert engine.facts().sending.cipher.startswith(WAYS[way]["encryption_algs"][0])

    asyncio.run(main())


def test_what_is_received_counts_for_new_keys(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd, rekey_bytes=MIB) as engine:
            ran = Exec(engine, "head -c 5000000 /dev/zero")
            assert await ran.done() == bytes(5_000_000)
            # A window's worth is under way when they are asked for.
            assert engine.facts().rekeys >= 2
            assert engine.facts().sent_bytes < MIB

    asyncio.run(main())


@pytest.mark.parametrize("way", ["aes128-gcm", "chacha20"])
@pytest.mark.parametrize("size", [1, 3, 21, 4096])
def test_packets_may_come_in_any_pieces(every_cipher: Sshd, way: str, size: int) -> None:
    async def main() -> None:
        async with connected(every_cipher, **WAYS[way]) as engine:
            connection = engine._connection
            whole = connection.data_received  # type: ignore[attr-defined]

            def in_pieces(data: bytes) -> None:
                for start in range(0, len(data), size):
                    whole(data[start : start + size])

            connection.data_received = in_pieces  # type: ignore[attr-defined]
            text = os.urandom(size * 5000 % 90_001)
            running = [Exec(engine, "cat", send=text) for _ in range(3)]
            engine.rekey()
            assert [await ran.done() for ran in running] == [text] * 3
            assert engine.facts().rekeys == 1

    asyncio.run(main())


def test_packets_of_channels_go_past_asyncssh(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def count(name: str) -> None:
        stock = getattr(GCMCipher, name)

        def counting(self: GCMCipher, *given: bytes) -> Any:
            taken.append(name)
            return stock(self, *given)

        monkeypatch.setattr(GCMCipher, name, counting)

    count("encrypt_and_sign")
    count("verify_and_decrypt")

    async def main() -> None:
        async with connected(sshd, **WAYS["aes128-gcm"]) as engine:
            assert taken.count("encrypt_and_sign") > 1
            for _ in range(FIRST_TRIPS + 1):  # behind this one nothing is asked any more
                await engine.measure(DEADLINE_S)
            taken.clear()
            text = os.urandom(3 * MIB)
            assert await Exec(engine, "cat", send=text).done() == text
            # The confirmation of the channel.
            assert taken == ["verify_and_decrypt"]

    asyncio.run(main())


def test_no_packet_but_those_that_were_sent(sshd: Sshd) -> None:
    """asyncssh would send one to be ignored before each."""

    async def main() -> None:
        for way in ("aes128-gcm", "chacha20"):
            async with connected(sshd, **WAYS[way]) as engine:
                await engine.measure(DEADLINE_S)
                before = engine.facts().sent_bytes
                for _ in range(10):
                    await engine.measure(DEADLINE_S)
                # 4 length, 1 padding, 1 kind, 4 + 21 name, 1 want reply, padding, 16 tag.
                assert (engine.facts().sent_bytes - before) // 10 in (52, 60)

    asyncio.run(main())


class Sink(asyncio.WriteTransport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[Any] = []
        self.waiting_bytes = 0

    def write(self, data: Any) -> None:
        self.writes.append(data if self.waiting_bytes else bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes


def test_one_turn_of_the_loop_makes_one_write() -> None:
    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        sink = outbox.transport = Sink()
        outbox.put(b"a")
        outbox.room(5)[:2] = b"bc"
        outbox.filled(2)
        assert sink.writes == []
        await asyncio.sleep(0)
        assert sink.writes == [b"abc"]
        outbox.put(b"d")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sink.writes == [b"abc", b"d"]
        outbox.put(b"e")
        outbox.put(bytes(WRITE_BYTES))
        assert sink.writes[2:] == [b"e" + bytes(WRITE_BYTES)]
        outbox.put(b"f")
        outbox.write()
        await asyncio.sleep(0)
        assert sink.writes[3:] == [b"f"]
        assert outbox.sent_bytes == sum(map(len, sink.writes))
        outbox.transport = None
        outbox.put(b"g")
        await asyncio.sleep(0)
        assert sink.writes[4:] == []

    asyncio.run(main())


def test_what_the_transport_has_not_sent_is_not_written_over() -> None:
    """It may keep a view of it, as CPython's does from 3.12 on."""

    class Full(Sink):
        def write(self, data: Any) -> None:
            self.waiting_bytes += len(data)
            self.writes.append(data)

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        sink = outbox.transport = Full()
        for text in (b"first", b"second", b"third"):
            outbox.put(text)
            outbox.write()
        sink.waiting_bytes = 0
        outbox.put(b"fourth")
        outbox.write()
        assert [bytes(data) for data in sink.writes] == [b"first", b"second", b"third", b"fourth"]

    asyncio.run(main())


@pytest.mark.parametrize("kept", [True, False])
def test_who_sends_while_it_is_written_does_no_harm(kept: bool) -> None:
    """As from a brake, which is told in the middle of a write that the transport has enough."""

    class Telling(Sink):
        def __init__(self, outbox: Outbox) -> None:
            super().__init__()
            self.outbox = outbox

        def write(self, data: Any) -> None:
            self.writes.append(data if kept else bytes(data))
            if len(self.writes) == 1:
                self.waiting_bytes = len(data) if kept else 0
                self.outbox.put(b"meanwhile" * WRITE_BYTES)
                self.outbox.put(b"later")

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        sink = outbox.transport = Telling(outbox)
        outbox.put(b"first")
        outbox.room(2 * WRITE_BYTES)[:6] = b"second"
        outbox.filled(6)
        outbox.write()
        assert bytes(sink.writes[0]) == b"firstsecond"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert b"".join(map(bytes, sink.writes)) == b"firstsecond" + b"meanwhile" * WRITE_BYTES + b"later"

    asyncio.run(main())


def test_there_is_room_for_more_than_a_write() -> None:
    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        sink = outbox.transport = Sink()
        outbox.put(b"a")
        much = bytes(range(256)) * (16 * WRITE_BYTES // 256)
        outbox.put(much)
        assert sink.writes == [b"a", much]

    asyncio.run(main())


@given(
    st.sampled_from([16, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.binary(min_size=12, max_size=12),
    st.lists(st.tuples(st.integers(0, 255), st.lists(st.binary(max_size=70), max_size=4)), max_size=5),
)
def test_sealed_packets_are_those_of_the_rfc(key: bytes, nonce: bytes, told: list[tuple[int, list[bytes]]]) -> None:
    """Each with the next nonce: the last eight bytes count (RFC 5647 section 7.1), and begin anew behind the last."""
    given: list[Packet] = [
        (kind, *(memoryview(part) if number % 2 else part for number, part in enumerate(parts))) for kind, parts in told
    ]
    sealed, following = seal(key, nonce, given)
    for number, (kind, parts) in enumerate(told):
        length = sealed[:4]
        size = int.from_bytes(length, "big")
        assert size % 16 == 0
        rest, sealed = sealed[4 : 20 + size], sealed[20 + size :]
        plain = packets.opener(key)(after(nonce, number), rest, length)
        padding = plain[0]
        assert 4 <= padding < 20
        assert plain[1 : size - padding] == bytes([kind]) + b"".join(parts)
        with pytest.raises(InvalidTag):
            packets.opener(key)(after(nonce, number), rest, (size ^ 1).to_bytes(4, "big"))
    assert not sealed
    assert following == after(nonce, len(told))


def seal(key: bytes, nonce: bytes, given: list[Packet]) -> tuple[bytes, bytes]:
    """What `packets.seal` makes in as much room as it asks for, and the next nonce."""
    room = bytearray(packets.room_bytes(given))
    count, following = packets.seal(packets.sealer(key), nonce, given, memoryview(room))
    return bytes(room[:count]), following


def after(nonce: bytes, count: int) -> bytes:
    return nonce[:4] + ((int.from_bytes(nonce[4:], "big") + count) % 2**64).to_bytes(8, "big")


def test_the_nonce_begins_anew_behind_the_last() -> None:
    last = b"abcd" + b"\xff" * 8
    sealed, following = seal(bytes(16), last, [(2, b"x"), (2, b"x")])
    second = sealed[len(sealed) // 2 :]
    assert packets.opener(bytes(16))(b"abcd" + bytes(8), second[4:], second[:4])[1:3] == b"\x02x"
    assert following == b"abcd" + bytes(7) + b"\1"


def paused(engine: Engine) -> bool:
    """Asked anew each time, as a type checker does not see it change."""
    return engine.paused


def test_producers_stop_while_the_server_takes_nothing(sshd: Sshd, make_proxy: Callable[..., DelayProxy]) -> None:
    proxy = make_proxy(sshd.port, 0.0)

    async def main() -> None:
        async with connected(sshd, proxy.port) as engine:
            brake = Exec(engine, "true")
            await brake.done()
            engine.brakes.add(brake)
            os.kill(proxy.pid, signal.SIGSTOP)
            try:
                sent = 0
                while not paused(engine):
                    engine.send(2, b"\0\0\x80\0", bytes(32768))
                    sent += 32768
                    await asyncio.sleep(0)
                assert brake.pauses == 1
                # What the kernel holds for both ends of the connection, and what we do.
                assert HIGH_WATER_BYTES <= sent < 64 * MIB
            finally:
                os.kill(proxy.pid, signal.SIGCONT)
            # All of it arrives, and in order: the server would end the connection otherwise.
            await engine.measure(DEADLINE_S)
            await brake.done()
            assert not paused(engine)
            assert await Exec(engine, "echo alive").done() == b"alive\n"

    asyncio.run(main())


def test_producers_go_on_when_the_server_takes_again(sshd: Sshd, make_proxy: Callable[..., DelayProxy]) -> None:
    """A proxy that passes on little at a time: everybody has to be stopped and woken many times."""
    proxy = make_proxy(sshd.port, 0.0, rate=20e6)

    async def main() -> None:
        async with connected(sshd, proxy.port) as engine:
            texts = [os.urandom(MIB) for _ in range(8)]
            running = [Exec(engine, "sha256sum", send=text) for text in texts]
            for text, ran in zip(texts, running, strict=True):
                assert (await ran.done()).split()[0] == hashlib.sha256(text).hexdigest().encode()
            assert max(ran.pauses for ran in running) > 1
            assert not paused(engine)

    asyncio.run(main())


def test_producers_stop_while_keys_are_exchanged(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            brake = Exec(engine, "true")
            engine.rekey()
            assert not paused(engine)
            sent = 0
            while not paused(engine):
                engine.request(b"no@such.request", bytes(32768), lambda success, rest: None)
                sent += 32768
            assert brake.pauses == 1
            assert sent <= HIGH_WATER_BYTES + 32768
            await brake.done()
            assert not paused(engine)
            assert engine.facts().rekeys == 1
            assert await Exec(engine, "echo alive").done() == b"alive\n"

    asyncio.run(main())
