"""Hosts that are containers, on an internal network: nothing of them reaches the machine's own network.

The rule: every command inside a host has a deadline, and everything made here is removed by name when it ends. Run by
`docker/test`, which sees that there is an engine and that the images are built.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
COMMAND_DEADLINE_S = 60.0
START_DEADLINE_S = 30.0
POLL_S = 0.1
# What a client host needs to mount.
MOUNTING = ["--device", "/dev/fuse", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"]


class HostError(AssertionError):
    """A command that has to succeed did not; the text holds what it said."""


def docker(*arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of the engine's client."""
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S
    )
    if check and done.returncode != 0:
        raise HostError(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_for(condition: Callable[[], bool], what: str, within_s: float = START_DEADLINE_S) -> None:
    """Poll what another host does until it is true."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise HostError(f"waited {within_s:g} s for {what}")
        time.sleep(POLL_S)


class Host:
    """One container that runs."""

    def __init__(self, name: str, alias: str, image: str, network: str, keys: Path, options: list[str]) -> None:
        self.name, self.alias, self.network = name, alias, network
        docker(
            "run", "--detach", "--init", "--name", name, "--hostname", alias, "--network", network,
            "--network-alias", alias, "--volume", f"{keys}:/keys:ro", *options, image,
        )  # fmt: skip

    def run(
        self, command: str, *, user: str = "ann", check: bool = True, stdin: str | None = None, deadline_s: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """A shell command inside, in the user's home. It is ended there after `deadline_s`, with 124 or 137."""
        home = "/root" if user == "root" else f"/home/{user}"
        bounded = ["timeout", "--kill-after=5", f"{deadline_s:g}", "bash", "-c", command]
        where = ["exec", "-i", "--user", user, "--workdir", home, "--env", f"HOME={home}", self.name]
        done = docker(*where, *bounded, stdin=stdin, check=False)
        if check and done.returncode != 0:
            raise HostError(f"{self.alias}: {command}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}")
        return done

    def start(self, command: str, *, user: str = "ann") -> subprocess.Popen[str]:
        """The same, beside what the test goes on with."""
        home = "/root" if user == "root" else f"/home/{user}"
        where = ["exec", "-i", "--user", user, "--workdir", home, "--env", f"HOME={home}", self.name]
        return subprocess.Popen(
            ["docker", *where, "timeout", "--kill-after=5", "120", "bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self) -> str:
        done = docker("logs", "--tail", "30", self.name, check=False)
        return done.stdout + done.stderr

    def cut_off(self) -> None:
        """Take it from the network: nothing it sends arrives, and nobody is told."""
        docker("network", "disconnect", self.network, self.name)

    def bring_back(self) -> None:
        docker("network", "connect", "--alias", self.alias, self.network, self.name)

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self.name, check=False)


class Hosts:
    """A server and two clients; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.network = f"smx-{os.getpid()}"
        self._made: list[Host] = []
        self._keys = directory / "keys"
        subprocess.run([str(ROOT / "docker" / "keys"), str(self._keys)], check=True, timeout=COMMAND_DEADLINE_S)
        docker("network", "create", "--internal", self.network)
        try:
            self.server = self._host("server", "sshmuxfs-server", [])
            self.client = self._host("client", "sshmuxfs-client", MOUNTING)
            self.other = self._host("other", "sshmuxfs-client", MOUNTING)
            wait_for(lambda: "Server listening" in self.server.log(), "sshd")
            wait_for(lambda: all("ready" in client.log() for client in (self.client, self.other)), "the clients")
        except BaseException:
            self.close()
            raise

    def _host(self, alias: str, image: str, options: list[str]) -> Host:
        host = Host(f"{self.network}-{alias}", alias, image, self.network, self._keys, options)
        self._made.append(host)
        return host

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for host in self._made:
            host.remove()
        docker("network", "rm", self.network, check=False)

    def connections(self, user: str = "ann") -> int:
        """How many authenticated connections of `user` the server holds."""
        lines = self.server.run("ps -eo args", user="root").stdout.splitlines()
        return sum(line.startswith(f"sshd: {user} [priv]") for line in lines)
