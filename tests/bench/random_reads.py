"""Read random 4 KiB blocks of one file and say how long that took: `random_reads.py FILE COUNT SEED`.

The rule: standard library only, runnable as a plain script, because it is timed from its own inside: the
interpreter's start is not the file system's. Prints the seconds and the SHA-256 of what was read, in the order it was
read.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time

BLOCK_BYTES = 4096


def read_blocks(path: str, count: int, seed: int) -> tuple[float, str]:
    """`count` different aligned blocks of `path` in an order that `seed` fixes: (seconds, SHA-256).

    Raises OSError, and EOFError when a block is short.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        blocks = os.fstat(descriptor).st_size // BLOCK_BYTES
        chosen = random.Random(seed).sample(range(blocks), count)
        read = []
        began = time.perf_counter()
        for block in chosen:
            read.append(os.pread(descriptor, BLOCK_BYTES, block * BLOCK_BYTES))
        elapsed_s = time.perf_counter() - began
    finally:
        os.close(descriptor)
    if any(len(data) != BLOCK_BYTES for data in read):
        raise EOFError(f"{path}: a block inside the file came back short")
    return elapsed_s, hashlib.sha256(b"".join(read)).hexdigest()


if __name__ == "__main__":
    print(*read_blocks(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
