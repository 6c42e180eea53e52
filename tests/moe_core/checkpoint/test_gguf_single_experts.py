"""The first GGUF files of Mixtral, with a tensor for each expert, are read as later ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moe_core
from moe_core.errors import FormatError

pytest.importorskip("transformers")
pytest.importorskip("gguf")

from tests.moe_core.checkpoint.gguf_models import Tensors, write_gguf
from tests.moe_core.model.hf_families import reference
from tests.moe_core.model.test_family_parity import IDS


def one_for_each_expert(tensors: Tensors) -> Tensors:
    """As Mixtral's files had it before April 2024: blk.0.ffn_gate.0.weight and so on."""
    single: Tensors = {}
    for name, values in tensors.items():
        if "_exps." not in name:
            single[name] = values
            continue
        single |= {name.replace("_exps", f".{expert}"): one for expert, one in enumerate(values)}
    return single


@torch.no_grad()
def test_the_first_files_of_mixtral_have_a_tensor_for_each_expert(tmp_path: Path) -> None:
    theirs = reference("mixtral")
    old = write_gguf(tmp_path / "old.gguf", theirs, change=one_for_each_expert)
    assert torch.equal(moe_core.load(old)(IDS), moe_core.load(write_gguf(tmp_path / "new.gguf", theirs))(IDS))

    def without_one(tensors: Tensors) -> Tensors:
        return {
            name: one for name, one in one_for_each_expert(tensors).items() if name != "blk.1.ffn_up.2.weight"
        }

    with pytest.raises(FormatError, match=r"lacks 1 tensors, first blk\.1\.ffn_up\.2\.weight"):
        moe_core.load(write_gguf(tmp_path / "less.gguf", theirs, change=without_one))
