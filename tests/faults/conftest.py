"""A stack of real processes for each test, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stack import Stack, flush_valkey


@pytest.fixture
def stack(transactional_db: None, people: Any, settings: Any, tmp_path: Path) -> Iterator[Stack]:
    """Nothing runs yet; the test starts what it needs."""
    settings.DATA_DIR = tmp_path
    settings.STORE_DIR = tmp_path / "store"
    settings.IMPORT_ROOTS = [tmp_path.resolve()]
    flush_valkey()
    stack = Stack(people, tmp_path)
    try:
        yield stack
    finally:
        stack.stop()
        # Shown with the report of a test that failed.
        print(stack.logs())
