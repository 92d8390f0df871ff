"""A ProxyCommand that stands at a gate: `python gate.py FIFO PORT` connects when whoever opened the FIFO closes it.

The rule: when it ends, however it ends, its connection ends. That is why it is not `ssh -W` through a master: one
that has nothing else to do tells the server of such a client's death when the next event comes, be it an hour later
(OpenSSH 9.2: the channel of a client that is gone is ended behind the place from which its EOF would be sent).

Run by ssh and by upstreams under test (`starting.gated`): a script by itself, without this package's imports.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from contextlib import suppress

PIECE_BYTES = 65536


def main() -> None:
    fifo, port = sys.argv[1:]
    with open(fifo, "rb") as gate:
        gate.read()
    with socket.create_connection(("127.0.0.1", int(port))) as server, suppress(BrokenPipeError, ConnectionResetError):
        relay({0: server.fileno(), server.fileno(): 1})


def relay(ways: dict[int, int]) -> None:
    """Carry what is read from each key to its value, until one of them ends."""
    while True:
        for source in select.select(list(ways), [], [])[0]:
            data = os.read(source, PIECE_BYTES)
            if not data:
                return
            while data:
                data = data[os.write(ways[source], data) :]


if __name__ == "__main__":
    main()
