"""Families that transformers lacks, against models put together from its parts: GLaM's layers and PaLM's block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.model.families import config_of, spec_of
from moe_core.model.init import random_decoder
from tests.moe_core.model.test_family_parity import IDS, TOLERANCE, relative
from tests.moe_core.tiny import STD, tiny_family

transformers = pytest.importorskip("transformers")


def twin_of(model: Any, **changes: Any) -> Any:
    """A Mixtral of transformers with the sizes of one of ours and none of its weights yet."""
    spec = model.spec
    config = transformers.MixtralConfig(
        vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_hidden_layers, num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads, head_dim=spec.head_dim, rms_norm_eps=spec.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        num_local_experts=spec.moe.num_experts, num_experts_per_tok=spec.moe.top_k,
        tie_word_embeddings=spec.tie_word_embeddings, bos_token_id=None, eos_token_id=None, **changes,
    )  # fmt: skip
    return transformers.MixtralForCausalLM._from_config(config, attn_implementation="eager").eval()


def fill(theirs: Any, directory: Path) -> None:
    """Give it the tensors that we saved, packed as transformers keeps them."""
    from safetensors.torch import load_file

    saved = {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}
    state = {}
    for name, old in theirs.state_dict().items():
        if ".experts." in name:
            layer, parts = name.split(".experts.")[0], range(old.shape[0])
            kinds = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
            rows = [torch.cat([saved[f"{layer}.experts.{e}.{k}.weight"] for k in kinds]) for e in parts]
            state[name] = torch.stack(rows)
        elif name in saved or not name.startswith("lm_head"):
            state[name] = saved[name]
    theirs.load_state_dict(state, strict=False)
    assert set(saved) <= set(state) | {name for name in saved if ".experts." in name}


@torch.no_grad()
def test_glam_equals_mixtral_and_llama_layers_in_turn(tmp_path: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    ours = random_decoder(tiny_family("glam_moe"), 5, STD)
    moe_core.save(ours, tmp_path / "m")
    theirs = twin_of(ours, hidden_act="gelu")
    for number, layer in enumerate(theirs.model.layers):
        if number not in ours.spec.moe.moe_layers:
            theirs.config.mlp_bias = False
            layer.mlp = LlamaMLP(theirs.config)
    fill(theirs, tmp_path / "m")
    assert ours.spec.moe.moe_layers == (1, 3)
    assert relative(moe_core.load(tmp_path / "m")(IDS), theirs(IDS).logits) <= TOLERANCE
    experts = ours.layers[1].mlp.experts
    experts.down_EDF[[0, 1]] = experts.down_EDF[[1, 0]]
    assert relative(ours(IDS), theirs(IDS).logits) > 1000 * TOLERANCE


@torch.no_grad()
def test_palm_equals_mixtral_layers_side_by_side(tmp_path: Path) -> None:
    ours = random_decoder(tiny_family("palm_moe"), 5, STD)
    moe_core.save(ours, tmp_path / "m")
    theirs = twin_of(ours)

    def side_by_side(layer: Any) -> Any:
        def forward(hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
            normed = layer.input_layernorm(hidden_states)
            return hidden_states + layer.self_attn(hidden_states=normed, **options)[0] + layer.mlp(normed)

        return forward

    for layer in theirs.model.layers:
        layer.forward = side_by_side(layer)
        layer.post_attention_layernorm = torch.nn.Identity()
    fill(theirs, tmp_path / "m")
    theirs.tie_weights()
    assert relative(moe_core.load(tmp_path / "m")(IDS), theirs(IDS).logits) <= TOLERANCE
    experts = ours.layers[0].mlp.experts
    experts.down_EDF[[0, 1]] = experts.down_EDF[[1, 0]]
    assert relative(ours(IDS), theirs(IDS).logits) > 1000 * TOLERANCE


@pytest.mark.parametrize("family", ["glam_moe", "palm_moe"])
def test_their_configuration_survives(family: str) -> None:
    spec = tiny_family(family)
    assert spec_of(config_of(spec, "float32")) == spec
