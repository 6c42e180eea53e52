"""A floor of the domain prior is a floor under what the gate has for shares, whatever these are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model import DomainPrior
from moe_core.routers.call import Floor
from moe_core.spec import RoutingSpec
from moe_core.spec.routing import LayerPrior
from tests.moe_core.routers.every_gate import KINDS, WIDTH, asked, mixture, tensors_of

NUM_TOKENS, NUM_EXPERTS = 60, 8
MINE_TE = torch.zeros(NUM_TOKENS, NUM_EXPERTS, dtype=torch.bool)
MINE_TE[:, 1] = True


def shares(kind: str, training: bool, floor: float | None, bias_TE: Tensor | None = None) -> Tensor:
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    asks = None if floor is None else Floor(torch.full((NUM_TOKENS,), floor), MINE_TE)
    return asked(moe, tensors_of(moe, WIDTH), x_TD, training, floor=asks, bias_TE=bias_TE).probs_TE.detach()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "hash" not in kind])
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
def test_no_token_gives_its_own_experts_less(kind: str, training: bool) -> None:
    for floor in (0.3, 0.9, 0.999):
        assert float(shares(kind, training, floor)[:, 1].min()) >= floor - 1e-5


@pytest.mark.parametrize("kind", ["sigmoid_groups", "sparsemax"])
def test_it_gives_no_more_than_is_asked_and_leaves_what_has_enough(kind: str) -> None:
    free_TE, found_TE = shares(kind, False, None), shares(kind, False, 0.15)
    enough_T = free_TE[:, 1] >= 0.15
    assert enough_T.any()
    assert not enough_T.all()
    assert torch.equal(found_TE[enough_T], free_TE[enough_T])
    torch.testing.assert_close(found_TE[~enough_T, 1], torch.full((int((~enough_T).sum()),), 0.15))


@pytest.mark.parametrize("kind", ["sigmoid_groups", "sparsemax", "noisy_topk"])
def test_where_a_side_is_masked_nothing_moves(kind: str) -> None:
    for masked_TE in (MINE_TE, ~MINE_TE):
        bias_TE = torch.zeros(NUM_TOKENS, NUM_EXPERTS).masked_fill(masked_TE, float("-inf"))
        assert torch.equal(shares(kind, True, 0.9, bias_TE), shares(kind, True, None, bias_TE))


def test_a_gate_that_chooses_by_a_table_refuses_a_floor() -> None:
    domain = {"code": "law", "name_en": "Law", "name_zh": "法", "experts": [1]}
    routing = RoutingSpec.parse({"domains": [domain], "prior_mode": "floor", "prior_floor": 0.9})
    with pytest.raises(SpecError, match="gate 'hash' chooses by a table"):
        DomainPrior.from_routing(routing, num_moe_layers=2, num_experts=4, top_k=2, gate="hash")


def test_a_balancing_bias_may_choose_none_of_the_experts_that_have_the_floor() -> None:
    moe = mixture("softmax_topk", NUM_EXPERTS, 2)
    assert moe is not None
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    asks = Floor(torch.full((NUM_TOKENS,), 0.9), MINE_TE)
    for bias, is_chosen in ((0.0, True), (-0.5, True), (-1.5, False)):
        bias_E = torch.zeros(NUM_EXPERTS)
        bias_E[1] = bias
        found = asked(moe, tensors_of(moe, WIDTH), x_TD, False, floor=asks, selection_bias_E=bias_E)
        assert float(found.probs_TE[:, 1].detach().min()) >= 0.9 - 1e-5
        assert (found.expert_ids_TK == 1).any(-1).tolist() == [is_chosen] * NUM_TOKENS
    words = LayerPrior.model_json_schema()["properties"]["floor"]["description"]
    assert "a strong bias can choose none of them" in " ".join(words.split())
