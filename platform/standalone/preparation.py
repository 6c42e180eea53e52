"""Runs `standalone.prepare` in a process of its own, and remembers for which migrations it last ran."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standalone.errors import ServiceFailed
from standalone.paths import ROOT
from standalone.processes import die_with_parent
from standalone.terminal import note

RECORD_NAME = "migrated"


class Preparation:
    """Brings the database up to date. Where nothing has changed since last time, the web need not wait for it."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str], *, database_is_ours: bool) -> None:
        """Name the database; nothing runs yet."""
        self.record = data_dir / RECORD_NAME
        self.environment = dict(environment)
        self.database_is_ours = database_is_ours
        self.process: subprocess.Popen[str] | None = None

    def is_formality(self) -> bool:
        """True when this very database has had these very migrations already."""
        return self.database_is_ours and self.record.exists() and self.record.read_text() == fingerprint()

    def start(self) -> None:
        """Begin."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "standalone.prepare"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
            preexec_fn=die_with_parent(),
        )

    def finish(self) -> str | None:
        """Wait for the end; return the first admin's token while there is no admin."""
        assert self.process is not None
        output, errors = self.process.communicate()
        if self.process.returncode != 0:
            raise ServiceFailed(f"the database could not be brought up to date:\n{errors[-3000:]}")
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        applied = answer["migrations"]
        note(f"Database ready ({applied} migrations applied)" if applied else "Database ready")
        if self.database_is_ours:
            self.record.write_text(fingerprint())
        token: str | None = answer["setup_token"]
        return token


def fingerprint() -> str:
    """Return a hash of everything that decides which migrations there are."""
    digest = hashlib.sha256((ROOT / "requirements" / "lock.txt").read_bytes())
    for path in sorted((ROOT / "platform").glob("*/migrations/*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()
