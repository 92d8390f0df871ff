"""The one connection to the server: asyncssh's transport, key exchange and authentication, and our own way of packets.

asyncssh brings a connection up and keeps it (version exchange, keys and new keys, authentication, global requests).
From then on packets of channels go past it: opened with AES-GCM from one buffer, handed to the route whose number they
bear, and sent with all others of the same turn of the event loop in one write. Whatever else comes, and every packet
under another cipher or with compression, goes through asyncssh's own code, which `_Connection` enters and leaves only
between two packets.

One rule: nobody else knows a private name of asyncssh; those used here are named in `self_check`, and a test holds the
text behind them. Whatever the server sends ends at most the connection, and whatever a route does ends at most the
route. Imported by all of `mux.upstream`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import asyncssh
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from asyncssh.misc import MACError, ProtocolError
from asyncssh.packet import PacketDecodeError, SSHPacket, SSHPacketLogger
from cryptography.exceptions import InvalidTag

from mux.errors import SharingError, printable
from mux.protocol.connection import Packet

from . import packets
from .doors import Door, Doors, OnReply, Waiter
from .handle import Close, Engine
from .keepalive import Keepalive
from .outbox import Outbox
from .routes import Address, Brake, Direction, Facts, IncomingOpen, Opener, Route

__all__ = ["Address", "Brake", "Direction", "Engine", "Facts", "IncomingOpen", "Route", "self_check", "start"]

log = logging.getLogger(__name__)

# RFC 4253 section 12, RFC 4252 section 6, RFC 4254 section 9.
DISCONNECT, IGNORE, USERAUTH_FAILURE = 1, 2, 51
GLOBAL_REQUEST, CHANNEL_OPEN, OPEN_CONFIRMATION, OPEN_FAILURE = 80, 90, 91, 92
FIRST_FAST, LAST_FAST = 93, 100
BY_APPLICATION: Final = 11  # SSH_DISCONNECT_BY_APPLICATION (RFC 4253 section 11.1)
PROHIBITED, UNKNOWN_TYPE = 1, 3  # reasons of CHANNEL_OPEN_FAILURE (RFC 4254 section 5.1)
SEQUENCE_MASK: Final = 0xFFFFFFFF
KEEPALIVE_COUNT: Final = 3  # ServerAliveCountMax, when it is not given

# From the connection to the beginning of authentication, in which nobody is asked anything. A program in between may
# ask, though (the password of a jump host): there it does not count.
HANDSHAKE_DEADLINE_S: Final = 60.0
# OpenSSH's PACKET_MAX_SIZE (packet.c): nobody sends longer packets, and nobody would take them.
LARGEST_PACKET_BYTES: Final = 256 * 1024
# What waits in this process for the socket before producers are stopped, and when they go on.
HIGH_WATER_BYTES: Final = 256 * 1024
LOW_WATER_BYTES: Final = 64 * 1024
# What the kernel holds unsent: more would only delay the keystroke that comes behind a bulk packet.
UNSENT_BYTES: Final = 128 * 1024
# The server's host keys, its words of welcome, the first answers and the first channel.
FIRST_ACKNOWLEDGEMENTS: Final = 12
# Requests of the server that wait for our answer; each is answered at once, but for one that asks for keys' proof.
WAITING_REQUESTS: Final = 64


class _Connection(asyncssh.SSHClientConnection):
    """asyncssh's connection with our way of packets. Names that begin with `_` are asyncssh's, all others ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHClientConnectionOptions) -> None:
        super().__init__(loop, options, wait="auth")
        self.host = options.host
        self.doors = Doors(cast("dict[int, Door]", self._channels))
        self.openers: dict[bytes, Opener] = {}
        self.on_full: Callable[[bool], None] = lambda full: None
        self.keepalive: Keepalive | None = None
        self.local: Address | None = None
        self.peer: Address | None = None
        self.handshake: asyncio.TimerHandle | None = None
        self.reason: str | None = None
        self.told = False
        self.ended: asyncio.Future[None] = loop.create_future()
        self.kex_name = ""
        self.rekeys = -1
        self.received_bytes = 0
        self.received_since_kex_bytes = 0
        self.encrypt: packets.Sealer | None = None
        self.decrypt: packets.Opener | None = None
        self.decrypt_of: object = None
        self.outbox = Outbox(loop)
        self.transport_full = False
        self.deferred_bytes = 0
        self.acknowledgements = 0

    # The connection and its end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = self.outbox.transport = cast(asyncio.WriteTransport, transport)
        writer.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        connected: socket.socket = transport.get_extra_info("socket")
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            self.local = transport.get_extra_info("sockname")[:2]
            self.peer = transport.get_extra_info("peername")[:2]
            self.handshake = self._loop.call_later(HANDSHAKE_DEADLINE_S, self.handshake_due)
        super().connection_made(transport)

    def why(self) -> str | None:
        return None if self._transport is not None else self.reason or ""

    def leave(self, reason: str) -> None:
        """End the connection from here, and say so to the server."""
        if self._transport is not None:
            self.reason = reason
            self._send_disconnect(BY_APPLICATION, reason, "")
            self._force_close(None)

    def give_up(self) -> None:
        """The server is silent."""
        self.reason = f"Timeout, server {self.host} not responding."
        self._force_close(asyncssh.ConnectionLost(self.reason))

    def handshake_due(self) -> None:
        if not self._auth_in_progress and not self._auth_complete:
            self._force_close(asyncssh.ConnectionLost(f"no SSH handshake within {HANDSHAKE_DEADLINE_S:g} s"))

    def eof_received(self) -> None:
        if self._tasks and not self._auth_complete:
            # What came just before is looked at in a task and may say why, as when a server that has no algorithm in
            # common with us hangs up at once: that task is heard before `connection_lost`, which follows by itself.
            return
        self.reason = self.reason or f"Connection to {self.host} closed by remote host."
        super().eof_received()

    def _force_close(self, exc: Exception | None) -> None:
        """Ends everything, from wherever: asyncssh's, with what is left to send sent as far as the socket takes it."""
        if self._transport is None:
            return
        self.reason = self.reason or self.explain(exc)
        if self.keepalive is not None:
            self.keepalive.stop()
        if self.handshake is not None:
            self.handshake.cancel()
        self.outbox.write()
        self.outbox.transport = None
        super()._force_close(exc)

    def explain(self, error: Exception | None) -> str:
        if isinstance(error, asyncssh.DisconnectError):
            return f"Connection to {self.host} ended: {printable(error.reason)}"
        if isinstance(error, PacketDecodeError):
            return f"Connection to {self.host} ended: {error}"
        if isinstance(error, OSError):
            return f"Connection to {self.host} lost: {os.strerror(error.errno) if error.errno else error}"
        if error is not None:
            return f"Connection to {self.host} ended: internal error: {error!r}"
        return f"Connection to {self.host} closed."

    def _cleanup(self, exc: Exception | None) -> None:
        """Called once, in the next turn of the loop after `_force_close`."""
        self.told = True
        self.doors.lost(self.reason or self.explain(exc))
        super()._cleanup(exc)
        if self._agent is not None:
            self._agent.close()
        # The transport, which was told to abort in this turn, closes its socket in the next, before this is called.
        self._loop.call_soon(self.end)

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    # What comes

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        if self._transport is None:
            return
        self.received_bytes += len(data)
        self.received_since_kex_bytes += len(data)
        if self.keepalive is not None:
            self.keepalive.heard_s = self._loop.time()
        super().data_received(data, datatype)
        if self.acknowledgements:
            self.acknowledge()
        if self.received_since_kex_bytes > self._rekey_bytes:
            # RekeyLimit counts both directions (ssh_config(5)); asyncssh counts what it sends.
            self.rekey()

    def acknowledge(self) -> None:
        """Have TCP acknowledge what came, and what comes next, without its usual delay of 40 ms.

        Behind the login, for a few packets: sshd sets TCP_NODELAY with the first command, and until then each of its
        small packets waits for the ACK of the one before.
        """
        self.acknowledgements -= 1
        connected: socket.socket | None = self.get_extra_info("socket")
        if connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _recv_data(self) -> None:
        """Take what was received as far as it goes: asyncssh's loop, with ours where it can do the work."""
        try:
            while self._inpbuf and self._transport is not None:
                if self.receives_fast():
                    if not self.receive_fast():
                        return
                elif not self._recv_handler():
                    return
        except asyncssh.DisconnectError as error:
            self._send_disconnect(error.code, error.reason, error.lang)
            self._force_close(error)
        except Exception:
            self.internal_error()

    def receives_fast(self) -> bool:
        """Whether the next byte begins a packet under AES-GCM, without compression, after authentication."""
        if self._recv_handler != self._recv_pkthdr or not self._auth_complete or self._decompressor is not None:
            return False
        encryption = self._recv_encryption
        if encryption is not self.decrypt_of:
            self.decrypt_of = encryption
            self.decrypt = packets.opener(encryption._cipher._key) if isinstance(encryption, GCMEncryption) else None
        return self.decrypt is not None

    def receive_fast(self) -> bool:
        """Take all whole packets that came. False when nothing more can be done for now."""
        buffer, self._inpbuf = self._inpbuf, b""
        view, size, start, table = memoryview(buffer), len(buffer), 0, self.doors.table
        decrypt = cast(packets.Opener, self.decrypt)
        cipher = cast(GCMEncryption, self._recv_encryption)._cipher
        try:
            while size - start >= packets.SMALLEST_BYTES:
                inner = start + packets.LENGTH_BYTES
                length = int.from_bytes(view[start:inner], "big")
                if not packets.BLOCK_BYTES <= length <= LARGEST_PACKET_BYTES:
                    raise ProtocolError(f"a packet of {length} bytes")
                end = inner + length + packets.TAG_BYTES
                if end > size:
                    return False
                try:
                    plain = decrypt(cipher._iv, view[inner:end], view[start:inner])
                except InvalidTag:
                    raise MACError("MAC verification failed") from None
                kind, door = _address(plain, table)
                packet_start, start = start, end
                if door is None:
                    # asyncssh decrypts it again. An awaitable handler keeps it; else it is done with it at once.
                    self._inpbuf = buffer[packet_start:end]
                    return self._recv_handler() and self._recv_handler()
                cipher._update_iv()
                self._recv_seq = (self._recv_seq + 1) & SEQUENCE_MASK
                door.deliver(kind, memoryview(plain)[6 : len(plain) - plain[0]])
                if self._transport is None:
                    return False
            return False
        finally:
            if start < size:
                self._inpbuf += buffer[start:]

    # What goes

    def post(self, posted: Sequence[Packet]) -> None:
        if self.post_fast(posted):
            return
        for kind, *parts in posted:
            if self._transport is not None:
                self.send_packet(kind, b"".join(parts))

    def post_fast(self, posted: Sequence[Packet]) -> bool:
        """Seal and send packets, if nothing stands against it that asyncssh has to see to."""
        encrypt = self.encrypt
        if (
            encrypt is None
            or not self._kex_complete
            or self._rekey_bytes_sent >= self._rekey_bytes
            or (self._rekey_seconds and time.monotonic() >= self._rekey_time)
            or self._transport is None
        ):
            return False
        cipher = cast(GCMEncryption, self._send_encryption)._cipher
        # May write what is there already, and so call whoever could send as well: before a nonce is taken.
        room = self.outbox.room(packets.room_bytes(posted))
        count, cipher._iv = packets.seal(encrypt, cipher._iv, posted, room)
        self._send_seq = (self._send_seq + len(posted)) & SEQUENCE_MASK
        self._rekey_bytes_sent += count
        self.outbox.filled(count)
        return True

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        if pkttype >= GLOBAL_REQUEST:
            if self.post_fast([(pkttype, *args)]):
                return
        elif pkttype == IGNORE and b"-cbc" not in self._enc_alg_cs:
            # asyncssh puts one before every packet; it is CBC alone that needs them (RFC 4251 section 9.3.1).
            return
        super().send_packet(pkttype, *args, handler=handler)
        if not self._kex_complete and pkttype >= GLOBAL_REQUEST:
            self.deferred_bytes += sum(map(len, args))
            self.tell_full()

    def _send(self, data: bytes) -> None:
        self.outbox.put(data)

    def pause_writing(self) -> None:
        self.transport_full = True
        self.tell_full()

    def resume_writing(self) -> None:
        self.transport_full = False
        self.tell_full()

    def tell_full(self) -> None:
        self.on_full(self.transport_full or self.deferred_bytes > HIGH_WATER_BYTES)

    def ask(self, name: bytes, body: bytes, on_reply: OnReply) -> None:
        waiter = cast("asyncio.Future[tuple[int, SSHPacket]]", Waiter(on_reply))
        self._global_request_waiters.append(waiter)
        self.post([(GLOBAL_REQUEST, len(name).to_bytes(4, "big"), name, b"\x01", body)])

    # New keys

    def rekey(self) -> None:
        """Start a key exchange, unless one is under way."""
        if self._auth_complete and self._kex_complete and self._next_recv_encryption is None and self._transport:
            self._send_kexinit()
            self._kexinit_sent = True

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        self.kex_name = "" if self._kex is None else self._kex.algorithm.decode("ascii", "replace")
        self.rekeys += 1
        self.received_since_kex_bytes = 0
        super().send_newkeys(k, h)

    def _send_deferred_packets(self) -> None:
        """Called when there are new keys, and when authentication is complete: what was kept back may go now."""
        encryption = self._send_encryption
        ours = isinstance(encryption, GCMEncryption) and self._compressor is None and self._auth_complete
        self.encrypt = packets.sealer(cast(GCMEncryption, encryption)._cipher._key) if ours else None
        super()._send_deferred_packets()
        self.deferred_bytes = sum(len(part) for _, parts in self._deferred_packets for part in parts)
        self.tell_full()

    # Messages that are not for one channel alone, or not of its life

    def take_disconnect(self, kind: int, sequence: int, packet: SSHPacket) -> Any:
        said = _again(packet)
        self.reason = f"Received disconnect from {self.host}: {said.get_uint32()}: {printable(said.get_string())}"
        return self._process_disconnect(kind, sequence, packet)

    def take_auth_failure(self, kind: int, sequence: int, packet: SSHPacket) -> Any:
        told = getattr(self._owner, "auth_failed", None)
        if told is not None:
            said = _again(packet)
            told([method.decode("ascii", "replace") for method in said.get_namelist()], said.get_boolean())
        return self._process_userauth_failure(kind, sequence, packet)

    def take_request(self, kind: int, sequence: int, packet: SSHPacket) -> Any:
        if len(self._global_request_queue) >= WAITING_REQUESTS:
            raise ProtocolError("Too many global requests at a time")
        return self._process_global_request(kind, sequence, packet)

    def take_open(self, _kind: int, _sequence: int, packet: SSHPacket) -> None:
        asked = IncomingOpen(
            packet.get_string(),
            packet.get_uint32(),
            packet.get_uint32(),
            packet.get_uint32(),
            packet.get_remaining_payload(),
        )
        opener = self.openers.get(asked.kind)
        if opener is None:
            self.send_channel_open_failure(asked.sender, UNKNOWN_TYPE, "unknown channel type", "")
            return
        try:
            taken = opener(asked)
        except Exception:
            log.exception("a channel that the server opened was not taken")
            taken = False
        if not taken:
            self.send_channel_open_failure(asked.sender, PROHIBITED, "not allowed", "")

    def take_answer(self, kind: int, _sequence: int, packet: SSHPacket) -> None:
        number = packet.get_uint32()
        door = self.doors.table.get(number)
        if door is None:
            raise ProtocolError(f"Invalid channel number {number} received")
        door.deliver(kind, memoryview(packet.get_full_payload())[5:])

    _packet_handlers = {  # noqa: RUF012 - as the class it replaces the table of
        **asyncssh.SSHClientConnection._packet_handlers,
        DISCONNECT: take_disconnect,
        USERAUTH_FAILURE: take_auth_failure,
        GLOBAL_REQUEST: take_request,
        CHANNEL_OPEN: take_open,
        OPEN_CONFIRMATION: take_answer,
        OPEN_FAILURE: take_answer,
    }


def _again(packet: SSHPacket) -> SSHPacket:
    """The same packet, to be read without that its handler notices."""
    return SSHPacket(packet.get_remaining_payload())


def _address(plain: bytes, table: dict[int, Door]) -> tuple[int, Door | None]:
    """Return the kind of a decrypted packet, and whom it is for if that is known and the packet is for one channel."""
    kind = plain[1]
    if not FIRST_FAST <= kind <= LAST_FAST:
        return kind, None
    if not packets.SMALLEST_PADDING_BYTES <= plain[0] <= len(plain) - 6:
        raise ProtocolError(f"a packet with {plain[0]} bytes of padding")
    return kind, table.get(int.from_bytes(plain[2:6], "big"))


async def start(
    sock: socket.socket,
    client: asyncssh.SSHClient,
    options: Mapping[str, Any],
    *,
    deadline_s: float | None,
    close: Close | None = None,
) -> Engine:
    """Bring a connection up on `sock`, which is ours from now on, and log in.

    `options` are keyword arguments of `asyncssh.SSHClientConnectionOptions`; no configuration file is read.
    `keepalive_interval` (seconds) and `keepalive_count_max` mean what ServerAliveInterval and ServerAliveCountMax do.
    A `client` with a method `auth_failed(methods, partial)` is told of each refusal, as the server worded it.
    `close` is called when the connection has ended, or did not come up.

    Raises `asyncssh.Error` and `OSError` as asyncssh does, and `TimeoutError` after `deadline_s`.
    """
    given: dict[str, Any] = {"login_timeout": 0, "port": 22, **options}
    interval_s = float(given.pop("keepalive_interval", 0))
    count = int(given.pop("keepalive_count_max", KEEPALIVE_COUNT))
    loop = asyncio.get_running_loop()
    connection: _Connection | None = None
    try:
        self_check()
        prepared = await asyncssh.SSHClientConnectionOptions.construct(
            config=None, client_factory=lambda: client, **given
        )
        prepared.waiter = loop.create_future()
        sock.setblocking(False)
        async with asyncio.timeout(deadline_s):
            _, connection = await loop.create_connection(lambda: _Connection(loop, prepared), sock=sock)
            connection.set_extra_info(host=prepared.host, port=prepared.port)
            await prepared.waiter
        connection.acknowledgements = FIRST_ACKNOWLEDGEMENTS
        connection.acknowledge()
        return Engine(connection, interval_s, count, close)
    except BaseException:
        if connection is None:
            sock.close()
        else:
            connection.abort()
            await connection.ended
        if close is not None:
            await close()
        raise


# What is called, overridden or replaced: the names of the parameters.
_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "_cleanup": ("self", "exc"),
    "_force_close": ("self", "exc"),
    "_process_disconnect": ("self", "_pkttype", "_pktid", "packet"),
    "_process_global_request": ("self", "_pkttype", "_pktid", "packet"),
    "_process_userauth_failure": ("self", "_pkttype", "_pktid", "packet"),
    "_recv_data": ("self",),
    "_recv_packet": ("self",),
    "_recv_pkthdr": ("self",),
    "_send": ("self", "data"),
    "_send_deferred_packets": ("self",),
    "_send_disconnect": ("self", "code", "reason", "lang"),
    "_send_kexinit": ("self",),
    "internal_error": ("self", "exc_info", "error_logger"),
    "send_channel_open_failure": ("self", "send_chan", "code", "reason", "lang"),
    "send_newkeys": ("self", "k", "h"),
    "send_packet": ("self", "pkttype", "args", "handler"),
}
# What a new connection has, beside what its methods are.
_ATTRIBUTES: Final = """
    _agent _auth_complete _auth_in_progress _channels _compressor _decompressor _deferred_packets _enc_alg_cs
    _global_request_queue _global_request_waiters _inpbuf _kex _kex_complete _kexinit_sent _loop
    _next_recv_encryption _owner _recv_encryption _recv_handler _recv_seq _rekey_bytes _rekey_bytes_sent
    _rekey_seconds _rekey_time _send_encryption _send_seq _tasks _transport
"""


@functools.cache
def self_check() -> None:
    """Raise `SharingError` when this asyncssh is not one that this module was written for, naming what changed."""
    kind = asyncssh.SSHClientConnection
    missing = [name for name in _METHODS if not callable(getattr(kind, name, None))]
    code = [vars(base)["__init__"].__code__ for base in (*kind.__bases__, kind)]
    missing += sorted(set(_ATTRIBUTES.split()).difference(*(each.co_names for each in code)))
    changed = [
        f"{name}()"
        for name, parameters in _METHODS.items()
        if name not in missing and tuple(inspect.signature(getattr(kind, name)).parameters) != parameters
    ]
    changed += [f"message {number}" for number in _Connection._packet_handlers if number not in kind._packet_handlers]
    if not missing and not changed:
        changed += _check_cipher()
    if missing or changed:
        raise SharingError(
            f"asyncssh {asyncssh.__version__} is not as this program knows it: {', '.join(missing + changed)}",
            hint="install asyncssh 2.24, or let ssh itself hold the connection",
        )


def _check_cipher() -> list[str]:
    """Seal a packet, and let asyncssh open it and seal it again with the same key and the next nonce."""
    key, nonce, text = bytes(16), bytes(12), b"text"
    posted: list[Packet] = [(IGNORE, text)]
    room = bytearray(packets.room_bytes(posted))
    try:
        theirs = GCMEncryption(GCMCipher("aes128-gcm", key, nonce))
        ours = packets.sealer(theirs._cipher._key)
        count, following = packets.seal(ours, theirs._cipher._iv, posted, memoryview(room))
        sealed = bytes(room[:count])
        length, body, tag = sealed[:4], sealed[4 : -packets.TAG_BYTES], sealed[-packets.TAG_BYTES :]
        block = length + body[: packets.BLOCK_BYTES - packets.LENGTH_BYTES]
        plain = theirs.decrypt_packet(0, block, body[packets.BLOCK_BYTES - packets.LENGTH_BYTES :], 4, tag)
        if plain is None or plain[1 : -plain[0]] != bytes([IGNORE]) + text:
            return ["what GCMEncryption.decrypt_packet() returns"]
        start, tag = theirs.encrypt_packet(0, length, plain)
        if packets.opener(key)(following, start[packets.LENGTH_BYTES :] + tag, length) != plain:
            return ["what GCMEncryption.encrypt_packet() returns"]
    except Exception as error:
        return [f"GCMEncryption ({error!r})"]
    return []
