"""A machine whose name server takes questions and never answers: `python deaf_resolver.py DIRECTORY COMMAND...`.

Runs COMMAND there, writes "asked" when the first question has come, and ends with COMMAND's exit status. The rule:
nothing outside is changed, for it is to be started in a mount namespace and a network of its own (`unshare --mount
--net`). It outlives Ctrl-C, as a shell does. A script by itself, without this package's imports.
"""

from __future__ import annotations

import fcntl
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

ADDRESS = "127.0.0.1"
DOMAIN_PORT = 53
# As long as resolv.conf(5) lets it be: two and a half minutes for a name.
FILES = {"resolv.conf": f"nameserver {ADDRESS}\noptions timeout:30 attempts:5\n", "nsswitch.conf": "hosts: dns\n"}
# linux/sockios.h, linux/if.h
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
QUESTION_BYTES = 512


def main() -> int:
    directory, *command = sys.argv[1:]
    for name, text in FILES.items():
        file = Path(directory, name)
        file.write_text(text)
        subprocess.run(["mount", "--bind", file, f"/etc/{name}"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        fcntl.ioctl(server, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
        server.bind((ADDRESS, DOMAIN_PORT))
        signal.signal(signal.SIGINT, lambda *_: None)
        with subprocess.Popen(command) as process:
            server.recv(QUESTION_BYTES)
            print("asked", flush=True)
        return process.returncode


if __name__ == "__main__":
    raise SystemExit(main())
