"""What the engine relies on in asyncssh, beyond what asyncssh promises.

`self_check` says at run time that a name is gone; the digests here say in development that the text behind a name is
another one than was read when the engine was written.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import asyncssh
import pytest
from asyncssh import connection, encryption, packet
from asyncssh.crypto import cipher

from mux.errors import SharingError
from mux.upstream import engine, packets

# The first 64 bits of SHA-256 over the source of asyncssh 2.24.1.
DIGESTS = {
    "SSHConnection.__init__": "41da2e469f2a3964",
    "SSHConnection._cleanup": "ea4cd2aed57194e5",
    "SSHConnection._finish_recv_packet": "e12d96db58b3524e",
    "SSHConnection._force_close": "264b4367525f4f86",
    "SSHConnection._process_disconnect": "20a460351751ff81",
    "SSHConnection._process_global_request": "ab927889d3844db5",
    "SSHConnection._process_global_response": "0a547db314bff44e",
    "SSHConnection._process_kexinit": "439bdf2fc55e6737",
    "SSHConnection._process_newkeys": "a0331fe3cfd09d0b",
    "SSHConnection._process_userauth_failure": "1756c18aa424b582",
    "SSHConnection._process_userauth_success": "02fe4fc8335c6d81",
    "SSHConnection._recv_data": "fc4e0735191bb0fd",
    "SSHConnection._recv_packet": "b3daa22e9763eee9",
    "SSHConnection._recv_pkthdr": "7adc4d88fe20593c",
    "SSHConnection._report_global_response": "590a13bfd2ed513f",
    "SSHConnection._send": "c6698a37eb80f574",
    "SSHConnection._send_deferred_packets": "c5ef8240853eb331",
    "SSHConnection._send_disconnect": "225d909cfce74f89",
    "SSHConnection._send_kexinit": "275ddc818b59f44b",
    "SSHConnection._service_next_global_request": "2a5788c58af17bb0",
    "SSHConnection.abort": "61f5b3ce6a1e3836",
    "SSHConnection.connection_lost": "ea050d93536d711a",
    "SSHConnection.connection_made": "e7b867af0f590a2c",
    "SSHConnection.data_received": "b2d14a83b2604db6",
    "SSHConnection.eof_received": "49d7a5b4cee006fd",
    "SSHConnection.internal_error": "ceabee464f7cf474",
    "SSHConnection.send_channel_open_failure": "5c5b06b6a6200632",
    "SSHConnection.send_newkeys": "0b41234420373618",
    "SSHConnection.send_packet": "fb9da7bec6dd395a",
    "SSHClientConnection.get_server_host_key": "d7f52f995b0e55ab",
    "SSHPacketHandler.process_packet": "490a59d971d0ce03",
    "GCMCipher": "e389d2b5bed8eb41",
    "GCMEncryption": "d255f9e6b1fa73ee",
    "SSHPacket": "e35ca8e222c90e44",
}
WHERE = (connection, cipher, encryption, packet)


def find(name: str) -> Any:
    outer, _, inner = name.partition(".")
    holder = next(getattr(module, outer) for module in WHERE if hasattr(module, outer))
    return getattr(holder, inner) if inner else holder


@pytest.mark.parametrize("name", DIGESTS)
def test_the_text_is_as_it_was_read(name: str) -> None:
    found = hashlib.sha256(inspect.getsource(find(name)).encode()).hexdigest()[:16]
    assert found == DIGESTS[name], (
        f"asyncssh {asyncssh.__version__} changed {name}: read what is new against mux/upstream/engine.py, "
        f"then put {found} here"
    )


@pytest.fixture
def check() -> Iterator[Callable[[], None]]:
    """The check, done anew."""
    engine.self_check.cache_clear()
    yield engine.self_check
    engine.self_check.cache_clear()


def test_this_asyncssh_passes(check: Callable[[], None]) -> None:
    check()


def test_a_method_that_is_gone_is_named(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(connection.SSHConnection, "_send_kexinit")
    with pytest.raises(SharingError, match="_send_kexinit"):
        check()


def test_a_method_with_other_parameters_is_named(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.SSHConnection, "_recv_packet", lambda self, more: None)
    with pytest.raises(SharingError, match=r"_recv_packet\(\)"):
        check()


def test_an_attribute_that_is_gone_is_named(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: object) -> None:
        """Sets nothing."""

    monkeypatch.setattr(connection.SSHConnection, "__init__", other)
    with pytest.raises(SharingError, match=r"_inpbuf.*_recv_handler.*_transport"):
        check()


def test_a_message_without_a_handler_is_named(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(connection.SSHConnection._packet_handlers, engine.CHANNEL_OPEN)
    with pytest.raises(SharingError, match="message 90"):
        check()


@pytest.mark.parametrize("part", ["_key", "_iv"])
def test_another_cipher_is_named(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    class Other(cipher.GCMCipher):
        """Keeps its state elsewhere."""

        def __getattribute__(self, name: str) -> Any:
            if name == part:
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(engine, "GCMCipher", Other)
    with pytest.raises(SharingError, match="GCMEncryption"):
        check()


def test_a_cipher_that_counts_otherwise_is_named(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cipher.GCMCipher, "verify_and_decrypt", functools.partialmethod(_without_counting))
    with pytest.raises(SharingError, match="GCMEncryption"):
        check()


def _without_counting(self: cipher.GCMCipher, header: bytes, data: bytes, mac: bytes) -> bytes:
    return packets.opener(self._key)(self._iv, data + mac, header)
