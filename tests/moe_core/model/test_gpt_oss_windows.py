"""A gpt-oss in which no layer has a window: transformers wants the number all the same, and ours writes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import moe_core
from moe_core.model.init import random_decoder
from tests.moe_core.tiny import STD, tiny_family

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("window", [7, None])
def test_transformers_runs_what_is_saved_of_a_model_without_windows(
    tmp_path: Path, window: int | None
) -> None:
    spec = tiny_family("gpt_oss", layer_types=["full_attention"] * 3, sliding_window=window)
    assert spec.attention.sliding_window is None
    model = random_decoder(spec, 3, STD)
    moe_core.save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sliding_window"] == 128
    assert moe_core.load(tmp_path).spec == spec
    theirs = transformers.GptOssForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, wanted = model(ids), theirs(ids).logits
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5
