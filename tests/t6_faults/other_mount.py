"""A mount of somebody else's, whose process dies as soon as it is there: `python other_mount.py MOUNTPOINT`."""

from __future__ import annotations

import os
import signal
import sys

import pyfuse3

if __name__ == "__main__":
    pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {"fsname=elsewhere", "subtype=other"})
    os.kill(os.getpid(), signal.SIGKILL)
