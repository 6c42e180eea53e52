"""Where one installation keeps its things."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 8000


def data_dir() -> Path:
    """Return the data folder: TURNOUT_DATA_DIR, else ./var in the checkout."""
    return Path(os.environ.get("TURNOUT_DATA_DIR") or ROOT / "var").expanduser().resolve()
