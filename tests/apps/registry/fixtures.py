"""A store of its own for each test, and small real versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_core.spec import LayoutSpec, ModelSpec
from registry.models import ModelVersion
from registry.services import model_find_or_create, version_create

DENSE = ModelSpec(
    family="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)


@pytest.fixture(autouse=True)
def store_dir(settings: Any, tmp_path: Path) -> Path:
    """Keep the objects of each test apart."""
    settings.STORE_DIR = tmp_path / "store"
    return settings.STORE_DIR


def make_version(people: Any, tmp_path: Path, *, who: str = "owner", name: str = "Tiny", spec: ModelSpec = DENSE,
                 **more: Any) -> ModelVersion:  # fmt: skip
    """Register a version whose directory holds a config and some bytes."""
    caller = getattr(people, who)
    folder = tmp_path / f"model-{who}-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(spec.model_dump_json(), "utf-8")
    (folder / "trunk.safetensors").write_bytes(f"weights of {name}".encode() * 100)
    model = model_find_or_create(team=caller.team, name=name, created_by=caller.user)
    return version_create(
        caller_team=caller.team, model=model, spec=spec, inspection={"layers": spec.num_hidden_layers},
        directory=folder, created_by=caller.user, **more,
    )  # fmt: skip


def moe_spec(**layout: Any) -> ModelSpec:
    """A mixture laid over DENSE."""
    return LayoutSpec(**{"moe_layers": (1, 3), **layout}).applied_to(DENSE)
