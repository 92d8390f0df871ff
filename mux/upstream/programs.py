"""A program that carries the connection's bytes on its standard input and output.

One rule: it lives as long as the connection, whatever happens to the terminal it was started on: it may ask questions
there, but Ctrl-C and the like are not for it, and when the connection ends it is ended and reaped. Imported by
`mux.upstream.connect` only.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from typing import Final

from mux.errors import printable

# Ignored signals stay ignored in what the shell becomes. The program stays in the foreground's group, because a program
# of the background cannot ask for a password; so what the terminal sends to that group must not reach it.
_KEPT_FROM_TERMINAL: Final = ("/bin/sh", "-c", 'trap "" HUP INT QUIT TSTP; exec "$@"', "sh")
# Its input has ended; one that ends by itself says better why than one that is stopped.
ENDS_ITSELF_S: Final = 0.5
# After SIGTERM; then it is killed.
TERM_DEADLINE_S: Final = 2.0
# For the kernel to end what was killed, on a machine that is busy.
KILL_DEADLINE_S: Final = 10.0
# For the last words of a program that has ended; something it left behind may hold the pipe open.
LAST_WORDS_S: Final = 0.5
# Of a program that never stops talking, this much is passed on; the rest is read and dropped.
MOST_LINES: Final = 200
LINE_BYTES: Final = 4096
_LINE_END: Final = re.compile(rb"[\r\n]+")


def _environment() -> dict[str, str]:
    """Ours, with one shell more at least: a bash that finds itself the first, with a socket for its input, takes that
    for a login over the network, and reads a `.bashrc` which may write among the bytes of the connection.
    """
    shells = os.environ.get("SHLVL", "")
    return {**os.environ, "SHLVL": shells if shells.isdecimal() and int(shells) else "1"}


class _Words:
    """Reads a program's stderr, and passes it on line by line."""

    def __init__(self, fd: int, say: Callable[[str], None]) -> None:
        """`fd`: the reading end of a pipe, ours from now on."""
        self._fd = fd
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._begun = b""
        self._left = MOST_LINES
        self.ended = asyncio.Event()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Read no more. Idempotent."""
        if not self.ended.is_set():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, LINE_BYTES)
        except BlockingIOError:
            return
        *lines, self._begun = _LINE_END.split(self._begun + data)
        if not data or len(self._begun) > LINE_BYTES:
            lines.append(self._begun)
            self._begun = b""
        for line in filter(None, lines):
            if self._left:
                self._left -= 1
                self._say(printable(line))
        if not data:
            self.close()


class Program:
    """A running program. Made by `start`."""

    def __init__(self, process: Process, words: _Words) -> None:
        self._process = process
        self._words = words
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, command: Sequence[str], sock: socket.socket, say: Callable[[str], None]) -> Program:
        """Run `command` with `sock` as its input and output, which the caller closes; `say` gets its stderr.

        Raises `OSError` when there is no shell, no process or no pipe to be had.
        """
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *_KEPT_FROM_TERMINAL,
                *command,
                stdin=sock.fileno(),
                stdout=sock.fileno(),
                stderr=writing,
                env=_environment(),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(process, _Words(reading, say))

    async def end(self) -> None:
        """End and reap it. Idempotent; whoever calls waits until that is done. The socket is to be closed before."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        waiting = asyncio.create_task(self._process.wait())
        for deadline_s, harder in ((ENDS_ITSELF_S, self._process.terminate), (TERM_DEADLINE_S, self._process.kill)):
            await asyncio.wait([waiting], timeout=deadline_s)
            if not waiting.done():
                try:
                    harder()
                except ProcessLookupError:
                    pass
        # Who hangs in the kernel does not even end by SIGKILL; it is the system's from now on.
        await asyncio.wait([waiting], timeout=KILL_DEADLINE_S)
        waiting.cancel()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._words.ended.wait()
        except TimeoutError:
            self._words.close()
