"""Where a process of ours that stays writes its log: a file that was named, stderr in front, else syslog.

One rule: a log is never in the way. Its lines may quote a server or a client, so nothing in them can steer a terminal;
and what syslog does not take at once is lost, since a syslog that was stopped must not stop everybody who rides here.
Imported by whoever begins such a process.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import socket
from typing import Final, TypeAlias

from mux.errors import ExitCode, SharingError, printable

SYSLOG: Final = "/dev/log"
_Socket: TypeAlias = socket.socket
_LONGEST_LINE: Final = 2000  # characters; more of a peer's text helps nobody


def handler(program: str, *, file: str | None, foreground: bool) -> logging.Handler:
    """Where to log. `file` is appended to. Raises `SharingError` (USAGE) when it cannot be written."""
    style = f"{program}[%(process)d]: %(levelname)s: %(message)s"
    made: logging.Handler
    if file is not None:
        try:
            made = logging.FileHandler(os.path.abspath(file), encoding="utf-8")
        except OSError as error:
            message = f"the log file {printable(file)} cannot be written: {error.strerror}"
            raise SharingError(message, ExitCode.USAGE) from None
        style = "%(asctime)s " + style
    elif foreground:
        made = logging.StreamHandler()
    elif os.path.exists(SYSLOG):
        made = _Syslog(SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    else:
        made = logging.NullHandler()
    made.setFormatter(_Escaped(style))
    return made


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line, _LONGEST_LINE) for line in super().format(record).splitlines())


class _Syslog(logging.handlers.SysLogHandler):
    """As its base, which waits for a syslog that takes nothing."""

    socket: _Socket

    def emit(self, record: logging.LogRecord) -> None:
        try:
            priority = self.encodePriority(self.facility, self.mapPriority(record.levelname))
            line = f"<{priority}>{self.format(record)}\0".encode(errors="backslashreplace")
        except Exception:
            return self.handleError(record)
        try:
            self._send(line)
        except OSError:  # full, or not there any more
            pass

    def _send(self, line: bytes) -> None:
        try:
            self.socket.send(line, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise
        except OSError:  # it was started anew
            self.socket.close()
            self.createSocket()
            self.socket.send(line, socket.MSG_DONTWAIT)
