"""A turned residual stream: the same function, without columns that stand out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.model.seq2seq import EncoderDecoder
from moe_core.operations.quantise import quantise
from moe_core.operations.rotate import GATE_MAPS, GATE_OTHERS, MOST_ODD, _turn_mixture, rotated, turned
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.gate import Gate, Hash, Hierarchical, NoisyTopk, SoftmaxTopk
from moe_core.spec.gate_tensors import GateTensor, gate_tensors
from moe_core.spec.operations import QuantiseSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.operations.models import IDS, distance, gpt_oss, mixture
from tests.moe_core.tiny import FAMILIES, STD, tiny_family, tiny_seq2seq

WIDE = ExpertQuantSpec(bits=8, group_size=256)


@torch.no_grad()
def with_norms(model: Decoder) -> Decoder:
    """The same with norms that weigh something, as trained ones do."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.named_parameters():
        if "norm" in name:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("width", [1, 2, 8, 24, 31, 48, 2 * (MOST_ODD + 1)])
def test_turning_is_orthogonal(width: int) -> None:
    turn = turned(torch.eye(width), 1)
    assert torch.allclose(turn @ turn.T, torch.eye(width), atol=2e-6)
    # Of every axis alike.
    assert torch.equal(turned(torch.eye(width), 0), turn.T)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays(family: str) -> None:
    model = gpt_oss() if family == "gpt_oss" else random_decoder(tiny_family(family), 3, STD)
    model = with_norms(model)
    assert distance(model, rotated(model)) < 2e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_centred_norms": True},
        {"parallel_blocks": True},
        {"tie_word_embeddings": True},
        {"attention": {"qkv_bias": True, "o_bias": True, "head_gate": True}},
    ],
)
def test_the_function_stays_with(changes: dict[str, Any]) -> None:
    spec = ModelSpec.parse({**mixture().spec.model_dump(), **changes})
    model = with_norms(random_decoder(spec, 3, STD))
    turned_model = rotated(model)
    assert not turned_model.spec.tie_word_embeddings
    assert distance(model, turned_model) < 2e-5


@pytest.mark.parametrize(
    "moe",
    [
        {"gate": {"kind": "hash", "weights": "learned"}},
        {"gate": {"kind": "noisy_topk"}},
        {"num_experts": 4, "gate": {"kind": "hierarchical", "groups_per_domain": 1, "num_domains": 2}},
        {"num_shared_experts": 1, "shared_intermediate_size": 16, "shared_gate": True},
        {"capacity": {"eval_factor": 1.0, "overflow": "learned"}},
    ],
)
def test_every_map_of_the_gate_turns(moe: dict[str, Any]) -> None:
    model = with_norms(mixture(**moe))
    assert distance(model, rotated(model)) < 2e-5


@torch.no_grad()
def tallest(model: Decoder) -> float:
    """The largest number that experts read over the root mean square of its token, the worst token of all."""
    seen: list[float] = []

    def look(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x_TD = inputs[0].float()
        seen.append(float((x_TD.abs().amax(-1) / x_TD.square().mean(-1).sqrt()).amax()))

    for layer in model.moe_layers():
        layer.register_forward_pre_hook(look)
    model(IDS)
    return max(seen)


def test_no_column_stands_out() -> None:
    model = mixture()
    with torch.no_grad():
        # As in trained models: two columns that the embedding makes forty times as large as the rest.
        model.embed_tokens.weight[:, :2] *= 40.0
    assert tallest(rotated(model)) < 0.8 * tallest(model)


def test_rotated_and_packed() -> None:
    model = with_norms(mixture(moe_intermediate_size=256))
    spec = QuantiseSpec(quantisation=WIDE, attention=WIDE, head=WIDE, rotate=True)
    packed, report = quantise(model, spec)
    assert report["rotate"] is True
    assert all(layer["gate_up"] < 0.02 for layer in report["error"])
    by_hand, _ = quantise(rotated(model), spec.model_copy(update={"rotate": False}))
    assert distance(by_hand, packed) == 0.0
    assert distance(model, packed) < 0.2


def test_what_cannot_be_turned_is_refused() -> None:
    tied = ModelSpec.parse({**mixture().spec.model_dump(), "tie_word_embeddings": True})
    with pytest.raises(SpecError, match="output map of its own"):
        quantise(random_decoder(tied, 3, STD), QuantiseSpec(quantisation=WIDE, rotate=True))
    packed, _ = quantise(random_decoder(tied, 3, STD), QuantiseSpec(quantisation=WIDE, head=WIDE, rotate=True))
    assert not packed.spec.tie_word_embeddings
    for moe in ({"capacity": {"overflow": "residual"}}, {"gate": {"kind": "soft"}}):
        with pytest.raises(SpecError, match="hands hidden states on"):
            quantise(mixture(**moe), QuantiseSpec(quantisation=WIDE, head=WIDE, rotate=True))


def test_an_encoder_decoder_is_refused() -> None:
    model = EncoderDecoder(tiny_seq2seq("switch_transformers"))
    with pytest.raises(SpecError, match="only decoders are rotated"):
        quantise(model, QuantiseSpec(rotate=True))


def test_every_tensor_that_a_gate_can_have_is_known() -> None:
    linear: Any = {"logit_bias": True, "selection_bias": True}
    gates: list[Gate] = [SoftmaxTopk(**linear), NoisyTopk(), Hash(weights="learned"), Hierarchical(num_domains=2, groups_per_domain=1)]
    learned = CapacitySpec(overflow="learned")
    sizes = {"num_experts": 4, "top_k": 2, "hidden_size": 8, "vocab_size": 16}
    names = {tensor.name for gate in gates for tensor in gate_tensors(gate, learned, **sizes)}
    assert names == GATE_MAPS | GATE_OTHERS
    assert not GATE_MAPS & GATE_OTHERS


def test_a_gates_tensor_that_is_not_known_is_refused(monkeypatch) -> None:
    """Its name may end like those of maps, and say nothing of columns of the stream."""
    model = mixture()
    monkeypatch.setattr(MoeSpec, "gate_tensors", lambda *_: (GateTensor("level_weight", (4,)),))
    with pytest.raises(SpecError, match="whether the gate's level_weight reads the residual stream is not known"):
        _turn_mixture(next(model.moe_layers()), torch.ones(model.spec.hidden_size))
