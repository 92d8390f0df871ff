"""The hosts that ssh_config names, and the control path of each.

The one rule: ssh_config is read here only for names; what a name means is for ssh to say (`ssh -G`). So a name that is
missed costs a row in a list its label, and nothing else. Imported by `list`.
"""

from __future__ import annotations

import glob
import os
import shlex
import time
from collections.abc import Iterator
from typing import Final

from mux.errors import SharingError
from mux.rendezvous.target import SshOptions, resolve, split_host

from .upstreams import at_the_same_time

_SYSTEM_CONFIG: Final = "/etc/ssh/ssh_config"
_MOST_HOSTS: Final = 64  # `ssh -G` of each takes some 10 ms
_MOST_FILES: Final = 64  # by Include
_DEADLINE_S: Final = 3.0  # for all; a `Match exec` can take any time


def control_paths(config_file: str | None) -> dict[str, str]:
    """Return the control paths of the hosts that ssh_config names: path -> name; the first that has it.

    `config_file` is ssh's -F; None for the user's and the system's.
    """
    deadline = time.monotonic() + _DEADLINE_S
    options = SshOptions(config_file=config_file)

    def paths(name: str) -> tuple[str, ...]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return ()
        try:
            user, host = split_host(name)
            target = resolve(host, user, options, deadline_s=left_s)
        except SharingError:
            return ()
        return tuple(filter(None, (target.control_path, target.own_control_path)))

    found: dict[str, str] = {}
    names = host_names(config_file)
    for name, places in zip(names, at_the_same_time(paths, names), strict=True):
        for path in places:
            found.setdefault(path, name)
    return found


def host_names(config_file: str | None) -> list[str]:
    """Return the words of `Host` lines that are names and no patterns, in order, each once."""
    user = os.path.expanduser("~/.ssh/config")
    files = [config_file] if config_file else [user, _SYSTEM_CONFIG]
    names: dict[str, None] = {}
    seen: set[str] = set()
    for file in files:
        for word in _host_words(file, seen):
            if not any(character in word for character in "*?!"):
                names.setdefault(word)
            if len(names) >= _MOST_HOSTS:
                return list(names)
    return list(names)


def _host_words(path: str, seen: set[str]) -> Iterator[str]:
    if path in seen or len(seen) >= _MOST_FILES:
        return
    seen.add(path)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        try:
            keyword, *words = shlex.split(line.replace("=", " ", 1), comments=True) or [""]
        except ValueError:  # quotes that do not match; ssh will say so
            continue
        if keyword.lower() == "host":
            yield from words
        elif keyword.lower() == "include":
            for pattern in words:
                # Relative ones begin where the file that is read by default lies (ssh_config(5)).
                base = os.path.dirname(_SYSTEM_CONFIG) if path.startswith("/etc/") else os.path.expanduser("~/.ssh")
                for included in sorted(glob.glob(os.path.join(base, os.path.expanduser(pattern)))):
                    yield from _host_words(included, seen)
