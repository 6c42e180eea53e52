"""Tests: real PostgreSQL and Valkey, short leases, quick password hashing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from config import env

from .base import *  # noqa: F403
from .base import DATABASES

SECRET_KEY = "only-for-tests-" + "x" * 40
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DATA_DIR = env.folder("TURNOUT_DATA_DIR", Path(tempfile.gettempdir()) / "turnout-tests")
STORE_DIR = DATA_DIR / "store"
RUN_DIR = DATA_DIR / "run"
STATIC_ROOT = DATA_DIR / "static"
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
LEASE_TTL_S = 2
# A pooled connection would outlive the test database.
DATABASES["default"]["OPTIONS"].pop("pool", None)
