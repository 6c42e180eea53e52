"""PostgreSQL and Valkey together: taken from the environment when given there, else started here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from standalone.postgres import PostgresServer
from standalone.rundir import run_dir_for, throwaway_dir
from standalone.valkey import ValkeyServer


@dataclass(slots=True)
class Services:
    """The two services of one instance; `None` where an address from outside is used."""

    data_dir: Path
    run_dir: Path
    postgres: PostgresServer | None = None
    valkey: ValkeyServer | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def plan(
        cls, data_dir: Path, run_dir: Path, given: Mapping[str, str], *, throwaway: bool = False
    ) -> Services:
        """Decide what to start: nothing that `given` names already."""
        services = cls(data_dir, run_dir)
        logs = data_dir / "log"
        if not given.get("DATABASE_URL"):
            services.postgres = PostgresServer(
                data_dir / "postgres", run_dir, logs / "postgres.log", throwaway=throwaway
            )
        if not given.get("REDIS_URL"):
            services.valkey = ValkeyServer(run_dir, logs / "valkey.log")
        services.environment = {
            "DATABASE_URL": services.postgres.url if services.postgres else given["DATABASE_URL"],
            "REDIS_URL": services.valkey.url if services.valkey else given["REDIS_URL"],
            "TURNOUT_DATA_DIR": str(data_dir),
            "TURNOUT_RUN_DIR": str(run_dir),
        }
        return services

    def start(self) -> None:
        """Start what was planned, and stop it all when a part fails."""
        (self.data_dir / "static").mkdir(
            parents=True, exist_ok=True
        )  # the static file server wants it to exist
        try:
            if self.postgres:
                self.postgres.start()
            if self.valkey:
                self.valkey.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop what was started, in reverse order, and remove the sockets."""
        if self.valkey:
            self.valkey.stop()
        if self.postgres:
            self.postgres.stop()
        if self.run_dir != self.data_dir:
            shutil.rmtree(self.run_dir, ignore_errors=True)


def services_for(data_dir: Path, given: Mapping[str, str] | None = None) -> Services:
    """Plan the services that keep their data in `data_dir`."""
    chosen = os.environ if given is None else given
    return Services.plan(data_dir, run_dir_for(data_dir, chosen.get("TURNOUT_RUN_DIR")), chosen)


@contextmanager
def throwaway_services(given: Mapping[str, str] | None = None) -> Iterator[Services]:
    """Run services in a fresh temp folder and remove it at the end; any number of these live side by side."""
    path, lock = throwaway_dir()
    services = Services.plan(path, path, os.environ if given is None else given, throwaway=True)
    try:
        services.start()
        yield services
    finally:
        services.stop()
        if services.postgres:
            shutil.rmtree(services.postgres.data_dir, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        lock.close()
