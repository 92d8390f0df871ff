"""The random-operation checker: one file, thousands of operations on it, each compared with what a file has to do.

    python -m tests.support.checker DIRECTORY --ops 20000 --seed 1

The rule: the same seed does the same operations, so that what was found can be found again. The expected content is
kept in memory; it is compared after every read, and whole at intervals, here and (with --server) in the same file on
the server's side. Every eight bytes that are written say which step wrote them and where they belong, so a wrong byte
tells which write it came from, or whose was lost.

Exit status: 0 all was right, 1 something was wrong (with the last operations, those that touched the wrong bytes
marked), 2 usage. Imported by the tests; it stands alone and needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Steps that a report shows; more scroll the reason away.
SHOWN_STEPS = 40
WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the file and one operation may get, and how often the whole is compared."""

    file_bytes: int = 300_000
    operation_bytes: int = 65_536
    whole_every: int = 250


SMALL = Limits()
BIG = Limits(file_bytes=8 << 20, operation_bytes=2 << 20, whole_every=100)


class Mismatch(AssertionError):
    """The file is not what it should be; the text is the whole report."""


@dataclass(frozen=True, slots=True)
class Done:
    """One line of the log."""

    number: int
    what: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.number:7}  {self.what:18} {self.start:#9x} .. {self.end:#9x}  ({self.end - self.start} bytes)"


def written_by(number: int, start: int, end: int) -> bytes:
    """What step `number` writes from `start` to `end`: words of (step, place), in file order."""
    first, last = start // WORD_BYTES, (end + WORD_BYTES - 1) // WORD_BYTES
    base = number << 32
    words = array("Q", range(base + first, base + last))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()[start - first * WORD_BYTES : end - first * WORD_BYTES]


def author(content: bytes, offset: int) -> str:
    """Who wrote the word at that place of the content, if it is a word of ours."""
    start = offset - offset % WORD_BYTES
    word = int.from_bytes(content[start : start + WORD_BYTES], "little")
    if word == 0:
        return "zeros, as of a hole"
    place = (word & 0xFFFFFFFF) * WORD_BYTES
    where = "" if place == start else f", meant for {place:#x}"
    return f"written by step {word >> 32}{where}"


class Checker:
    """One file under test. `run` does the operations; everything else is theirs."""

    def __init__(
        self, directory: Path, seed: int, *, limits: Limits = SMALL, mappings: bool = True, server: Path | None = None
    ) -> None:
        self.chance = random.Random(seed)
        self.limits = limits
        self.path = directory / f"checked-{seed}"
        self.server = server
        self.expected = bytearray()
        self.log: deque[Done] = deque(maxlen=10_000)
        self.number = 0
        self.renamed = 0
        self.descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
        table: list[tuple[int, Callable[[], None]]] = [
            (24, self.read),
            (22, self.write),
            (6, self.small_write),
            (6, self.append),
            (5, self.truncate),
            (3, self.write_beyond_the_end),
            (3, self.write_through_another_descriptor),
            (3, self.read_through_another_descriptor),
            (3, self.check_size),
            (2, self.close_and_open),
            (2, self.synchronize),
            (2, self.rename),
            (1, self.truncate_by_opening),
            (1, self.replace),
            (1, self.delete_and_go_on),
        ]
        if mappings:
            table += [(8, self.mapped_read), (8, self.mapped_write), (1, self.mapped_write_unsynchronized)]
        self.operations = [operation for _, operation in table]
        self.weights = [weight for weight, _ in table]

    def run(self, count: int) -> None:
        """Do that many operations. Raises Mismatch; an OSError is as wrong, and reported the same way."""
        try:
            for done in range(1, count + 1):
                self.chance.choices(self.operations, self.weights)[0]()
                if done % self.limits.whole_every == 0:
                    self.compare_whole()
            self.compare_whole()
        except OSError as error:
            raise Mismatch(self.report(f"{type(error).__name__}: {error}", 0, 0)) from error
        finally:
            os.close(self.descriptor)
        self.compare_server()
        os.unlink(self.path)

    # -- comparing ----------------------------------------------------------------------------------------------------

    def compare(self, found: bytes, start: int, wanted: int, how: str) -> None:
        """What was read from `start` is what is expected there."""
        expected = bytes(self.expected[start : start + wanted])
        if found == expected:
            return
        length = min(len(found), len(expected))
        wrong = [index for index in range(length) if found[index] != expected[index]]
        if not wrong:
            text = f"{how}: {len(found)} bytes from {start:#x} instead of {len(expected)}"
            raise Mismatch(self.report(text, start + length, start + max(len(found), len(expected))))
        first, last = start + wrong[0], start + wrong[-1] + 1
        pad = bytes(start % WORD_BYTES)
        text = (
            f"{how}: {len(wrong)} wrong bytes between {first:#x} and {last:#x} of {len(self.expected)} bytes\n"
            f"expected {expected[wrong[0] : wrong[0] + 16].hex(' ')}: {author(bytes(self.expected), first)}\n"
            f"found    {found[wrong[0] : wrong[0] + 16].hex(' ')}: {author(pad + found, wrong[0] + len(pad))}"
        )
        raise Mismatch(self.report(text, first, last))

    def report(self, text: str, first: int, last: int) -> str:
        """The text with the last operations; '*' marks those that touched the bytes from `first` to `last`."""
        lines = [
            f"{'*' if done.start < last and first < done.end else ' '} {done}" for done in list(self.log)[-SHOWN_STEPS:]
        ]
        last_writers = [done for done in self.log if done.start < last and first < done.end and "read" not in done.what]
        lines += ["the last that changed these bytes:", *(f"  {done}" for done in last_writers[-5:])]
        return f"{self.path}, step {self.number}: {text}\n" + "\n".join(lines)

    def compare_whole(self) -> None:
        """The whole file and its size, through a new descriptor."""
        self.check_size()
        self.compare(self.path.read_bytes(), 0, len(self.expected) + 1, "the whole file")

    def compare_server(self) -> None:
        """The same file as the server has it."""
        if self.server is not None:
            self.compare((self.server / self.path.name).read_bytes(), 0, len(self.expected) + 1, "the server's file")

    # -- the operations -----------------------------------------------------------------------------------------------

    def note(self, what: str, start: int, end: int) -> None:
        """Log a step of an operation before it is done; steps have numbers of their own, which are what is written."""
        self.number += 1
        self.log.append(Done(self.number, what, start, end))

    def size(self) -> int:
        """A size for an operation: mostly small, now and then as large as may be."""
        most = self.limits.operation_bytes
        return self.chance.randint(1, self.chance.choice((16, 4096, 4097, most // 4, most)))

    def place(self) -> tuple[int, int]:
        """A range to write: within the file or a bit beyond its end, often at the edge of a page."""
        start = self.chance.randint(0, min(len(self.expected), self.limits.file_bytes))
        if self.chance.random() < 0.3:
            start -= start % 4096
        return start, min(start + self.size(), self.limits.file_bytes)

    def expect(self, start: int, text: bytes) -> None:
        """The text is written there."""
        if start > len(self.expected):
            self.expected.extend(bytes(start - len(self.expected)))
        self.expected[start : start + len(text)] = text

    def put(self, descriptor: int, start: int, end: int, what: str) -> None:
        """Write at a place, and expect it."""
        self.note(what, start, end)
        text = written_by(self.number, start, end)
        written = 0
        while written < len(text):
            written += os.pwrite(descriptor, text[written:], start + written)
        self.expect(start, text)

    def get(self, descriptor: int, what: str) -> None:
        """Read from a place, sometimes beyond the end, and compare."""
        start = self.chance.randint(0, len(self.expected) + 10)
        size = self.size()
        self.note(what, start, start + size)
        found = b""
        while len(found) < size and (part := os.pread(descriptor, size - len(found), start + len(found))):
            found += part
        self.compare(found, start, size, what)

    def read(self) -> None:
        self.get(self.descriptor, "read")

    def write(self) -> None:
        self.put(self.descriptor, *self.place(), "write")

    def small_write(self) -> None:
        """A few that follow each other."""
        start = self.chance.randint(0, min(len(self.expected), self.limits.file_bytes - 500))
        for _ in range(self.chance.randint(2, 5)):
            end = start + self.chance.randint(1, 100)
            self.put(self.descriptor, start, end, "small write")
            start = end

    def write_beyond_the_end(self) -> None:
        start = len(self.expected) + self.chance.randint(1, 20_000)
        if start < self.limits.file_bytes:
            self.put(self.descriptor, start, min(start + self.size(), self.limits.file_bytes), "write beyond")

    def append(self) -> None:
        start = len(self.expected)
        end = min(start + self.size(), self.limits.file_bytes)
        if start < end:
            self.note("append", start, end)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                text = written_by(self.number, start, end)
                os.write(descriptor, text[: len(text) // 2])
                os.write(descriptor, text[len(text) // 2 :])
            finally:
                os.close(descriptor)
            self.expect(start, text)

    def write_through_another_descriptor(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            start, end = self.place()
            middle = (start + end) // 2
            self.put(descriptor, start, middle, "other write")
            self.put(self.descriptor, middle, end, "write between")
            self.put(descriptor, (start + middle) // 2, middle, "other write")
        finally:
            os.close(descriptor)

    def read_through_another_descriptor(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for _ in range(3):
                self.get(descriptor, "other read")
        finally:
            os.close(descriptor)

    def truncate(self) -> None:
        size = self.chance.randint(0, self.chance.choice((len(self.expected), self.limits.file_bytes)))
        self.note("truncate", min(size, len(self.expected)), max(size, len(self.expected)))
        if self.chance.random() < 0.5:
            os.ftruncate(self.descriptor, size)
        else:
            os.truncate(self.path, size)
        self.resize(size)

    def resize(self, size: int) -> None:
        """The expected content, cut off or with zeros behind it."""
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    def truncate_by_opening(self) -> None:
        self.note("open truncating", 0, len(self.expected))
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self.resize(0)

    def check_size(self) -> None:
        for how, found in (("stat", os.stat(self.path).st_size), ("fstat", os.fstat(self.descriptor).st_size)):
            if found != len(self.expected):
                text = f"{how}: size {found} instead of {len(self.expected)}"
                raise Mismatch(self.report(text, min(found, len(self.expected)), max(found, len(self.expected))))

    def close_and_open(self) -> None:
        self.note("close and open", 0, 0)
        os.close(self.descriptor)
        self.descriptor = -1
        self.compare_server()
        self.descriptor = os.open(self.path, os.O_RDWR)

    def synchronize(self) -> None:
        self.note("fsync", 0, 0)
        self.chance.choice((os.fsync, os.fdatasync))(self.descriptor)
        self.compare_server()

    def rename(self) -> None:
        self.renamed += 1
        new = self.path.with_name(f"{self.path.name.split('.')[0]}.{self.renamed}")
        self.note(f"rename to {new.suffix}", 0, 0)
        os.rename(self.path, new)
        self.path = new

    def replace(self) -> None:
        """A new file with the same content, renamed over the one under test."""
        self.note("replace", 0, 0)
        new = self.path.with_name("replacing")
        new.write_bytes(self.expected)
        os.rename(new, self.path)
        os.close(self.descriptor)
        self.descriptor = os.open(self.path, os.O_RDWR)

    def delete_and_go_on(self) -> None:
        """Without a name for a while: written and read by descriptor, then copied to a new file of that name."""
        os.unlink(self.path)
        self.note("delete", 0, 0)
        self.write()
        self.read()
        self.note("make again", 0, 0)
        self.path.write_bytes(self.expected)
        self.compare(
            os.pread(self.descriptor, len(self.expected) + 1, 0), 0, len(self.expected) + 1, "the deleted file"
        )
        os.close(self.descriptor)
        self.descriptor = os.open(self.path, os.O_RDWR)

    def mapping(self, access: int) -> tuple[mmap.mmap, int, int] | None:
        """A mapping of a part of the file, with that part; None when the file is empty."""
        if not self.expected:
            return None
        start = self.chance.randrange(len(self.expected))
        end = min(start + self.size(), len(self.expected))
        page = start - start % mmap.ALLOCATIONGRANULARITY
        return mmap.mmap(self.descriptor, end - page, access=access, offset=page), start, end

    def mapped_read(self) -> None:
        if mapping := self.mapping(mmap.ACCESS_READ):
            view, start, end = mapping
            self.note("mapped read", start, end)
            with view:
                found = view[len(view) - (end - start) :]
            self.compare(found, start, end - start, "mapped read")

    def mapped_write(self, flush: bool = True) -> None:
        if mapping := self.mapping(mmap.ACCESS_WRITE):
            view, start, end = mapping
            self.note("mapped write", start, end)
            text = written_by(self.number, start, end)
            with view:
                view[len(view) - (end - start) :] = text
                self.expect(start, text)
                if flush:
                    view.flush()

    def mapped_write_unsynchronized(self) -> None:
        """Written through a mapping, read through the descriptor (the same pages), and then synchronized."""
        self.mapped_write(flush=False)
        self.read()
        self.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a directory."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.checker", description="Random operations on one file."
    )
    parser.add_argument("directory", type=Path, help="where the file is made, and removed if all was right")
    parser.add_argument("--ops", type=int, default=20_000, help="how many operations (20000)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (1)")
    parser.add_argument("--big", action="store_true", help="a file of up to 8 MiB")
    parser.add_argument("--no-mmap", action="store_true", help="no mappings, for direct_io")
    parser.add_argument("--server", type=Path, help="the same directory on the server's side, compared as well")
    chosen = parser.parse_args(arguments)
    limits = BIG if chosen.big else SMALL
    checker = Checker(chosen.directory, chosen.seed, limits=limits, mappings=not chosen.no_mmap, server=chosen.server)
    try:
        checker.run(chosen.ops)
    except Mismatch as mismatch:
        print(mismatch, file=sys.stderr)
        return 1
    print(f"{chosen.ops} operations with seed {chosen.seed}: all right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
