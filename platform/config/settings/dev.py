"""One machine, loopback only: what `./turnout up` runs. The key is made once and kept in the data folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from config import env

from .base import *  # noqa: F403
from .base import DATA_DIR


def _kept_secret(path: Path) -> str:
    """Return this installation's key, making it on the first start (readable by its owner alone)."""
    try:
        return path.read_text()
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = secrets.token_urlsafe(48)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process of the same start was quicker
        return path.read_text()
    with os.fdopen(handle, "w") as file:
        file.write(fresh)
    return fresh


SECRET_KEY = env.text("TURNOUT_SECRET_KEY") or _kept_secret(DATA_DIR / "secret_key")
DEBUG = env.flag("TURNOUT_DEBUG")
