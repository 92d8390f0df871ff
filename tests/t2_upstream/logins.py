"""Logging in at a server of the tests, for whoever tests how that goes: in this process, or on a terminal of its own.

`python -m tests.t2_upstream.logins` is the child on that terminal: its arguments are a configuration file and options,
it logs in at `box`, and says how that ended.
"""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mux.errors import SharingError
from mux.rendezvous.target import SshOptions, resolve
from mux.upstream.configuration import settings_of
from mux.upstream.engine import Engine
from mux.upstream.login import login
from mux.upstream.prompts import Prompts
from mux.upstream.routes import Facts
from mux.upstream.settings import Settings
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until

DEADLINE_S = 60.0


def settings_for(config: Path, *options: str) -> Settings:
    """What `ssh -F config -o OPTION... box` would do."""
    return settings_of(resolve(HOST, None, SshOptions(config_file=str(config), options=options)))


class Said(list[str]):
    """Lines that a login said."""

    def text(self) -> str:
        return "\n".join(self)


async def in_and_out(settings: Settings, prompts: Prompts, said: Said) -> Facts:
    """Log in, see that the connection is alive, leave."""
    engine: Engine = await login(settings, prompts, said.append)
    await engine.measure(DEADLINE_S)
    # What the server tells of its keys came before that answer, and its proof comes before this one.
    await engine.measure(DEADLINE_S)
    facts = engine.facts()
    engine.disconnect("done")
    await engine.closed()
    return facts


def log_in(
    config: Path,
    *options: str,
    said: Said | None = None,
    password: str | None = None,
    batch: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Facts:
    """Log in at `box` with these options; nobody is at the terminal. Raises what `login` raises."""
    prompts = Prompts(batch=batch, password=password, environment=environment or {}, terminal="/nonexistent")
    lines = Said() if said is None else said

    async def main() -> Facts:
        async with asyncio.timeout(DEADLINE_S):
            return await in_and_out(settings_for(config, *options), prompts, lines)

    return asyncio.run(main())


def refused(
    config: Path,
    *options: str,
    said: Said | None = None,
    password: str | None = None,
    batch: bool = False,
    environment: Mapping[str, str] | None = None,
) -> SharingError:
    """`log_in` that has to fail: what it raised."""
    try:
        log_in(config, *options, said=said, password=password, batch=batch, environment=environment)
    except SharingError as error:
        return error
    raise AssertionError("the login did not fail")


def keygen(path: Path, *arguments: str, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new key pair at `path`."""
    if kind == "rsa" and "-b" not in arguments:
        arguments = ("-b", "2048", *arguments)  # the smallest that is taken: it takes long enough to make
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path), *arguments]
    subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
    return path


def sign(authority: Path, public: Path, *arguments: str) -> Path:
    """Certify `public` (a .pub file); returns the certificate."""
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *arguments, str(public)]
    subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return public.with_name(public.name.removesuffix(".pub") + "-cert.pub")


def askpass(directory: Path, *answers: str, status: int = 0) -> dict[str, str]:
    """An askpass that gives these answers in turn and writes down what it was asked. Returns the environment for it."""
    for number, answer in enumerate(answers):
        (directory / f"answer{number}").write_text(f"{answer}\n")
    program = directory / "askpass"
    program.write_text(
        f"""#!/bin/sh
cd {directory} || exit 9
count=$(wc -l < asked 2>/dev/null || echo 0)
echo "$SSH_ASKPASS_PROMPT|$1" | tr '\\n' '~' >> asked
echo >> asked
[ -f "answer$count" ] || exit 1
cat "answer$count"
exit {status}
"""
    )
    program.chmod(0o755)
    (directory / "asked").write_text("")
    return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force", "PATH": os.environ["PATH"]}


def asked(directory: Path) -> list[str]:
    """What that askpass was asked: `hint|question`, line ends as `~`."""
    return [line.removesuffix("~") for line in (directory / "asked").read_text().splitlines()]


class Agent:
    """A real ssh-agent with a socket of its own; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "agent")
        self._process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", self.path], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        wait_until(lambda: self._process.poll() is not None or self.run("-l").returncode <= 1, "ssh-agent starts")
        assert self._process.poll() is None, "ssh-agent did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=DEADLINE_S)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ssh-add ARGUMENTS`."""
        environment = {**os.environ, "SSH_AUTH_SOCK": self.path}
        return subprocess.run(
            ["ssh-add", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )

    def add(self, path: Path, *arguments: str) -> None:
        """Hand a key to the agent."""
        done = self.run("-q", *arguments, str(path))
        assert done.returncode == 0, done.stderr


class OnTerminal:
    """A program with a pseudo-terminal of its own as its controlling one; a context manager.

    Every wait has a deadline, and fails with what was shown so far.

    modes_before  all of the terminal's settings, from before the program could change them
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.modes_before = list(termios.tcgetattr(slave))
        self._shown = b""
        self._seen = 0
        try:
            self.process = subprocess.Popen(
                command,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_take_terminal,
            )
            self._slave = slave
        except BaseException:
            os.close(slave)
            os.close(self.master)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=DEADLINE_S)
        os.close(self._slave)
        os.close(self.master)

    @property
    def text(self) -> str:
        return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def expect(self, text: str) -> str:
        """Wait for `text` behind what was awaited before; returns what came up to its end."""
        until = time.monotonic() + DEADLINE_S
        wanted = text.replace("\n", "\r\n").encode()
        while (at := self._shown.find(wanted, self._seen)) < 0:
            ready, _, _ = select.select([self.master], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} did not come; shown:\n{self.text}"
            self._shown += os.read(self.master, 65536)
        came, self._seen = self._shown[self._seen : at + len(wanted)], at + len(wanted)
        return came.decode(errors="replace").replace("\r\n", "\n")

    def rest(self) -> None:
        """Take what is left to read once the program has ended."""
        while select.select([self.master], [], [], 0)[0]:
            self._shown += os.read(self.master, 65536)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def modes(self) -> list[object]:
        """All of the terminal's settings."""
        return list(termios.tcgetattr(self._slave))

    def ended(self) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(timeout=DEADLINE_S)


def _take_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def on_terminal(sshd: Sshd, *options: str, config: Path | None = None, **environment: str) -> OnTerminal:
    """A login at `box` by a process on a terminal; it says `IN` or `FAILED code message` in the end."""
    command = [sys.executable, "-m", __name__, str(config or sshd.ssh_config), *options]
    return OnTerminal(command, {**sshd.environment(), **environment})


def main() -> int:
    """The child on the terminal."""
    config, *options = sys.argv[1:]
    try:
        asyncio.run(in_and_out(settings_for(Path(config), *options), Prompts(), _Printed()))
    except SharingError as error:
        print(f"FAILED {error.exit_code} {error.message} [{error.hint}]")
        return int(error.exit_code)
    print("IN")
    return 0


class _Printed(Said):
    def append(self, line: str) -> None:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
