"""What config.json leaves out is read as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.model.families import spec_of

transformers = pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import attention_of, reference  # noqa: E402

# Past the lengths that the tiny models' yarn was trained on.
IDS = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-6


def saved_with(case: str, directory: Path, keys: dict[str, Any]) -> Path:
    """A random model of a case, whose config.json says of positions what `keys` do and nothing else."""
    reference(case).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"]
    (directory / "config.json").write_text(json.dumps(config | keys))
    return directory


@torch.no_grad()
def check_equal(directory: Path, model_type: str) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention_of(model_type)
    ).eval()
    wanted = theirs(IDS).logits
    assert float((moe_core.load(directory)(IDS) - wanted).norm() / wanted.norm()) < TOLERANCE


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "yarn"),
        ({"rope_theta": 5000.0}, "yarn"),
        ({"rope_theta": 5000.0, "rope_scaling": None}, "yarn"),
        ({"rope_parameters": None}, "yarn"),
        ({"rope_parameters": {"rope_type": "default"}}, "plain"),
        ({"rope_parameters": {"rope_theta": 5000.0}}, "plain"),
    ],
)
def test_gpt_oss_stretches_positions_unless_a_key_says_that_it_does_not(
    tmp_path: Path, keys: dict[str, Any], kind: str
) -> None:
    directory = saved_with("gpt_oss", tmp_path, keys)
    spec = spec_of(json.loads((directory / "config.json").read_text()))
    assert spec.rope.kind == kind
    assert spec.rope_theta == (5000.0 if "5000" in str(keys) else 150_000.0)
    check_equal(directory, "gpt_oss")
