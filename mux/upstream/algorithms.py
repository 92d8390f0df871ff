"""Algorithms by their names in SSH: what ssh would offer -> what asyncssh can offer, in that order.

The one rule: an algorithm that the configuration does not name is never offered. Where the configuration names none
(the list is ssh's own), two things are ours: AES-GCM comes first on a processor with AES, because it is the fastest
here by far, and a post-quantum key exchange that asyncssh has stands in for the one that it has not. Imported by
`settings.py` and `hostkeys.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs

_GCM: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
# OpenSSH's first choice since 9.0, which asyncssh has only with liboqs, and the one that took its place in 10.0.
_POST_QUANTUM: Final = ("sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com", "mlkem768x25519-sha256")
_POST_QUANTUM_HERE: Final = "mlkem768x25519-sha256"
_CERTIFICATE: Final = "-cert-v01@openssh.com"


def kex(wanted: Sequence[str], *, chosen: bool) -> list[str]:
    """Key exchanges; `chosen`: the configuration names them."""
    have = _names(get_kex_algs())
    kept = _kept(wanted, have)
    strong = any(name in _POST_QUANTUM for name in wanted) and not any(name in _POST_QUANTUM for name in kept)
    if not chosen and strong and _POST_QUANTUM_HERE in have:
        kept.insert(0, _POST_QUANTUM_HERE)
    return kept


def ciphers(wanted: Sequence[str], *, chosen: bool, fast_aes: bool | None = None) -> list[str]:
    """Ciphers; `fast_aes` None looks at the processor."""
    kept = _kept(wanted, _names(get_encryption_algs()))
    if chosen or not (cpu_has_aes() if fast_aes is None else fast_aes):
        return kept
    return [name for name in _GCM if name in kept] + [name for name in kept if name not in _GCM]


def macs(wanted: Sequence[str]) -> list[str]:
    """Message authentication codes; AEAD ciphers need none."""
    return _kept(wanted, _names(get_mac_algs()))


def host_keys(wanted: Sequence[str]) -> list[str]:
    """Host key algorithms, certificates among them."""
    return _kept(wanted, _names(get_certificate_algs()) | _names(get_public_key_algs()))


def signatures(wanted: Sequence[str]) -> list[str]:
    """Signature algorithms for our own keys, from PubkeyAcceptedAlgorithms; those of certificates are their keys'."""
    plain = [plain_algorithm(name) for name in wanted]
    return _kept(list(dict.fromkeys(plain)), _names(get_public_key_algs()))


def is_certificate(algorithm: str) -> bool:
    """Whether it names a certificate."""
    return algorithm.endswith(_CERTIFICATE)


def plain_algorithm(algorithm: str) -> str:
    """The algorithm of the key in a certificate; any other as it is."""
    if not is_certificate(algorithm):
        return algorithm
    plain = algorithm[: -len(_CERTIFICATE)]
    return f"{plain}@openssh.com" if plain.startswith("sk-") else plain


def key_type(algorithm: str) -> str:
    """The type of the key that an algorithm uses, as a known_hosts line names it: RSA has several algorithms."""
    plain = plain_algorithm(algorithm)
    return "ssh-rsa" if plain in ("rsa-sha2-256", "rsa-sha2-512") else plain


def cpu_has_aes() -> bool:
    """Whether the processor has AES instructions (x86: aes, arm64: aes, in /proc/cpuinfo)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return "aes" in flags.split()


def _names(algorithms: Iterable[bytes]) -> frozenset[str]:
    return frozenset(name.decode("ascii") for name in algorithms)


def _kept(wanted: Sequence[str], have: frozenset[str]) -> list[str]:
    return [name for name in wanted if name in have]
