"""A token that reaches two of its own experts reaches its own experts once."""

from __future__ import annotations

import torch

from moe_core.routers.mapped import label_table, mapped_hits
from moe_core.spec import MoeSpec, RoutingSpec

ROUTING = RoutingSpec.parse(
    {
        "domains": [
            {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0, 1]},
            {"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [2]},
        ]
    }
)
FOUR = MoeSpec(moe_layers=(0,), num_experts=4, top_k=2, moe_intermediate_size=8)


def test_one_own_expert_among_the_top_k_is_enough_and_two_are_no_more() -> None:
    labels_NE = label_table(ROUTING, FOUR)
    ids_LTK = torch.tensor([[[0, 1], [0, 3], [3, 2], [0, 1]], [[3, 2], [-1, 1], [2, -1], [3, 0]]])
    domain_T = torch.tensor([0, 0, 1, -1])
    found = mapped_hits(ids_LTK, labels_NE, domain_T)
    assert found.tolist() == [[True, True, True, False], [False, True, True, False]]
    for ids_TK, hits_T in zip(ids_LTK, found, strict=True):
        assert torch.equal(mapped_hits(ids_TK, labels_NE, domain_T), hits_T)


def test_without_domains_nothing_is_reached_and_no_index_is_read() -> None:
    labels_NE = label_table(RoutingSpec(), FOUR)
    assert not mapped_hits(torch.tensor([[0, 1]]), labels_NE, torch.tensor([-1])).any()
