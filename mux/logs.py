"""Where a process of ours that stays writes its log: a file that was named, stderr in front, else syslog.

One rule: a log is never in the way. Its lines may quote a server or a client, so nothing in them can steer a terminal;
and what syslog or stderr does not take at once is lost, since a syslog that was stopped, or a pager that shows its
first page, must not stop everybody who rides here. Imported by whoever begins such a process.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import select
import socket
import sys
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
        made = _InFront(sys.stderr.fileno()) if sys.stderr is not None else logging.NullHandler()
    elif os.path.exists(SYSLOG):
        made = _Syslog(SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    else:
        made = logging.NullHandler()
    made.setFormatter(_Escaped(style))
    return made


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line, _LONGEST_LINE) for line in super().format(record).splitlines())


class _InFront(logging.Handler):
    """Lines on stderr, as far as it takes them: a pipe is full as soon as its reader stops, a terminal at ^S."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._broken_off = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:
            return self.handleError(record)
        try:
            # What was begun and not ended does not run into the next.
            self._put(b"\n" + line if self._broken_off else line)
        except OSError:  # nobody reads it any more
            pass

    def _put(self, line: bytes) -> None:
        """In pieces of a size that does not wait once poll says that there is room (pipe(7), PIPE_BUF).

        O_NONBLOCK would do as well, were the description ours alone and not the user's shell's, too.
        """
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        for start in range(0, len(line), select.PIPE_BUF):
            if not any(event & select.POLLOUT for _, event in room.poll(0)):
                self._broken_off = self._broken_off or start > 0
                return
            os.write(self._descriptor, line[start : start + select.PIPE_BUF])
        self._broken_off = False


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
