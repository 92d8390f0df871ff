"""A real sshd on loopback, with keys, configuration and served directory of its own, for the tests and the demo.

The rule: nothing outside its own directory is read or written, and any user may run it (root, or somebody who can log
in only as himself). `ssh -F {ssh_config} box` reaches it without a question.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mux.errors import SharingError
from mux.rendezvous import putty
from tests.support import mounts, processes
from tests.support.ports import free_port
from tests.support.waiting import DEADLINE_S, holds_within

HOST = "box"
START_DEADLINE_S = 30.0
# Another process may take the free port between our look and sshd's bind.
START_ATTEMPTS = 5
# Where distributions put it: Debian and Ubuntu, Fedora, Arch, Alpine.
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
)


class SshdError(Exception):
    """The server could not be started; the text holds its log."""


def program(name: str) -> str:
    """The absolute path of an installed program; searches sbin too, which a user's PATH may leave out."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise SshdError(f"{name} is not installed; scripts/setup installs it")
    return found


def sftp_server() -> str:
    """The absolute path of OpenSSH's sftp-server."""
    for path in SFTP_SERVERS:
        if os.access(path, os.X_OK):
            return path
    raise SshdError(f"no sftp-server in {', '.join(SFTP_SERVERS)}; scripts/setup installs it")


@functools.cache
def openssh_version() -> tuple[int, int]:
    """(major, minor) of the installed OpenSSH."""
    command = [program("ssh"), "-V"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stderr
    match = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    if match is None:
        raise SshdError(f"ssh -V said {said!r}, which names no OpenSSH version")
    return int(match[1]), int(match[2])


def _account_is_locked(user: str) -> bool:
    """Whether sshd without PAM would refuse `user`: a password field that begins with '!'. Only root can tell."""
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)


class Sshd:
    """An sshd that is listening once constructed; a context manager.

    ssh_config    a complete client configuration with one Host, "box"
    port          on 127.0.0.1
    root          an empty directory to serve
    control_dir   short, private; where the configured ControlPath lies
    log           what sshd wrote
    """

    def __init__(
        self,
        *,
        max_sessions: int = 10,
        ciphers: str | None = None,
        sftp: str | None = "",
        accept_env: str = "LANG LC_*",
        extra: Sequence[str] = (),
    ) -> None:
        """`sftp`: the subsystem's command ("" for OpenSSH's sftp-server, None for no such subsystem);
        `extra`: further lines of sshd_config.
        """
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.directory = processes.make_directory()
        self.root = self.directory / "root"
        self.control_dir = self.directory / "c"
        self.runtime_dir = self.directory / "run"
        self.log = self.directory / "sshd.log"
        self.ssh_config = self.directory / "ssh_config"
        self._stopped = False
        for directory in (self.root, self.control_dir, self.runtime_dir):
            directory.mkdir(mode=0o700)
        try:
            self._make_keys()
            lines = self._server_lines(max_sessions, ciphers, sftp, accept_env, extra)
            self.port, self._listener = self._start(lines)
            self._ciphers = ciphers
            self._write_client_config(self.ssh_config, self.port)
        except BaseException:
            mounts.remove_tree(self.directory)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._listener.pid

    def _make_keys(self) -> None:
        for name in ("host_key", "user_key"):
            path = str(self.directory / name)
            command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path]
            subprocess.run(command, check=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
        shutil.copyfile(self.directory / "user_key.pub", self.directory / "authorized_keys")
        key = (self.directory / "host_key.pub").read_text()
        # By alias, so that the same file serves every port a proxy listens on.
        (self.directory / "known_hosts").write_text(f"{HOST} {key}")

    def _server_lines(
        self, max_sessions: int, ciphers: str | None, sftp: str | None, accept_env: str, extra: Sequence[str]
    ) -> list[str]:
        lines = [
            "ListenAddress 127.0.0.1",
            f"HostKey {self.directory}/host_key",
            f"AuthorizedKeysFile {self.directory}/authorized_keys",
            "PidFile none",
            # /tmp is writable for everybody, which strict modes hold against every key below it.
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            f"UsePAM {'yes' if _account_is_locked(self.user) else 'no'}",
            "UseDNS no",
            "PrintMotd no",
            "PrintLastLog no",
            "X11Forwarding no",
            "MaxStartups 200",
            "LogLevel VERBOSE",
            f"MaxSessions {max_sessions}",
            f"AcceptEnv {accept_env}",
            # sshd's shells are not the first: a bash that thinks so reads the user's ~/.bashrc, whatever is in there.
            "SetEnv SHLVL=2",
        ]
        # Since 9.8 sshd slows down an address that failed to log in, and all tests have the same address.
        if openssh_version() >= (9, 8):
            lines.append("PerSourcePenalties no")
        if ciphers is not None:
            lines.append(f"Ciphers {ciphers}")
        if sftp is not None:
            lines.append(f"Subsystem sftp {sftp or sftp_server()}")
        return [*lines, *extra]

    def _start(self, lines: Sequence[str]) -> tuple[int, subprocess.Popen[bytes]]:
        if os.getuid() == 0:
            # The directory sshd drops its privileges in; normally made by the service.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.directory / "sshd_config"
        for _ in range(START_ATTEMPTS):
            port = free_port()
            config.write_text("\n".join([f"Port {port}", *lines, ""]))
            with self.log.open("wb") as log:
                listener = subprocess.Popen(
                    [program("sshd"), "-D", "-e", "-f", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=processes.environment(self.runtime_dir),
                )
            if self._wait_listening(listener):
                return port, listener
        raise SshdError(f"sshd did not start; it said:\n{self.log_text()}")

    def _wait_listening(self, listener: subprocess.Popen[bytes]) -> bool:
        """True when it listens, False when the port was taken. Its own word is awaited, not a connection accepted."""

        def listens() -> bool:
            return "Server listening on 127.0.0.1" in self.log_text()

        if not holds_within(START_DEADLINE_S, lambda: listens() or listener.poll() is not None):
            listener.kill()
            listener.wait()
            raise SshdError(f"sshd did not listen within {START_DEADLINE_S:g} s; it said:\n{self.log_text()}")
        if listens():
            return True
        if "Address already in use" in self.log_text():
            return False
        raise SshdError(f"sshd ended with {listener.returncode}; it said:\n{self.log_text()}")

    def _write_client_config(self, path: Path, port: int) -> None:
        lines = [
            f"Host {HOST}",
            "HostName 127.0.0.1",
            f"HostKeyAlias {HOST}",
            f"Port {port}",
            f"User {self.user}",
            f"IdentityFile {self.directory}/user_key",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            "PreferredAuthentications publickey",
            f"UserKnownHostsFile {self.directory}/known_hosts",
            "GlobalKnownHostsFile /dev/null",
            "StrictHostKeyChecking yes",
            "UpdateHostKeys no",
            f"ControlPath {self.control_dir}/%C",
            "ConnectTimeout 30",
        ]
        if self._ciphers is not None:
            lines.append(f"Ciphers {self._ciphers}")
        path.write_text("\n    ".join(lines) + "\n")

    def via(self, port: int) -> Path:
        """A client configuration like `ssh_config` that goes through 127.0.0.1:`port` (a proxy to this server)."""
        path = self.directory / f"ssh_config.{port}"
        self._write_client_config(path, port)
        return path

    def environment(self) -> dict[str, str]:
        """The environment for clients of this server; XDG_RUNTIME_DIR is a directory of its own."""
        return processes.environment(self.runtime_dir)

    def ssh(
        self, *arguments: str, config: Path | None = None, timeout_s: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`ssh -F config ARGUMENTS`; the host ("box") is the caller's to name. With `check` a failure raises."""
        done = subprocess.run(
            [program("ssh"), "-F", str(config or self.ssh_config), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout_s,
            env=self.environment(),
        )
        if check and done.returncode != 0:
            said = done.stderr.strip()
            raise SshdError(f"ssh {' '.join(arguments)} ended with {done.returncode}: {said}\n{self.log_text()}")
        return done

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def sessions(self) -> list[processes.Process]:
        """Every process below the listener: its connections and what runs in them."""
        return [process for process in processes.descendants(self.pid) if process.running]

    def sftp_servers(self) -> list[processes.Process]:
        """The running sftp-server processes of this server."""
        return [process for process in self.sessions() if "sftp-server" in process.command.split(" ")[0]]

    def kill(self) -> None:
        """The server is gone at once with all its connections, as after a crash; the directory stays."""
        doomed = [*processes.descendants(self.pid), *filter(None, [processes.look(self.pid)])]
        for process in doomed:
            processes.send_signal(process, signal.SIGKILL)
        self._listener.wait(timeout=START_DEADLINE_S)
        processes.wait_ended(doomed, START_DEADLINE_S)

    def stop(self) -> None:
        """End the server, its connections and their sessions, and remove its directory. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        doomed = processes.descendants(self.pid)
        if self._listener.poll() is None:
            self._listener.terminate()
            self._listener.wait(timeout=START_DEADLINE_S)
        stuck = processes.end(doomed)
        mounts.remove_tree(self.directory)
        self._remove_putty_places()
        if stuck:
            raise SshdError("these outlived SIGKILL: " + "; ".join(map(str, stuck)))

    def _remove_putty_places(self) -> None:
        """Upstreams that were killed, and PuTTYs that merely looked, leave a directory for each name of the server."""
        for host in (HOST, "127.0.0.1", "localhost"):
            for user in (self.user, None):
                try:
                    directory = putty.directory_of(putty.connection_name(host, user, self.port))
                except (putty.NotThere, SharingError):
                    continue
                shutil.rmtree(directory, ignore_errors=True)
