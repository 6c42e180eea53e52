"""Every family against transformers: logits, routing, greedy text, files both ways; and each comparison can fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_core
from moe_core.checkpoint.hf import import_hf
from moe_core.model import Decoder, RoutingContext
from moe_core.routers import Routing

transformers = pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import CASES, chosen_experts, read_back, reference, tensors_of  # noqa: E402

IDS = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(7))
TOLERANCE = 1e-6
MOE_CASES = [case for case in CASES if not case.startswith("llama")]
NUM_GREEDY = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """A transformers model, the directory that it was saved in, and ours read straight from there."""

    theirs: Any
    directory: Path
    ours: Decoder
    logits: Tensor


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    theirs = reference(request.param)
    directory = tmp_path_factory.mktemp("family")
    theirs.save_pretrained(directory)
    with torch.no_grad():
        return Pair(theirs, directory, moe_core.load(directory), theirs(IDS).logits)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def test_logits_equal_and_a_swapped_expert_shows(pair: Pair) -> None:
    assert relative(pair.ours(IDS), pair.logits) <= TOLERANCE
    for moe in pair.ours.moe_layers():
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]
        assert relative(pair.ours(IDS), pair.logits) > 1000 * TOLERANCE
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]


@torch.no_grad()
def test_every_token_goes_to_the_experts_that_transformers_chooses(pair: Pair) -> None:
    seen: dict[int, Routing] = {}
    pair.ours(IDS, RoutingContext(observe=lambda layer, routing: seen.update({layer: routing})))
    decisions = chosen_experts(pair.theirs, IDS)
    assert sorted(seen) == [moe.layer for moe in pair.ours.moe_layers()]
    for (ids_TK, weights_TK), layer in zip(decisions, sorted(seen), strict=True):
        order_TK = seen[layer].expert_ids_TK.argsort(-1)
        assert torch.equal(seen[layer].expert_ids_TK.gather(-1, order_TK), ids_TK)
        assert torch.allclose(seen[layer].weights_TK.gather(-1, order_TK), weights_TK, rtol=1e-5, atol=1e-6)


def test_greedy_text_is_the_same(pair: Pair) -> None:
    prompt = IDS[:1, :9]
    told = pair.theirs.generate(prompt, max_new_tokens=NUM_GREEDY, do_sample=False, pad_token_id=0)
    assert pair.ours.generate(prompt[0].tolist(), NUM_GREEDY) == told[0, 9:].tolist()


@torch.no_grad()
def test_files_go_both_ways(pair: Pair, tmp_path: Path) -> None:
    moe_core.save(pair.ours, tmp_path / "ours")
    again = read_back(tmp_path / "ours", pair.theirs)
    assert again.config.model_type == pair.theirs.config.model_type
    assert relative(again(IDS).logits, pair.logits) <= TOLERANCE
    state, before = again.state_dict(), pair.theirs.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in state)
    import_hf(pair.directory, tmp_path / "imported", dtype="float32")
    assert torch.equal(moe_core.load(tmp_path / "imported")(IDS), pair.ours(IDS))


@torch.no_grad()
@pytest.mark.parametrize("case", MOE_CASES)
def test_experts_that_are_packed_on_disk_are_read_too(case: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = reference(case)
    theirs.config.save_pretrained(tmp_path)
    packed = {name: tensor.contiguous().clone() for name, tensor in tensors_of(theirs).items()}
    if theirs.config.tie_word_embeddings:
        del packed["lm_head.weight"]
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in packed)
    save_file(packed, tmp_path / "model.safetensors")
    assert relative(moe_core.load(tmp_path)(IDS), theirs(IDS).logits) <= TOLERANCE
