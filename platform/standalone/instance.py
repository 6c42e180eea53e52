"""The record of the instance that runs in a data folder: one at a time, found by others through a file."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from standalone.errors import StandaloneError

RECORD_NAME = "instance.json"
LOCK_NAME = "instance.lock"


@dataclass(slots=True)
class Instance:
    """What another command must know to speak to a running instance."""

    pid: int
    address: str
    environment: dict[str, str] = field(default_factory=dict)


class InstanceLock:
    """Held by the supervisor for as long as it lives; the kernel lets go of it when the supervisor dies."""

    def __init__(self, data_dir: Path) -> None:
        """Name the data folder; nothing is taken yet."""
        self.data_dir = data_dir
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the folder, or say who has it."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        file = (self.data_dir / LOCK_NAME).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            running = read_record(self.data_dir)
            where = f" at {running.address} (pid {running.pid})" if running else ""
            raise StandaloneError(
                f"an instance already runs in {self.data_dir}{where}. Stop it with ./turnout stop, "
                "or set TURNOUT_DATA_DIR and TURNOUT_PORT for a second one."
            ) from None
        self._file = file

    def publish(self, instance: Instance) -> None:
        """Write the record, readable by its owner alone."""
        path = self.data_dir / RECORD_NAME
        handle = os.open(path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(instance), file)
        path.with_suffix(".tmp").replace(path)

    def release(self) -> None:
        """Remove the record and let go."""
        if self._file is not None:
            (self.data_dir / RECORD_NAME).unlink(missing_ok=True)
            self._file.close()
            self._file = None


def running_instance(data_dir: Path) -> Instance | None:
    """Return the live instance of a data folder, if there is one."""
    try:
        with (data_dir / LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return read_record(data_dir)
    return None


def read_record(data_dir: Path) -> Instance | None:
    """Return what the record says, live or not."""
    try:
        return Instance(**json.loads((data_dir / RECORD_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
