"""Every family can be tuned: the cut decoder is the whole one, a lone expert is the expert, and a run goes through."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from moe_core.checkpoint.store import load, save
from moe_core.model import Decoder
from moe_core.model.attention import DenseCausal
from moe_core.model.init import random_decoder
from moe_core.routers import Routing
from moe_core.training import run_job
from moe_core.training.recipes.specialise import LoneExpert
from moe_core.training.trunk import CutDecoder
from tests.moe_core.tiny import FAMILIES, STD, tiny_family, tiny_mixtral, tiny_turnout
from tests.moe_core.training.world import RecordingIO, byte_tokenizer, tune_spec

IDS = torch.arange(1, 25).view(2, 12)
MIXTURES = ("mixtral", "turnout_moe", *FAMILIES)


def model_of(family: str, **changes: int) -> Decoder:
    spec = {"mixtral": tiny_mixtral, "turnout_moe": tiny_turnout}.get(family, lambda: tiny_family(family))()
    return random_decoder(spec.model_copy(update=changes), 3, STD)


@torch.no_grad()
@pytest.mark.parametrize("family", MIXTURES)
def test_the_two_halves_of_a_decoder_are_the_whole(family: str) -> None:
    model = model_of(family)
    cut = CutDecoder(model)
    whole_TD = model.hidden(IDS.flatten(), torch.arange(12).repeat(2), DenseCausal(2, 12))
    halves_TD = cut.above(cut.below(IDS), 2, 12, lambda mlp, x_TD: mlp(x_TD, None))
    assert torch.equal(halves_TD, whole_TD)


@torch.no_grad()
@pytest.mark.parametrize("family", MIXTURES)
def test_a_lone_expert_computes_what_the_expert_computes(family: str) -> None:
    model = model_of(family)
    layers = list(model.moe_layers())
    lone = LoneExpert(layers, 1)
    x_TD = torch.randn(7, model.spec.hidden_size, generator=torch.Generator().manual_seed(1))
    ones_T1 = torch.ones(7, 1)
    routing = Routing(torch.ones(7, 1, dtype=torch.int64), ones_T1, ones_T1, ones_T1)
    for mlp in layers:
        expected_TD = mlp.with_shared(x_TD, mlp.experts(x_TD, routing))
        assert torch.allclose(lone.feed_forward(mlp, x_TD), expected_TD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuning_run_teaches_experts_and_routers_and_saves_the_family(
    family: str, world: Path, tmp_path: Path
) -> None:
    base = tmp_path / "model"
    model = model_of(family, vocab_size=byte_tokenizer().get_vocab_size())
    save(model, base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(world / "model" / name, base / name)
    io = RecordingIO(world, tmp_path)
    io.inputs = {**io.inputs, "model": base}
    brief = {"specialise_steps": 1, "route_steps": 1, "held_out_windows": 2, "tokens_per_batch": 64}
    result = run_job("tune", tune_spec(layout=None, control=False, **brief), io)
    tuned = load(io.out_dir)
    assert tuned.spec == model.spec
    assert result["spec"]["family"] == family
    before = dict(model.named_parameters())
    changed = {name for name, tensor in tuned.named_parameters() if not torch.equal(tensor, before[name])}
    learnt = {"mlp.router.weight", "mlp.experts.gate_up_E2FD", "mlp.experts.down_EDF"}
    if model.spec.moe.expert_bias:
        learnt |= {"mlp.experts.gate_up_bias_E2F", "mlp.experts.down_bias_ED"}
    gate = model.spec.moe.gate_tensors(model.spec.hidden_size, model.spec.vocab_size)
    learnt |= {f"mlp.router.{tensor.name}" for tensor in gate if tensor.learns}
    assert changed == {f"layers.{layer}.{name}" for layer in model.spec.moe.moe_layers for name in learnt}
