"""The gates of the native step choose and weigh as the routers in torch do, whatever the domain map asks for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

from moe_core.engine.native_plan import knows_mixture
from moe_core.kernels.cpu.native import library
from moe_core.model.context import RoutingContext
from moe_core.model.domain_prior import DomainPrior
from moe_core.routers import Routing, decide
from moe_core.routers.scores import choosing_scores
from moe_core.routers.sparsemax import sparsemax
from moe_core.spec import MoeSpec
from moe_core.spec.gate import Base, Gate, Hash, Hierarchical, SigmoidGroups, SoftmaxTopk, Sparsemax, TopP
from tests.moe_core.engine.native_gate import natively_chosen
from tests.moe_core.routers.every_gate import WIDTH
from tests.moe_core.routers.gate_cases import VOCAB, moe_of, tensors_of
from tests.moe_core.routers.test_random_programs import Program, programs

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
QUICK = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def assert_same_choice(found: tuple[Tensor, Tensor], wanted: Routing, moe: MoeSpec) -> None:
    """Equal experts but where two score alike, and equal weights up to the order of sums in float32."""
    (ids_TK, weights_TK), filled_TK = found, wanted.chosen_TK
    assert torch.equal(ids_TK >= 0, filled_TK)
    assert torch.equal(weights_TK == 0.0, weights_TK.masked_fill(~filled_TK, 0.0) == 0.0)
    torch.testing.assert_close(weights_TK, wanted.weights_TK, atol=2e-5, rtol=2e-4, equal_nan=True)
    if not torch.equal(ids_TK, wanted.expert_ids_TK):
        # Where a table chooses nothing is alike.
        scores_TE = choosing_scores(moe.gate, wanted)
        mine_TK, its_TK = (scores_TE.gather(-1, ids.clamp(min=0)) for ids in (ids_TK, wanted.expert_ids_TK))
        assert (mine_TK.isfinite() | (ids_TK == wanted.expert_ids_TK)).all()
        torch.testing.assert_close(mine_TK, its_TK, atol=2e-5, rtol=2e-5)
    filled = torch.where(filled_TK, ids_TK, -1 - torch.arange(ids_TK.shape[1]))
    assert all(len(set(row)) == len(row) for row in filled.tolist())


def ends_at_a_floor(program: Program) -> bool:
    """Whether a floor leaves the others just what top-p asks for: then the last bit of a sum decides on one expert more."""
    gate, policy = program.moe.gate, program.policy
    floored = policy.prior_mode == "floor"
    return floored and isinstance(gate, TopP) and abs(1.0 - policy.prior_floor - gate.p) < 1e-4


@QUICK
@given(programs(capacity=False, training=False))
def test_random_programs_choose_alike(program: Program) -> None:
    moe = program.moe
    assume(knows_mixture(moe) and not ends_at_a_floor(program))
    rounded = replace(program, x_TD=program.x_TD.bfloat16(), real_T=None)
    at_T = torch.arange(len(rounded.x_TD))
    found = natively_chosen(
        moe, program.tensors, rounded.x_TD, prior=program.prior(), domain_T=program.domain_T,
        token_ids_T=at_T * 7 % VOCAB,
    )  # fmt: skip
    assert_same_choice(found, rounded.routed(), moe)


def floored(moe: MoeSpec, mine: list[int], floor: float) -> DomainPrior:
    """One domain whose experts get so much."""
    mine_NE = torch.zeros(1, moe.num_experts, dtype=torch.bool)
    mine_NE[0, mine] = True
    bias_NLE = torch.zeros(1, 1, moe.num_experts)
    return DomainPrior(bias_NLE, moe.top_k, floor_NL=torch.full((1, 1), floor), mine_NE=mine_NE)


def logits64(tensors: dict[str, Tensor], x_TD: Tensor) -> Tensor:
    return x_TD.double() @ tensors["weight"].double().t()


@pytest.mark.parametrize("num_experts", [3, 16, 61])
@pytest.mark.parametrize("floor", [0.05, 0.5, 0.999])
def test_a_floor_of_a_softmax_is_that_of_float64(num_experts: int, floor: float) -> None:
    moe = moe_of(SoftmaxTopk(), num_experts, num_experts)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH).items()}
    x_TD = (2.0 * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))).bfloat16()
    ids_TK, weights_TK = natively_chosen(
        moe, tensors, x_TD, prior=floored(moe, [1], floor), domain_T=torch.zeros(40, dtype=torch.int64)
    )
    shares_TE = torch.softmax(logits64(tensors, x_TD), -1)
    lacking_T = shares_TE[:, 1] < floor
    assert lacking_T.any()
    scale_T1 = torch.where(lacking_T, (1.0 - floor) / (1.0 - shares_TE[:, 1]), 1.0)[:, None]
    wanted_TE = shares_TE * scale_T1
    wanted_TE[lacking_T, 1] = floor
    found_TE = torch.zeros(40, num_experts).scatter(-1, ids_TK, weights_TK)
    torch.testing.assert_close(found_TE.double(), wanted_TE, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scores", ["sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("floor", [0.05, 0.5, 0.95])
def test_a_floor_of_other_scores_raises_to_the_share_and_no_further(scores: str, floor: float) -> None:
    moe = moe_of(SigmoidGroups.model_validate({"scores": scores, "selection_bias": False}), 12, 12)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH).items()}
    x_TD = (2.0 * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(5))).bfloat16()
    prior, domain_T = floored(moe, [4, 7], floor), torch.zeros(40, dtype=torch.int64)
    ids_TK, weights_TK = natively_chosen(moe, tensors, x_TD, prior=prior, domain_T=domain_T)
    logits_TE = logits64(tensors, x_TD)
    scores_TE = (
        torch.sigmoid(logits_TE) if scores == "sigmoid" else torch.nn.functional.softplus(logits_TE).sqrt()
    )
    share_T = (scores_TE / scores_TE.sum(-1, keepdim=True))[:, [4, 7]].sum(-1)
    found_TE = torch.zeros(40, 12).scatter(-1, ids_TK, weights_TK)
    assert (share_T < floor).any()
    wanted_T = share_T.clamp(min=floor)
    torch.testing.assert_close(found_TE[:, [4, 7]].sum(-1).double(), wanted_T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", [SoftmaxTopk(), SigmoidGroups()], ids=lambda gate: gate.kind)
def test_a_floor_leaves_to_the_bit_what_has_it_or_has_but_one_side(gate: SoftmaxTopk | SigmoidGroups) -> None:
    moe = moe_of(gate, 8, 8)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH).items()}
    x_TD = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(6)).bfloat16()
    zero_T = torch.zeros(30, dtype=torch.int64)
    plain = natively_chosen(moe, tensors, x_TD)
    for mine, floor, domain_T in (
        ([*range(8)], 0.9, zero_T), ([], 0.9, zero_T), ([2], 0.0, zero_T), ([*range(7)], 1e-3, zero_T), ([2], 0.9, zero_T - 1),
    ):  # fmt: skip
        found = natively_chosen(moe, tensors, x_TD, prior=floored(moe, mine, floor), domain_T=domain_T)
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True)), (mine, floor)
    moved = natively_chosen(moe, tensors, x_TD, prior=floored(moe, [2], 0.9), domain_T=zero_T)
    assert not torch.equal(moved[1], plain[1])


@pytest.mark.parametrize("gate", [SoftmaxTopk(), SigmoidGroups()], ids=lambda gate: gate.kind)
def test_nan_stays_in_its_own_token_under_a_floor(gate: SoftmaxTopk | SigmoidGroups) -> None:
    moe = moe_of(gate, 8, 3)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH).items()}
    x_TD = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(6)).bfloat16()
    x_TD[1, 4] = math.nan
    ids_TK, weights_TK = natively_chosen(
        moe, tensors, x_TD, prior=floored(moe, [2], 0.9), domain_T=torch.zeros(3, dtype=torch.int64)
    )
    assert weights_TK.isnan().any(-1).tolist() == [False, True, False]
    assert all(sorted({*row}) == sorted(row) and min(row) >= 0 and max(row) < 8 for row in ids_TK.tolist())


@pytest.mark.parametrize("num_experts", [5, 16, 33, 100])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_of_equal_logits_the_lower_numbers_are_taken(num_experts: int, top_k: int) -> None:
    moe = moe_of(SoftmaxTopk(), num_experts, top_k)
    generator = torch.Generator().manual_seed(num_experts)
    # Logits of few values, so that most are equal.
    weight_ED = (
        torch.randint(-1, 2, (num_experts, 1), generator=generator).float().expand(-1, WIDTH).contiguous()
    )
    x_TD = torch.randint(-1, 2, (50, WIDTH), generator=generator).bfloat16()
    ids_TK, _ = natively_chosen(moe, {"weight": weight_ED}, x_TD)
    context = RoutingContext()
    assert torch.equal(ids_TK, decide(moe, {"weight": weight_ED}, context.call(moe, 0, x_TD)).expert_ids_TK)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("num_experts", [3, 16, 61])
def test_sparsemax_is_the_projection_in_float64(num_experts: int, norm: bool) -> None:
    moe = moe_of(Sparsemax(), num_experts, num_experts, norm_topk_prob=norm)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH, std=0.2).items()}
    x_TD = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(9)).bfloat16()
    ids_TK, weights_TK = natively_chosen(moe, tensors, x_TD)
    wanted_TE = sparsemax(logits64(tensors, x_TD))
    found_TE = torch.zeros(40, num_experts).scatter_add(-1, ids_TK.clamp(min=0), weights_TK)
    torch.testing.assert_close(found_TE.double(), wanted_TE, atol=1e-6, rtol=1e-5)
    assert torch.equal((ids_TK >= 0).sum(-1), (found_TE > 0.0).sum(-1))
    assert len({*(ids_TK >= 0).sum(-1).tolist()}) > 1


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_fewest_that_reach_it_in_float64(p: float) -> None:
    moe = moe_of(TopP(p=p), 16, 6)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH, std=0.5).items()}
    x_TD = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(9)).bfloat16()
    ids_TK, weights_TK = natively_chosen(moe, tensors, x_TD)
    shares_TK, wanted_TK = torch.softmax(logits64(tensors, x_TD), -1).sort(-1, descending=True)
    before_TK = shares_TK.cumsum(-1) - shares_TK
    wanted_TK = torch.where(before_TK < p, wanted_TK, -1)[:, :6]
    assert torch.equal(ids_TK, wanted_TK)
    torch.testing.assert_close(weights_TK.sum(-1), torch.ones(60))


def test_a_masked_expert_of_a_table_gives_way_to_the_next() -> None:
    moe = moe_of(Hash(), 4, 2)
    table_VK = torch.tensor([[0.0, 1.0], [1.0, 2.0], [3.0, 0.0], [2.0, 3.0]])
    bias_NLE = torch.tensor([[[0.0, -math.inf, 0.0, 0.0]], [[-math.inf, 0.0, 0.0, -math.inf]]])
    x_TD, words_T = torch.zeros(4, WIDTH).bfloat16(), torch.arange(4)
    ids = []
    for domain in (0, 1):
        ids_TK, weights_TK = natively_chosen(
            moe, {"table": table_VK}, x_TD, prior=DomainPrior(bias_NLE, 2),
            domain_T=torch.full((4,), domain), token_ids_T=words_T,
        )  # fmt: skip
        ids.append(ids_TK.tolist())
        assert weights_TK.unique().tolist() == [0.5]
    assert ids == [[[0, 2], [2, 3], [3, 0], [2, 3]], [[1, 2], [1, 2], [1, 2], [2, 1]]]


@pytest.mark.parametrize(
    "gate", [Sparsemax(), TopP(), Base(), Hierarchical(num_domains=2)], ids=lambda gate: gate.kind
)
def test_nan_reaches_every_weight_of_its_own_token(gate: Gate) -> None:
    moe = moe_of(gate, 8, 1 if isinstance(gate, Base) else 3)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH).items()}
    x_TD = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(6)).bfloat16()
    x_TD[1, 4] = math.nan
    ids_TK, weights_TK = natively_chosen(moe, tensors, x_TD)
    assert weights_TK.isnan().all(-1).tolist() == [False, True, False]
    assert weights_TK.isnan().any(-1).tolist() == [False, True, False]
    assert (ids_TK[1] >= 0).all()
