"""config.json as families' authors released them: each is read, and describes a model of the published size.

`released/*.json` hold the keys and values of those files; `source` is where a file lies, `read_in` a public repository
that mirrors it and that it was read in. Sizes are the model cards' own, in billions of values.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moe_core.checkpoint import seq2seq
from moe_core.errors import FormatError
from moe_core.model.families import config_of, slots_of, spec_of
from moe_core.model.seq2seq.names import slots_of as seq2seq_slots_of
from moe_core.spec import ModelSpec
from moe_core.spec.seq2seq import Seq2SeqSpec
from moe_core.spec.weights import weights_of

FOLDER = Path(__file__).parent / "released"


@dataclass(frozen=True, slots=True)
class Card:
    """What is published of a model: its size, its layers, and its experts."""

    billions: float
    layers: int
    hidden: int
    heads: int
    # Layers with experts, experts in each, experts of a token, width of one, joint width of those that all tokens see.
    experts: tuple[int, int, int, int, int] | None = None


CARDS = {
    "llama-3.1-8b": Card(8.03, 32, 4096, 32),
    "llama-3.1-70b": Card(70.6, 80, 8192, 64),
    "llama-3.1-405b": Card(405.9, 126, 16384, 128),
    "mixtral-8x7b": Card(46.7, 32, 4096, 32, (32, 8, 2, 14336, 0)),
    "mixtral-8x22b": Card(140.6, 56, 6144, 48, (56, 8, 2, 16384, 0)),
    "qwen1.5-moe-a2.7b": Card(14.3, 24, 2048, 16, (24, 60, 4, 1408, 5632)),
    "qwen2-57b-a14b": Card(57.41, 28, 3584, 28, (28, 64, 8, 2560, 20480)),
    "qwen3-30b-a3b": Card(30.53, 48, 2048, 32, (48, 128, 8, 768, 0)),
    "qwen3-235b-a22b": Card(235.1, 94, 4096, 64, (94, 128, 8, 1536, 0)),
    "qwen3-coder-30b-a3b": Card(30.53, 48, 2048, 32, (48, 128, 8, 768, 0)),
    "qwen3-coder-480b-a35b": Card(480.2, 62, 6144, 96, (62, 160, 8, 2560, 0)),
    "olmoe-1b-7b": Card(6.92, 16, 2048, 16, (16, 64, 8, 1024, 0)),
    "deepseek-v2-lite": Card(15.7, 27, 2048, 16, (26, 64, 6, 1408, 2816)),
    "deepseek-v2": Card(235.7, 60, 5120, 128, (59, 160, 6, 1536, 3072)),
    "deepseek-v3": Card(671.0, 61, 7168, 128, (58, 256, 8, 2048, 2048)),
    "deepseek-r1": Card(671.0, 61, 7168, 128, (58, 256, 8, 2048, 2048)),
    "kimi-k2": Card(1026.0, 61, 7168, 64, (60, 384, 8, 2048, 2048)),
    "gpt-oss-20b": Card(20.91, 24, 2880, 64, (24, 32, 4, 2880, 0)),
    "gpt-oss-120b": Card(116.83, 36, 2880, 64, (36, 128, 4, 2880, 0)),
    "step-3.5-flash": Card(196.81, 45, 4096, 64, (42, 288, 8, 1280, 1280)),
}
# NLLB's size is the paper's; Switch's is that of its weights (no figure is published for the small one).
SEQ2SEQ_CARDS = {
    "switch-base-8": (0.619, (12, 12), (6, 6), (8, 1, 3072)),
    "nllb-moe-54b": (54.5, (24, 24), (6, 6), (128, 2, 8192)),
}

TRANSFORMERS_4: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "torchscript": False,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "architectures": None,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "task_specific_params": None,
    "problem_type": None,
    "tokenizer_class": None,
    "prefix": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "output_attentions": False,
}


def config_named(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["config"]
    return config


def size_of(slots: Any) -> int:
    return sum(math.prod(slot.shape) for slot in slots)


def test_every_file_has_its_card() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*CARDS, *SEQ2SEQ_CARDS}


@pytest.mark.parametrize("name", CARDS)
def test_a_released_decoder_is_read_with_the_published_numbers(name: str) -> None:
    spec, card = spec_of(config_named(name)), CARDS[name]
    assert (spec.num_hidden_layers, spec.hidden_size, spec.num_attention_heads) == (
        card.layers,
        card.hidden,
        card.heads,
    )
    assert experts_of(spec) == card.experts
    size = size_of(slots_of(spec))
    assert size == pytest.approx(card.billions * 1e9, rel=0.01)
    assert size == sum(weight.size * weight.count for weight in weights_of(spec))
    assert spec_of(config_of(spec, "bfloat16")) == spec


def experts_of(spec: ModelSpec) -> tuple[int, int, int, int, int] | None:
    moe = spec.moe
    if moe is None:
        return None
    shared = moe.shared_intermediate_size or 0
    return (len(moe.moe_layers), moe.num_experts, moe.top_k, moe.moe_intermediate_size, shared)


@pytest.mark.parametrize("name", SEQ2SEQ_CARDS)
def test_a_released_encoder_decoder_is_read_with_the_published_numbers(name: str) -> None:
    spec = seq2seq.spec_of(config_named(name))
    billions, layers, sparse, experts = SEQ2SEQ_CARDS[name]
    assert (spec.encoder.num_layers, spec.decoder.num_layers) == layers
    assert (len(spec.encoder.moe_layers), len(spec.decoder.moe_layers)) == sparse
    assert (spec.num_experts, spec.top_k, spec.encoder.intermediate_size) == experts
    assert seq2seq_size(spec) == pytest.approx(billions * 1e9, rel=0.01)


def seq2seq_size(spec: Seq2SeqSpec) -> int:
    return size_of(seq2seq_slots_of(spec, seq2seq.FAMILIES[spec.family].names))


@pytest.mark.parametrize(
    ("name", "key", "value", "complaint"),
    [
        ("qwen3-coder-30b-a3b", "qkv_bias", True, "qkv_bias is true, .* it must be false"),
        ("qwen3-coder-30b-a3b", "use_qk_norm", False, "use_qk_norm is false, .* it must be true"),
        ("qwen3-coder-30b-a3b", "shared_expert_intermediate_size", 512, "is 512, .* it must be null or 0"),
        ("qwen3-coder-30b-a3b", "shared_expert_intermediate_size", False, "is false, .* null or 0"),
        ("mixtral-8x7b", "use_qk_norm", True, "use_qk_norm is true, .* it must be false"),
        ("llama-3.1-8b", "final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0, .* null"),
        ("olmoe-1b-7b", "n_shared_experts", 1, "n_shared_experts is 1, .* null or 0"),
        ("gpt-oss-20b", "first_k_dense_replace", 3, "first_k_dense_replace is 3, .* it must be 0"),
        ("qwen3-30b-a3b", "use_sliding_window", True, "use_sliding_window"),
        ("qwen3-30b-a3b", "num_experts_per_token", 8, "num_experts_per_token"),
        ("mixtral-8x7b", "top_k", 1, "top_k is 1, .* it must be 50"),
        ("olmoe-1b-7b", "pruned_heads", {"0": [1]}, "pruned_heads is .* it must be null or {}"),
        ("llama-3.1-8b", "trust_remote_code", True, "trust_remote_code"),
    ],
)
def test_a_key_that_says_something_new_is_refused_by_name(
    name: str, key: str, value: object, complaint: str
) -> None:
    with pytest.raises(FormatError, match=complaint):
        spec_of({**config_named(name), key: value})


@pytest.mark.parametrize("name", CARDS)
def test_what_other_families_would_say_changes_nothing_where_it_means_none(name: str) -> None:
    config = config_named(name)
    more = {"attn_logit_softcapping": None, "add_cross_attention": False, "embedding_multiplier": 1}
    assert not more.keys() & config.keys()
    assert spec_of({**config, **more}) == spec_of(config)


RUNNING = {
    "_attn_implementation_autoset": True,
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
    "tokenizer_class": "LlamaTokenizer",
    "model_max_length": 4096,
    "unsloth_version": "2025.9.1",
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
}


@pytest.mark.parametrize("name", CARDS)
def test_how_a_program_runs_a_model_changes_nothing(name: str) -> None:
    assert spec_of({**config_named(name), **RUNNING}) == spec_of(config_named(name))


@pytest.mark.parametrize("name", CARDS)
def test_what_transformers_4_wrote_into_every_file_changes_nothing(name: str) -> None:
    """`PretrainedConfig().to_dict()` of 4.56, without the keys that every family has."""
    config = config_named(name)
    more = {key: value for key, value in TRANSFORMERS_4.items() if key not in config}
    assert spec_of({**config, **more}) == spec_of(config)


@pytest.mark.parametrize("name", SEQ2SEQ_CARDS)
def test_encoder_decoders_take_them_too(name: str) -> None:
    config = config_named(name)
    assert seq2seq.spec_of({**config, **RUNNING}) == seq2seq.spec_of(config)


@pytest.mark.parametrize("said", [{"scale_fmt": "ue8m0"}, {"dequantize": True, "modules_to_convert": None}])
def test_deepseek_v3_1_says_how_its_factors_are_rounded(said: dict[str, Any]) -> None:
    config = config_named("deepseek-v3")
    quantised = {**config, "quantization_config": {**config["quantization_config"], **said}}
    assert spec_of(quantised) == spec_of(config)


@pytest.mark.parametrize(
    "said", [{"scale_fmt": "e5m2"}, {"expert_dtype": "fp4"}, {"weight_block_size": [64, 64]}]
)
def test_another_way_to_store_weights_is_refused_by_name(said: dict[str, Any]) -> None:
    config = config_named("deepseek-v3")
    with pytest.raises(FormatError, match=next(iter(said))):
        spec_of({**config, "quantization_config": {**config["quantization_config"], **said}})


def test_nllb_says_its_layers_twice_alike() -> None:
    with pytest.raises(FormatError, match=r"num_hidden_layers \(12\) must be encoder_layers \(24\)"):
        seq2seq.spec_of({**config_named("nllb-moe-54b"), "num_hidden_layers": 12})
