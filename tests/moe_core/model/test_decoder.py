"""The decoder itself: one function however it is asked, and routers that see what they may."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.errors import PromptTooLong, SpecError
from moe_core.model import AttentionRule, Decoder, DenseCausal, DomainPrior, GrowingSequence, RoutingContext
from moe_core.model.init import random_decoder
from moe_core.routers import Routing
from moe_core.spec import DomainSpec, ModelSpec, RoutingSpec
from tests.moe_core.tiny import FAMILIES, STD, tiny_family, tiny_llama, tiny_mixtral, tiny_turnout

SPECS = [tiny_llama(), tiny_mixtral(), tiny_turnout(), *map(tiny_family, FAMILIES)]
IDS = torch.arange(1, 25).view(2, 12)
NEG_INF = float("-inf")


def observed(model: Decoder, ids_BS: Tensor, **context: object) -> dict[int, Routing]:
    seen: dict[int, Routing] = {}
    with torch.no_grad():
        model(ids_BS, RoutingContext(observe=lambda layer, r: seen.update({layer: r}), **context))  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.family)
@torch.no_grad()
def test_tokens_in_pieces_equal_tokens_at_once(spec: ModelSpec) -> None:
    model = random_decoder(spec, 2, STD)
    whole = model(IDS[:1])[0]
    cache = GrowingSequence(spec, 12, torch.float32)
    pieces = []
    for start, end in ((0, 5), (5, 6), (6, 10), (10, 12)):
        pieces.append(model.hidden(IDS[0, start:end], torch.arange(start, end), cache))
        cache.advance(end - start)
    assert torch.allclose(model.logits(torch.cat(pieces)), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model = random_decoder(tiny_mixtral(), 2, STD)
    assert torch.allclose(model(IDS)[1], model(IDS[1:])[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_slots_mix_the_tokens_of_one_row_of_a_batch_alone() -> None:
    moe = {
        "moe_layers": (0, 2),
        "num_experts": 4,
        "top_k": 2,
        "moe_intermediate_size": 16,
        "gate": {"kind": "soft"},
    }
    model = random_decoder(
        ModelSpec.parse({**tiny_llama().model_dump(), "family": "turnout_moe", "moe": moe}), 2, STD
    )
    assert torch.allclose(model(IDS)[1], model(IDS[1:])[0], rtol=1e-4, atol=1e-4)
    # Who says otherwise is heeded: all tokens as one sequence.
    together = model(IDS, RoutingContext(sequence_T=torch.zeros(IDS.numel(), dtype=torch.int64)))
    assert not torch.allclose(together[1], model(IDS[1:])[0], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_ones() -> None:
    model = random_decoder(tiny_turnout(), 2, STD)
    changed = IDS.clone()
    changed[:, 7:] = 90
    assert torch.allclose(model(IDS)[:, :7], model(changed)[:, :7], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(IDS)[:, 8:], model(changed)[:, 8:])


def test_greedy_generation_follows_the_logits_and_stops_at_an_end() -> None:
    model = random_decoder(tiny_mixtral(eos_token_ids=()), 4, STD)
    prompt = [5, 6, 7]
    answer = model.generate(prompt, 10)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer]))[0]
    assert logits.argmax(-1)[2:-1].tolist() == answer
    stopping = random_decoder(tiny_mixtral(eos_token_ids=(answer[3],)), 4, STD)
    assert stopping.generate(prompt, 10) == answer[: answer.index(answer[3]) + 1]


def test_a_full_cache_is_an_error_and_no_overrun() -> None:
    spec = tiny_llama()
    cache = GrowingSequence(spec, 4, torch.float32)
    with pytest.raises(PromptTooLong, match="5 tokens do not fit a cache of 4"), torch.no_grad():
        random_decoder(spec, 1).hidden(IDS[0, :5], torch.arange(5), cache)


def test_each_expert_layer_is_observed_once_with_its_number() -> None:
    calls: list[int] = []
    model = random_decoder(tiny_turnout(), 2, STD)
    with torch.no_grad():
        model(IDS, RoutingContext(observe=lambda layer, routing: calls.append(layer)))
    assert calls == [0, 2] == [moe.layer for moe in model.moe_layers()]
    routing = observed(model, IDS)[2]
    assert routing.expert_ids_TK.shape == (24, 2)
    assert routing.expert_ids_TK.dtype == torch.int64
    assert routing.weights_TK.dtype == routing.logits_TE.dtype == routing.probs_TE.dtype == torch.float32


def prior(rows: list[list[float]], top_k: int = 2) -> DomainPrior:
    """The same rows in each of three layers: (domain, layer, expert)."""
    return DomainPrior(torch.tensor(rows)[:, None, :].expand(-1, 3, -1), top_k)


def test_a_mask_holds_for_its_domain_and_no_other() -> None:
    model = random_decoder(tiny_mixtral(), 2, STD)
    masks = prior([[0.0, 0.0, NEG_INF, NEG_INF], [NEG_INF, NEG_INF, 0.0, 0.0]])
    domain_T = torch.tensor([0] * 8 + [1] * 8 + [-1] * 8)
    free = observed(model, IDS)
    for layer, routing in observed(model, IDS, prior=masks, domain_T=domain_T).items():
        assert routing.expert_ids_TK[:8].max() <= 1
        assert routing.expert_ids_TK[8:16].min() >= 2
        if layer == 0:
            assert torch.equal(routing.expert_ids_TK[16:], free[0].expert_ids_TK[16:])
            assert torch.equal(routing.weights_TK[16:], free[0].weights_TK[16:])


def test_a_prior_without_domains_or_domains_without_a_prior_change_nothing() -> None:
    model = random_decoder(tiny_mixtral(), 2, STD)
    free = observed(model, IDS)[2]
    for context in (
        {"prior": prior([[9.0, 0.0, 0.0, 0.0]])},
        {"domain_T": torch.zeros(24, dtype=torch.long)},
    ):
        assert torch.equal(observed(model, IDS, **context)[2].logits_TE, free.logits_TE)


def test_forced_experts_are_used_in_every_layer() -> None:
    forced_TK = torch.tensor([[3, 1]]).expand(24, 2)
    for routing in observed(random_decoder(tiny_mixtral(), 2, STD), IDS, forced_TK=forced_TK).values():
        assert torch.equal(routing.expert_ids_TK, forced_TK)


def test_a_selection_bias_is_taken_layer_by_layer() -> None:
    bias_LE = torch.zeros(3, 4)
    bias_LE[1, 2] = 10.0
    seen = observed(random_decoder(tiny_mixtral(), 2, STD), IDS, selection_bias_LE=bias_LE)
    chosen = [bool((routing.expert_ids_TK == 2).any(-1).all()) for routing in seen.values()]
    assert chosen == [False, True, False]


ROUTING = RoutingSpec(
    domains=(
        DomainSpec(code="support", name_en="Support", name_zh="客服", experts=(0,)),
        DomainSpec(code="copy", name_en="Copy", name_zh="文案", experts=(1, 2)),
    ),
    general_experts=(3,),
)


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        ("none", [0.0, 0.0, 0.0, 0.0]),
        ("bias", [2.5, 0.0, 0.0, 0.0]),
        ("mask", [0.0, NEG_INF, NEG_INF, 0.0]),
    ],
)
def test_a_routing_policy_becomes_a_prior(mode: str, row: list[float]) -> None:
    routing = ROUTING.model_copy(update={"prior_mode": mode, "prior_strength": 2.5})
    made = DomainPrior.from_routing(routing, num_moe_layers=2, num_experts=4, top_k=2)
    domain_T = torch.tensor([0, -1])
    assert made.rows(0, domain_T).tolist() == made.rows(1, domain_T).tolist() == [row, [0.0] * 4]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([[0.0, NEG_INF, NEG_INF, NEG_INF]], "leaves 1 experts in a layer; top_k is 2"),
        ([[float("nan"), 0.0, 0.0, 0.0]], "NaN"),
        ([[float("inf"), 0.0, 0.0, 0.0]], r"\+inf"),
    ],
)
def test_a_prior_that_cannot_be_obeyed_is_refused(rows: list[list[float]], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        prior(rows)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.family)
def test_gradients_reach_every_parameter(spec: ModelSpec) -> None:
    model = random_decoder(spec, 2, STD)
    model(IDS).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        # The bias that only counts for the choice is moved by hand.
        if not parameter.requires_grad:
            assert name.endswith("selection_bias")
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_routers_alone_can_be_trained() -> None:
    model = random_decoder(tiny_mixtral(), 2, STD).requires_grad_(False)
    for moe in model.moe_layers():
        moe.router.requires_grad_(True)
    model(IDS).logsumexp(-1).sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained == [f"layers.{layer}.mlp.router.weight" for layer in range(3)]


@torch.no_grad()
def test_sixteen_bit_logits_are_near_and_rank_alike() -> None:
    full = random_decoder(tiny_mixtral(), 2, STD)
    half = random_decoder(tiny_mixtral(), 2, STD)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    expected, got = full(IDS), half(IDS).float()
    assert half.dtype == torch.bfloat16
    assert (got - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_a_context_may_keep_keys_and_values_wherever_it_likes() -> None:
    spec = tiny_mixtral()
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    class Recording(DenseCausal):
        def attend(
            self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, rule: AttentionRule
        ) -> Tensor:
            calls.append((layer, tuple(q_THd.shape), tuple(k_TGd.shape)))
            return super().attend(layer, q_THd, k_TGd, v_TGe, rule)

    model = random_decoder(spec, 2, STD)
    hidden = model.hidden(IDS.reshape(-1), torch.arange(12).repeat(2), Recording(2, 12))
    assert torch.equal(model.logits(hidden).view(2, 12, -1), model(IDS))
    assert calls == [(layer, (24, 6, 16), (24, 2, 16)) for layer in range(3)]
