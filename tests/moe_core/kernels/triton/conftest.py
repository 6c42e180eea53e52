"""The Triton kernels on the GPU that is here, or else in Triton's interpreter; every fresh buffer is full of NaN.

The interpreter must be asked for before Triton is imported: `tests/conftest.py` does it where no GPU is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_buffers(monkeypatch) -> Iterator[None]:
    """torch fills what it allocates with NaN, and integers with their largest value: who reads it, shows it."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
