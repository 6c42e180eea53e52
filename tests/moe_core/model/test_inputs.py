"""The public face refuses what it cannot compute with a typed error that says the value and the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core import EncoderDecoder
from moe_core.errors import CheckpointError, InputError, SpecError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.model.seq2seq.init import random_encoder_decoder
from moe_core.operations import grow
from moe_core.operations.passes import hidden_of
from moe_core.operations.prompts import Prompts
from moe_core.spec.gate import ExpertChoice, Soft
from moe_core.spec.operations import GrowSpec
from tests.moe_core.tiny import STD, tiny_mixtral, tiny_seq2seq, tiny_turnout


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_decoder(tiny_mixtral().model_copy(update={"eos_token_ids": ()}), 3, STD)


@pytest.fixture(scope="module")
def directory(model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_core.save(model, tmp_path_factory.mktemp("inputs") / "m")


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        (torch.tensor([[1, 97]]), r"token id 97 is outside the vocabulary of 97 \(0 to 96\)"),
        (torch.tensor([[-1, 5]]), "token id -1 is outside"),
        (torch.tensor([1, 2]), r"has shape \(2,\); give \(batch, sequence\)"),
        (torch.tensor([[1.0]]), "dtype torch.float32; token ids are integers"),
        (torch.tensor([[True]]), "dtype torch.bool"),
        (
            torch.tensor([[1, 2]]).byte(),
            r"dtype torch.uint8; .* torch.int64 or torch.int32: give ids.long\(\)",
        ),
        (torch.tensor([[1, 2]], dtype=torch.int16), "dtype torch.int16"),
        ([[1, 2]], "not list; give torch.tensor"),
        (torch.zeros(1, 129, dtype=torch.long), r"129 tokens are more than the model's 128 positions"),
    ],
)
def test_a_call_refuses_what_are_no_tokens(model: Decoder, ids: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        model(ids)


def test_a_batch_of_nothing_has_logits_of_nothing(model: Decoder) -> None:
    assert model(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 4, 97)
    assert model(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 97)
    assert model(torch.zeros(1, 128, dtype=torch.int32)).shape == (1, 128, 97)


@pytest.mark.parametrize(
    ("ids", "count", "complaint"),
    [
        ([], 4, "the prompt has no token; give at least one"),
        ([500], 4, "token id 500"),
        (torch.tensor([[5, 6]]), 4, r"shape \(1, 2\); give ids\[0\]"),
        ([5], -1, "max_new_tokens is -1"),
        ([5], 2.5, "max_new_tokens is 2.5; it must be a whole number, 0 or more"),
        ([5], True, "max_new_tokens is True; it must be a whole number"),
        ([True, False], 4, r"whole numbers, and not \[True, False\]"),
        (torch.tensor([True]), 4, "whole numbers"),
        ([5], None, "max_new_tokens is None; it must be a whole number"),
        ([5], "4", "max_new_tokens is '4'; it must be a whole number"),
        ([5] * 100, 29, "129 tokens are more than the model's 128 positions"),
        ("12", 4, "not '12'; encode text"),
        ([1.7, 2], 4, r"whole numbers, and not \[1.7, 2\]"),
        ([None], 4, "whole numbers"),
        (5, 4, "whole numbers"),
    ],
)
def test_generation_refuses_what_is_no_prompt(model: Decoder, ids: Any, count: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        model.generate(ids, count)


def test_generation_takes_a_tensor_and_fills_the_context(model: Decoder) -> None:
    assert model.generate(torch.tensor([5, 6]), 4) == model.generate([5, 6], 4)
    assert len(model.generate([5] * 100, 28)) == 28
    assert model.generate([5], 0) == []


@pytest.mark.parametrize("gate", [Soft(), ExpertChoice()], ids=lambda gate: gate.kind)
def test_a_gate_that_sees_the_batch_does_not_generate(gate: Soft | ExpertChoice) -> None:
    spec = tiny_turnout()
    assert spec.moe is not None
    seeing = random_decoder(
        spec.model_copy(update={"moe": spec.moe.model_copy(update={"gate": gate, "capacity": None})}), 3, STD
    )
    assert seeing(torch.tensor([[5, 6, 7]])).isfinite().all()
    with pytest.raises(InputError, match=f"gate '{gate.kind}' chooses for all tokens of a batch at once"):
        seeing.generate([5, 6, 7], 4)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "int3", torch.int8, None])
def test_a_dtype_that_is_not_computed_is_refused_by_name(directory: Path, dtype: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"dtype '.*(16|3|8|None)' is not computed here; choose 'float32' or"
    ):
        moe_core.load(directory, dtype=dtype)


def test_torchs_own_dtypes_are_taken(directory: Path, model: Decoder, tmp_path: Path) -> None:
    half = moe_core.load(directory, dtype=torch.bfloat16)
    assert half.dtype is torch.bfloat16
    again = moe_core.load(moe_core.save(model, tmp_path / "b", dtype=torch.bfloat16), "bfloat16")
    assert torch.equal(again(torch.tensor([[5, 6]])), half(torch.tensor([[5, 6]])))


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda model, path: moe_core.save(model, path, dtype="int8"), "dtype 'int8' is not computed here"),
        (lambda model, path: moe_core.save(torch.nn.Linear(2, 2), path), "Linear is no model of moe_core"),
    ],
)
def test_saving_refuses_other_dtypes_and_other_things(
    model: Decoder, tmp_path: Path, act: Callable[..., object], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        act(model, tmp_path / "x")


def test_a_device_that_is_not_there_is_refused_by_name(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"device 'abacus' cannot be used .*'cpu' always can"):
        moe_core.load(directory, device="abacus")


def test_operations_look_at_the_vocabulary_first(model: Decoder) -> None:
    with pytest.raises(SpecError, match="token 500 is outside the vocabulary of 97"):
        hidden_of(model, Prompts.of({"a": [[500, 2, 3]]}))
    with pytest.raises(SpecError, match="token -4 is outside"):
        hidden_of(model, Prompts.of({"a": [[-4, 2, 3]]}))


def test_growth_by_doubled_k_says_how_far_it_reaches(model: Decoder) -> None:
    assert model.spec.moe is not None
    (experts, top_k) = (model.spec.moe.num_experts, model.spec.moe.top_k)
    with pytest.raises(
        SpecError, match=rf"at most 64 experts; grow to at most {experts * 64 // top_k}, or with 'twin'"
    ):
        grow(model, GrowSpec(num_experts=experts * 64, method="double_k"))


@pytest.fixture(scope="module")
def reader() -> EncoderDecoder:
    spec = tiny_seq2seq("nllb-moe", max_position_embeddings=12, eos_token_id=None)
    return random_encoder_decoder(spec, 3, STD)


def test_an_encoder_decoder_refuses_more_tokens_than_it_has_positions_for(reader: EncoderDecoder) -> None:
    most, more = torch.full((1, 12), 5), torch.full((1, 13), 5)
    assert reader(most, most).shape == (1, 12, 97)
    assert len(reader.generate([5] * 12, 12)) == 12
    for source, target in ((more, most), (most, more)):
        with pytest.raises(InputError, match="13 tokens are more than the model's 12 positions"):
            reader(source, target)
    for ids, count in (([5] * 13, 1), ([5], 13)):
        with pytest.raises(InputError, match="13 tokens are more than the model's 12 positions"):
            reader.generate(ids, count)
    with pytest.raises(InputError, match="max_new_tokens is True"):
        reader.generate([5], True)
