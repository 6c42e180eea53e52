"""What a domain does to the gates holds for every token, whichever of a set of twins the token sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.operations import grow, release_twins
from moe_core.routers import decide
from moe_core.routers.gates import with_one_of_twins
from moe_core.routers.logits import NEG_INF, raw_logits
from moe_core.routers.mapped import label_table, mapped_hits
from moe_core.spec import MoeSpec, RoutingSpec
from moe_core.spec.operations import GrowSpec, ReleaseTwinsSpec
from moe_core.spec.twins import TwinsSpec
from tests.moe_core.operations.models import IDS, mixture

WIDTH, NUM_TOKENS = 12, 40
GATES: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax_topk", "selection_bias": True},
    "sigmoid": {"kind": "sigmoid_groups"},
    "groups": {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1},
    "sqrtsoftplus": {"kind": "sigmoid_groups", "scores": "sqrtsoftplus", "selection_bias": False},
    "sparsemax": {"kind": "sparsemax"},
    "hierarchical": {"kind": "hierarchical", "num_domains": 2},
}  # fmt: skip
ROOTS = {
    "doubled": (0, 1, 2, 3, 0, 1, 2, 3),
    "in groups": (0, 1, 0, 1, 4, 5, 4, 5),
    "of three": (0, 1, 0, 1, 0, 1, 6, 7),
}


def policy(mode: str, *domains: list[int], general: tuple[int, ...] = ()) -> RoutingSpec:
    named = [
        {"code": f"d{row}", "name_en": "D", "name_zh": "域", "experts": experts}
        for row, experts in enumerate(domains)
    ]
    fields = {"prior_mode": mode, "prior_strength": 3.0, "prior_floor": 0.6, "general_experts": general}
    return RoutingSpec.parse({"domains": named, **fields})


def layer(gate: str, roots: str, hold: float | None) -> MoeSpec:
    twins = {"roots": ROOTS[roots], "hold": hold}
    fields = {"moe_layers": (0,), "num_experts": 8, "top_k": 2, "moe_intermediate_size": 8}
    return MoeSpec.parse({**fields, "gate": GATES[gate], "twins": twins})


def drawn(moe: MoeSpec, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    rng = torch.Generator().manual_seed(seed)
    names = moe.gate_tensors(WIDTH, 64)
    tensors = {tensor.name: torch.randn(tensor.shape, generator=rng) for tensor in names}
    return tensors, torch.randn(NUM_TOKENS, WIDTH, generator=rng)


def context_of(moe: MoeSpec, routing: RoutingSpec, domain_T: Tensor) -> RoutingContext:
    prior = DomainPrior.from_routing(
        routing, num_moe_layers=1, num_experts=8, top_k=2, twins=moe.twins, gate=moe.gate.kind
    )
    return RoutingContext(domain_T=domain_T, prior=prior)


@settings(max_examples=60, deadline=None)
@given(
    gate=st.sampled_from(sorted(GATES)),
    roots=st.sampled_from(sorted(ROOTS)),
    hold=st.sampled_from([None, 0.0, 0.5, 1e3]),
    experts=st.lists(st.sampled_from(range(8)), min_size=1, max_size=3, unique=True),
    others=st.lists(st.sampled_from(range(8)), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 1 << 20),
)
def test_a_floor_holds_for_every_token_by_the_twins_that_it_sees(
    gate: str, roots: str, hold: float | None, experts: list[int], others: list[int], seed: int
) -> None:
    moe = layer(gate, roots, hold)
    tensors, x_TD = drawn(moe, seed)
    domain_T = torch.arange(NUM_TOKENS) % 3 - 1
    found = decide(
        moe, tensors, context_of(moe, policy("floor", experts, others), domain_T).call(moe, 0, x_TD)
    )
    root_E = torch.tensor(ROOTS[roots])
    for domain, named in enumerate((experts, others)):
        ours_E = torch.isin(root_E, root_E[named])
        # Where a domain has every set of twins there is nothing to move.
        if not ours_E.all():
            assert float(found.probs_TE[domain_T == domain][:, ours_E].sum(-1).min()) >= 0.6 - 1e-4


@settings(max_examples=60, deadline=None)
@given(
    gate=st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus", "sparsemax"]),
    roots=st.sampled_from(sorted(ROOTS)),
    hold=st.sampled_from([None, 0.0, 0.5, 1e3]),
    expert=st.integers(0, 7),
    other=st.integers(0, 7),
    seed=st.integers(0, 1 << 20),
)
def test_a_push_reaches_every_token_by_the_twin_that_it_sees(
    gate: str, roots: str, hold: float | None, expert: int, other: int, seed: int
) -> None:
    moe = layer(gate, roots, hold)
    tensors, x_TD = drawn(moe, seed)
    domain_T = torch.arange(NUM_TOKENS) % 2
    call = context_of(moe, policy("bias", [expert], [other]), domain_T).call(moe, 0, x_TD)
    pushed_TE = decide(moe, tensors, call).logits_TE - raw_logits(tensors, call)
    root_E = torch.tensor(ROOTS[roots])
    for domain, named in enumerate((expert, other)):
        ours_E = root_E == root_E[named]
        assert torch.allclose(pushed_TE[domain_T == domain][:, ours_E].amax(-1), torch.tensor(3.0), atol=1e-4)
        assert float(pushed_TE[domain_T == domain][:, ~ours_E].amax()) <= 1e-4


@settings(max_examples=60, deadline=None)
@given(
    gate=st.sampled_from(sorted(GATES)),
    hold=st.sampled_from([None, 0.0, 0.5, 1e3]),
    experts=st.lists(st.sampled_from(range(8)), min_size=2, max_size=4, unique_by=lambda expert: expert % 4),
    claimed=st.sampled_from(range(8)),
    general=st.sampled_from(range(8)),
    seed=st.integers(0, 1 << 20),
)
def test_masked_experts_get_nothing_and_unnamed_copies_are_not_masked(
    gate: str, hold: float | None, experts: list[int], claimed: int, general: int, seed: int
) -> None:
    moe = layer(gate, "doubled", hold)
    tensors, x_TD = drawn(moe, seed)
    routing = policy("mask", experts, [claimed, (claimed + 1) % 8], general=(general,))
    domain_T = torch.zeros(NUM_TOKENS, dtype=torch.long)
    found = decide(moe, tensors, context_of(moe, routing, domain_T).call(moe, 0, x_TD))
    ids_TK = found.expert_ids_TK
    named = {*experts, general, claimed, (claimed + 1) % 8}
    allowed = {*experts, general} | {(e + 4) % 8 for e in (*experts, general)} - named
    assert set(ids_TK[ids_TK >= 0].tolist()) <= allowed
    assert (ids_TK[:, 0] >= 0).all()


@pytest.mark.parametrize("method", ["bias", "mask", "floor"])
@pytest.mark.parametrize("kind", ["softmax_topk", "sigmoid_groups"])
@pytest.mark.parametrize("hold", [None, 0.0])
@torch.no_grad()
def test_a_map_from_before_a_growth_does_to_the_grown_model_what_it_did(
    kind: str, method: str, hold: float | None
) -> None:
    model, routing = mixture(gate={"kind": kind}), policy(method, [2, 0], [1, 3])
    twins = grow(model, GrowSpec(num_experts=8))[0]
    grown = twins if hold is None else release_twins(twins, ReleaseTwinsSpec(hold=hold))[0]
    domain_T = torch.arange(IDS.numel()) % 2
    outputs, reached = [], []
    for each in (model, grown):
        moe = each.spec.moe
        assert moe is not None
        fit: dict[str, Any] = {"num_moe_layers": 2, "num_experts": moe.num_experts, "top_k": 2}
        prior = DomainPrior.from_routing(routing, twins=moe.twins, **fit)
        hits: list[Tensor] = []

        def observe(_: int, found: Any, hits: list[Tensor] = hits, moe: MoeSpec = moe) -> None:
            hits.append(mapped_hits(found.expert_ids_TK, label_table(routing, moe), domain_T))

        outputs.append(each(IDS, RoutingContext(domain_T=domain_T, prior=prior, observe=observe)))
        reached.append(torch.stack(hits))
    torch.testing.assert_close(outputs[1], outputs[0])
    assert torch.equal(*reached)
    assert reached[0].any()


def test_a_map_that_tells_twins_apart_is_taken_at_its_word() -> None:
    twins = TwinsSpec(roots=ROOTS["doubled"])
    whole = policy("bias", [0, 2], [6, 1], general=(3,)).with_twins(twins)
    assert [domain.experts for domain in whole.domains] == [(0, 2, 4), (6, 1, 5)]
    assert whole.general_experts == (3, 7)
    assert policy("bias", [0]).with_twins(None) == policy("bias", [0])


def test_a_push_down_stays_with_the_twin_that_it_is_on() -> None:
    moe = layer("softmax", "doubled", 0.0)
    tensors, x_TD = drawn(moe, 1)
    bias_1LE = torch.zeros(1, 1, 8)
    bias_1LE[..., 2] = -50.0
    zeros_T = torch.zeros(NUM_TOKENS, dtype=torch.long)
    call = RoutingContext(domain_T=zeros_T, prior=DomainPrior(bias_1LE, 2)).call(moe, 0, x_TD)
    assert moe.twins is not None
    seen = with_one_of_twins(moe.twins, moe.gate, tensors, call).bias_TE
    assert seen is not None
    assert (seen[:, 2] == NEG_INF).all()
    assert (seen[:, 6] == 0.0).all()
