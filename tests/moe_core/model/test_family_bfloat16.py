"""Every family in bfloat16 against transformers in bfloat16.

Where two experts are nearly as good, rounding decides, and a token that goes elsewhere is another token afterwards. So the
choice is compared by itself, layer by layer, and the logits with the choice of transformers in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_core
from moe_core.model import Decoder, RoutingContext
from moe_core.routers import Routing
from moe_core.routers.call import GateCall
from moe_core.spec import MoeSpec

pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import CASES, chosen_experts, model_of

IDS = torch.randint(0, 97, (8, 33), generator=torch.Generator().manual_seed(7))
# In float32 the best token is ahead by more than the logits' rounding in bfloat16.
CLEAR = 0.1


class AsTheyChose(RoutingContext):
    """Sends every token where transformers sent it, in all expert layers below `free_from`."""

    chosen_L: Sequence[Tensor] = ()
    free_from: int = 1 << 10

    def call(self, moe: MoeSpec, moe_index: int, x_TD: Tensor) -> GateCall:
        call = super().call(moe, moe_index, x_TD)
        return call if moe_index >= self.free_from else replace(call, forced_TK=self.chosen_L[moe_index])


def context(chosen_L: Sequence[Tensor], free_from: int = 1 << 10) -> tuple[AsTheyChose, dict[int, Routing]]:
    seen: dict[int, Routing] = {}
    made = AsTheyChose(observe=lambda layer, routing: seen.update({layer: routing}))
    made.chosen_L, made.free_from = chosen_L, free_from
    return made, seen


def log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1).flatten(0, 1)


def divergence(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean Kullback-Leibler divergence of two tables of log-probabilities, in nats."""
    return float((p_TV.exp() * (p_TV - q_TV)).sum(-1).mean())


@pytest.fixture(scope="module", params=CASES)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Decoder, Path]:
    config_class, changes = CASES[request.param]
    # Two layers: transformers' own rounding, routers included, adds up with depth.
    theirs = model_of(config_class, {**changes, "num_hidden_layers": 2}).bfloat16()
    directory = tmp_path_factory.mktemp("bf16")
    theirs.save_pretrained(directory)
    return theirs, moe_core.load(directory, "bfloat16"), directory


@torch.no_grad()
def test_logits_rank_alike_and_are_nearer_the_truth(both: tuple[Any, Decoder, Path]) -> None:
    theirs, ours, directory = both
    chosen_L = [ids_TK for ids_TK, _ in chosen_experts(theirs, IDS)]
    exact = moe_core.load(directory)(IDS, context(chosen_L)[0])
    p, q, truth = log_probs(theirs(IDS).logits), log_probs(ours(IDS, context(chosen_L)[0])), log_probs(exact)
    # In one case transformers' own rounding, whose routers multiply in bfloat16, is most of that already.
    assert divergence(p, q) < max(1e-3, 1.5 * divergence(truth, p))
    assert divergence(truth, q) < min(1e-3, 1.25 * divergence(truth, p))
    best_T2 = exact.flatten(0, 1).topk(2).values
    clear_T = best_T2[:, 0] - best_T2[:, 1] > CLEAR
    assert clear_T.float().mean() > 0.7
    assert float((p.argmax(-1) == q.argmax(-1))[clear_T].float().mean()) >= 0.99
    for moe in ours.moe_layers():
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]
        assert divergence(p, log_probs(ours(IDS, context(chosen_L)[0]))) > 1e-2
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]


@torch.no_grad()
def test_a_token_goes_elsewhere_only_where_rounding_decides(both: tuple[Any, Decoder, Path]) -> None:
    theirs, ours, directory = both
    exact = moe_core.load(directory)
    chosen_L = [ids_TK for ids_TK, _ in chosen_experts(theirs, IDS)]
    for index, moe in enumerate(ours.moe_layers()):
        made, seen = context(chosen_L, free_from=index)
        ours(IDS, made)
        alike_T = (seen[moe.layer].expert_ids_TK.sort(-1).values == chosen_L[index]).all(-1)
        assert float(alike_T.float().mean()) > 0.93
        if moe.moe.gate.kind != "softmax_topk":
            continue
        # Exact weights and inputs that are not rounded leave little between the two choices.
        made, truth = context(chosen_L, free_from=index)
        exact(IDS, made)
        margin_T = margins(truth[moe.layer], chosen_L[index])
        assert float(margin_T[~alike_T].max() if bool((~alike_T).any()) else 0.0) < 0.05


def margins(routing: Routing, chosen_TK: Tensor) -> Tensor:
    """(T,) by how much the best expert that was not chosen is ahead of the worst that was, in float32."""
    scores_TE = routing.probs_TE
    inside = torch.zeros_like(scores_TE, dtype=torch.bool).scatter_(1, chosen_TK, True)
    last_T = scores_TE.masked_fill(~inside, float("inf")).amin(-1)
    next_T = scores_TE.masked_fill(inside, float("-inf")).amax(-1)
    return (next_T - last_T).clamp(min=0.0)
