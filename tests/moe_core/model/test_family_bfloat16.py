"""Every family in bfloat16, all layers of it, against transformers in bfloat16; docs/reference/families.md has the figures.

Where two experts are nearly as good, rounding decides, and a token that goes elsewhere is another token afterwards. So the
choice is compared by itself, layer by layer, and the logits with the choice of transformers in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_core
from moe_core.model import Decoder
from moe_core.routers import Routing

pytest.importorskip("transformers")

from tests.moe_core.bfloat16_table import (
    HEAD,
    IDS,
    PAGE,
    Figures,
    context,
    divergence,
    log_probs,
    measured,
    pair,
    written,
)
from tests.moe_core.model.hf_families import CASES, chosen_experts

MOST = 1e-3
# Where transformers is nearly that far from float32 itself, so that the two roundings together are beyond it.
OVER = {"mixtral", "mixtral, stretched", "deepseek_v3, yarn, no low rank of queries"}
# Three of 227 positions.
LESS_CLEAR = {"step3p5, stretched, as released"}


@dataclass(frozen=True, slots=True)
class Both:
    case: str
    theirs: Any
    ours: Decoder
    directory: Path
    figures: Figures


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    directory = tmp_path_factory.mktemp("bf16")
    theirs, ours = pair(request.param, directory)
    return Both(request.param, theirs, ours, directory, measured(theirs, ours, directory))


def test_logits_are_as_near_as_two_roundings_allow_on_all_layers(both: Both) -> None:
    found = both.figures
    assert found.same_routing < MOST or both.case in OVER
    # Independent errors add; that is all that stands between the two.
    assert found.same_routing < 1.1 * (found.truth_to_ours + found.truth_to_theirs)
    assert found.truth_to_ours < MOST
    assert found.truth_to_ours < 1.25 * found.truth_to_theirs


def test_the_best_token_is_the_same_wherever_float32_is_clear(both: Both) -> None:
    found = both.figures
    assert found.top1_clear >= (0.98 if both.case in LESS_CLEAR else 0.99)
    assert found.top1 > 0.92


def test_the_page_has_these_figures(both: Both) -> None:
    stands = written(PAGE.read_text("utf-8"))
    assert list(stands) == list(CASES), "write it anew with: python -m tests.moe_core.bfloat16_table"
    for name, said, now in zip(HEAD[1:], stands[both.case], both.figures.cells(), strict=True):
        # Another processor rounds elsewhere, and as often.
        if said.endswith("%"):
            assert abs(float(said[:-2]) - float(now[:-2])) < 2.5, (name, said, now)
        else:
            assert 0.5 < float(said) / float(now) < 2.0, (name, said, now)


@torch.no_grad()
def test_the_comparison_fails_when_two_experts_are_swapped(both: Both) -> None:
    chosen_L = [ids_TK for ids_TK, _ in chosen_experts(both.theirs, IDS)]
    p = log_probs(both.theirs(IDS).logits)
    for moe in both.ours.moe_layers():
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]
        assert divergence(p, log_probs(both.ours(IDS, context(chosen_L)[0]))) > max(
            MOST, 2 * both.figures.same_routing
        )
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]


@torch.no_grad()
def test_a_token_goes_elsewhere_only_where_rounding_decides(both: Both) -> None:
    assert both.figures.same_experts > 0.93
    exact = moe_core.load(both.directory)
    chosen_L = [ids_TK for ids_TK, _ in chosen_experts(both.theirs, IDS)]
    for index, moe in enumerate(both.ours.moe_layers()):
        if moe.moe.gate.kind != "softmax_topk":
            continue
        made, seen = context(chosen_L, free_from=index)
        both.ours(IDS, made)
        alike_T = (seen[moe.layer].expert_ids_TK.sort(-1).values == chosen_L[index]).all(-1)
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
