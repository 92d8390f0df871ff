"""A terminal as the SSH protocol tells of it: its modes (RFC 4254 section 8, RFC 8160) and its size.

One rule: a terminal is looked at and never changed; its own client puts it into raw mode and back. Imported by
`sessions.py`.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any, Final, NamedTuple

from mux.protocol.wire import u8, u32

_END: Final = 0
_ISPEED: Final = 128
_OSPEED: Final = 129
_DISABLED: Final = 255  # "if this character is not used"
_VDISABLE: Final = 0  # Linux's _POSIX_VDISABLE
_WINSIZE: Final = struct.Struct("4H")  # struct winsize: rows, columns, width, height; ioctl_tty(2)
_BIT_RATE: Final = {
    getattr(termios, name): int(name[1:]) for name in dir(termios) if name[0] == "B" and name[1:].isdigit()
}

_CHARACTERS: Final = {
    1: "VINTR",
    2: "VQUIT",
    3: "VERASE",
    4: "VKILL",
    5: "VEOF",
    6: "VEOL",
    7: "VEOL2",
    8: "VSTART",
    9: "VSTOP",
    10: "VSUSP",
    12: "VREPRINT",
    13: "VWERASE",
    14: "VLNEXT",
    16: "VSWTC",
    18: "VDISCARD",
}
# Which field of tcgetattr a mode is in, and which bit; IUTF8 has no name in Python before 3.13.
_IFLAG, _OFLAG, _CFLAG, _LFLAG = range(4)
_FLAGS: Final = {
    30: (_IFLAG, "IGNPAR"),
    31: (_IFLAG, "PARMRK"),
    32: (_IFLAG, "INPCK"),
    33: (_IFLAG, "ISTRIP"),
    34: (_IFLAG, "INLCR"),
    35: (_IFLAG, "IGNCR"),
    36: (_IFLAG, "ICRNL"),
    37: (_IFLAG, "IUCLC"),
    38: (_IFLAG, "IXON"),
    39: (_IFLAG, "IXANY"),
    40: (_IFLAG, "IXOFF"),
    41: (_IFLAG, "IMAXBEL"),
    42: (_IFLAG, "IUTF8"),
    50: (_LFLAG, "ISIG"),
    51: (_LFLAG, "ICANON"),
    52: (_LFLAG, "XCASE"),
    53: (_LFLAG, "ECHO"),
    54: (_LFLAG, "ECHOE"),
    55: (_LFLAG, "ECHOK"),
    56: (_LFLAG, "ECHONL"),
    57: (_LFLAG, "NOFLSH"),
    58: (_LFLAG, "TOSTOP"),
    59: (_LFLAG, "IEXTEN"),
    60: (_LFLAG, "ECHOCTL"),
    61: (_LFLAG, "ECHOKE"),
    62: (_LFLAG, "PENDIN"),
    70: (_OFLAG, "OPOST"),
    71: (_OFLAG, "OLCUC"),
    72: (_OFLAG, "ONLCR"),
    73: (_OFLAG, "OCRNL"),
    74: (_OFLAG, "ONOCR"),
    75: (_OFLAG, "ONLRET"),
    90: (_CFLAG, "CS7"),
    91: (_CFLAG, "CS8"),
    92: (_CFLAG, "PARENB"),
    93: (_CFLAG, "PARODD"),
}
_BITS_WITHOUT_NAME: Final = {"IUTF8": 0o40000}  # asm-generic/termbits.h


class Size(NamedTuple):
    """Columns and rows of characters, width and height in pixels; 0 where unknown. In the order of the wire."""

    columns: int = 0
    rows: int = 0
    width: int = 0
    height: int = 0

    def encode(self) -> bytes:
        """As pty-req and window-change have it."""
        return b"".join(map(u32, self))


def size(descriptor: int) -> Size:
    """The size of a terminal; all 0 for what is none."""
    try:
        rows, columns, width, height = _WINSIZE.unpack(
            fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(_WINSIZE.size))
        )
    except OSError:
        return Size()
    return Size(columns, rows, width, height)


def modes(descriptor: int) -> bytes:
    """The modes of a terminal, encoded; of what is none, nothing but their end, as ssh does without sharing."""
    try:
        attributes: list[Any] = termios.tcgetattr(descriptor)
    except termios.error:
        return u8(_END)
    encoded = [_mode(_OSPEED, _BIT_RATE.get(attributes[5], 0)), _mode(_ISPEED, _BIT_RATE.get(attributes[4], 0))]
    for code, name in _CHARACTERS.items():
        if hasattr(termios, name):
            character = ord(attributes[6][getattr(termios, name)])
            encoded.append(_mode(code, _DISABLED if character == _VDISABLE else character))
    for code, (field, name) in _FLAGS.items():
        bit = getattr(termios, name, _BITS_WITHOUT_NAME.get(name, 0))
        encoded.append(_mode(code, int(attributes[field] & bit != 0)))
    return b"".join(encoded) + u8(_END)


def _mode(code: int, value: int) -> bytes:
    return u8(code) + u32(value)
