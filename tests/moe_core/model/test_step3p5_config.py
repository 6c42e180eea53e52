"""config.json of Step-3.5 and Step-3.7: released keys, transformers' keys, and what contradicts itself or is not computed."""

from __future__ import annotations

from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moe_core
from moe_core.errors import FormatError
from moe_core.model.families import config_of, spec_of
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec, cost_of
from moe_core.spec.attention import SlidingSpec
from tests.moe_core.tiny import STD, tiny_family

# As StepFun releases it: three layers after the 45th predict further tokens, and lists count them.
KINDS = ["full_attention", *["sliding_attention"] * 3] * 12
RELEASED: dict[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "auto_map": {"AutoConfig": "x.Y"},
    "vocab_size": 128896, "hidden_size": 4096, "intermediate_size": 11264, "num_hidden_layers": 45,
    "max_position_embeddings": 262144, "max_seq_len": 262144, "torch_dtype": "bfloat16", "bos_token_id": 0,
    "eos_token_id": [1, 2], "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128,
    "use_qk_norm": True, "use_moe": True, "moe_num_experts": 288, "moe_top_k": 8, "moe_intermediate_size": 1280,
    "share_expert_dim": 1280, "moe_layer_offset": 0, "moe_every_n_layer": 1, "norm_expert_weight": True,
    "moe_layers_enum": ",".join(map(str, range(3, 45))), "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 3.0, "use_moe_router_bias": True, "need_fp32_gate": True, "att_impl_type": "GQA",
    "use_head_wise_attn_gate": True, "use_rope_layers": [], "yarn_only_types": ["full_attention"],
    "rope_theta": [5e6 if kind == "full_attention" else 1e4 for kind in KINDS],
    "partial_rotary_factors": [0.5 if kind == "full_attention" else 1.0 for kind in KINDS],
    "rope_scaling": {
        "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 32.0,
        "original_max_position_embeddings": 131072,
    },
    "layer_types": KINDS, "sliding_window": 512, "num_nextn_predict_layers": 3, "zero_centered": True, "sink": False,
    "attention_other_setting": {
        "attention_type": "sliding_attention", "num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128,
        "true_head_dim": 128,
    },
    "swiglu_limits": [0.0] * 43 + [7.0, 7.0] + [0.0] * 3, "swiglu_limits_shared": [0.0] * 43 + [0.0, 16.0] + [0.0] * 3,
    "tie_word_embeddings": False,
}  # fmt: skip


def released(**changes: Any) -> ModelSpec:
    return spec_of({**RELEASED, **changes})


def test_released_keys_say_the_whole_model() -> None:
    spec = released()
    assert spec.moe is not None and spec.moe.moe_layers == tuple(range(3, 45))
    assert spec.attention.sliding == SlidingSpec(num_attention_heads=96, rope_theta=1e4)
    assert spec.attention.sliding_layers == tuple(n for n in range(45) if n % 4)
    assert (spec.rope_theta, spec.rope.partial_rotary_factor, spec.rope.kind) == (5e6, 0.5, "llama3")
    assert [spec.num_heads_of(layer) for layer in range(5)] == [64, 96, 96, 96, 64]
    assert [spec.expert_clamp(layer) for layer in (42, 43, 44)] == [0.0, 7.0, 7.0]
    assert [spec.dense_clamp(layer) for layer in (42, 43, 44)] == [0.0, 0.0, 16.0]
    assert spec.zero_centred_norms
    assert spec_of(config_of(spec, "bfloat16")) == spec


def test_it_counts_as_many_parameters_as_are_announced() -> None:
    """196 billion, and 11 billion at a token, both without the layers that predict further."""
    cost = cost_of(released())
    assert int(cost.total / 1e9) == 196
    assert int(cost.active_per_token / 1e9) == 11


def test_what_transformers_writes_is_read_alike() -> None:
    transformers = pytest.importorskip("transformers")
    known = {
        key: value
        for key, value in RELEASED.items()
        if key not in ("architectures", "auto_map", "torch_dtype")
    }
    theirs = transformers.AutoConfig.for_model(**known)
    written = {
        key: value for key, value in theirs.to_diff_dict().items() if key in config_of(released(), "float32")
    }
    assert spec_of(written) == released()
    back = transformers.AutoConfig.for_model(**config_of(released(), "bfloat16"))
    for key in ("rope_parameters", "per_layer_config", "mlp_layer_types", "layer_types"):
        assert back.to_dict()[key] == theirs.to_dict()[key], key


SLIDING = [layer for layer in range(45) if layer % 4]


@pytest.mark.parametrize(
    ("sliding_heads", "said"),
    [
        (64, {}),
        (64, dict.fromkeys(range(45), 64)),
        (64, {3: 64}),
        (96, dict.fromkeys(SLIDING, 96)),
        (96, dict.fromkeys(range(45), 64) | dict.fromkeys(SLIDING, 96)),
    ],
)
def test_layers_may_be_named_that_differ_from_the_whole_or_do_not(
    sliding_heads: int, said: dict[int, int]
) -> None:
    own = {"attention_other_setting": None, "num_sliding_attention_heads": sliding_heads}
    by_layer = {str(layer): {"num_attention_heads": heads} for layer, heads in said.items()}
    assert released(**own, per_layer_config=by_layer) == released(**own)


@pytest.mark.parametrize("said", [{}, {1: 96}, dict.fromkeys(range(45), 96)])
def test_layers_that_are_not_named_have_the_heads_of_the_whole(said: dict[int, int]) -> None:
    by_layer = {str(layer): {"num_attention_heads": heads} for layer, heads in said.items()}
    with pytest.raises(FormatError, match=r"per_layer_config says .* say \{"):
        released(per_layer_config=by_layer)


def test_of_step_3p7_the_text_is_read() -> None:
    whole = {
        "model_type": "step3p7", "architectures": ["Step3p7ForConditionalGeneration"], "image_token_id": 7,
        "vision_config": {"hidden_size": 8}, "text_config": RELEASED,
    }  # fmt: skip
    assert spec_of(whole) == released()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"zero_centered": False}, "zero_centered"),
        ({"sink": True}, "sink"),
        ({"moe_router_activation": "softmax"}, "moe_router_activation"),
        ({"use_head_wise_attn_gate": False}, "use_head_wise_attn_gate"),
        ({"moe_every_n_layer": 2}, "moe_every_n_layer"),
        ({"yarn_only_types": ["sliding_attention"]}, "yarn_only_types"),
        ({"query_pre_attn_scalar": 64}, r"query_pre_attn_scalar \(64.0\) must be head_dim \(128\)"),
        ({"layer_types": KINDS[:44]}, "layer_types has 44 values for 45 layers and 3 that predict further"),
        (
            {"rope_theta": [float(n + 1) for n in range(48)]},
            "rope_theta must be the same in all layers of one kind",
        ),
        ({"rope_theta": [1e4] * 3}, "rope_theta has 3 values"),
        ({"swiglu_limits": [1.0]}, "swiglu_limits has 1 values"),
        ({"swiglu_limits": [-1.0] * 45}, "expert_clamps"),
        ({"partial_rotary_factors": [2.0] * 45}, "partial_rotary_factor"),
        ({"moe_layers_enum": "3,x"}, "invalid literal"),
        ({"moe_num_experts": 8, "n_routed_experts": 9}, "are one thing and differ"),
        (
            {"attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 4}},
            "groups and head_dim",
        ),
        (
            {"attention_other_setting": {"num_attention_heads": 96, "true_head_dim": 64}},
            "groups and head_dim",
        ),
        ({"attention_other_setting": {"num_attention_heads": 95}}, "must be divisible"),
        ({"per_layer_config": {"1": {"num_attention_heads": 32}}}, "per_layer_config says"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters lacks sliding_attention"),
        (
            {"rope_scaling": {"type": "default", "rope_theta": 1e4}},
            "rope_theta is 5000000.0, but rope_scaling says",
        ),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta must be given below full_attention"),
        ({"sliding_window": None}, "sliding_window and sliding_layers are given together"),
        ({"mqa_rope_dim": 64}, "mqa_rope_dim"),
    ],
)
def test_what_is_not_computed_or_contradicts_itself_is_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(FormatError, match=complaint):
        released(**changes)


def test_windows_stretched_by_themselves_are_refused() -> None:
    keys = {key: value for key, value in RELEASED.items() if not key.startswith(("rope_", "partial_"))}
    stretched = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(FormatError, match="rope_type of sliding_attention must be 'default', not 'yarn'"):
        spec_of({**keys, "rope_parameters": {"sliding_attention": stretched}})


LLAMA3 = RELEASED["rope_scaling"]
# What the released keys say, kind by kind.
BY_KIND: dict[str, dict[str, Any]] = {
    "full_attention": {"rope_theta": 5e6, "partial_rotary_factor": 0.5, **LLAMA3},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def with_released(said: dict[str, Any], **stated: dict[str, Any]) -> dict[str, Any]:
    """The released configuration, of its keys for positions only these, beside `rope_parameters`."""
    keys = {key: value for key, value in RELEASED.items() if not key.startswith(("rope_", "partial_"))}
    return {
        **keys,
        **said,
        "rope_parameters": {kind: BY_KIND[kind] | stated.get(kind, {}) for kind in BY_KIND},
    }


POSITIONS = {key: value for key, value in RELEASED.items() if key.startswith(("rope_", "partial_"))}


@pytest.mark.parametrize(
    "said",
    [
        POSITIONS,
        {"rope_scaling": LLAMA3},
        {"rope_scaling": {**LLAMA3, "rope_theta": 5e6, "partial_rotary_factor": None}},
        {"rope_scaling": {"type": "llama3", "factor": 2.0}},
        {"rope_scaling": {}},
        {"rope_scaling": None},
        {"rope_theta": POSITIONS["rope_theta"][:45]},
        {"partial_rotary_factors": POSITIONS["partial_rotary_factors"]},
    ],
)
def test_released_keys_may_repeat_rope_parameters(said: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    spec = spec_of(with_released(said))
    assert spec == released()
    # Where every kind is said, transformers reads nothing else.
    theirs = transformers.AutoConfig.for_model(**with_released(said))
    assert theirs.rope_parameters == {
        kind: dict(value) for kind, value in with_released(said)["rope_parameters"].items()
    }


def test_positions_that_follow_from_lengths_may_be_repeated() -> None:
    """A factor that is left out is that of the lengths, 2; whole heads turn where no share is said."""
    stated = {"factor": None, "partial_rotary_factor": None}
    said = {"rope_scaling": LLAMA3, "partial_rotary_factors": [1.0] * 45}
    assert spec_of(with_released(said, full_attention=stated)) == released(partial_rotary_factors=[1.0] * 45)


def test_rope_parameters_that_say_nothing_leave_it_to_the_released_keys() -> None:
    assert released(rope_parameters={}) == released(rope_parameters=None) == released()


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (
            {"rope_theta": 1e4},
            "rope_theta of full_attention is 5000000.0 by rope_parameters, but rope_theta says 10000.0",
        ),
        (
            {"rope_theta": [5e6] * 45},
            "rope_theta of sliding_attention is 10000.0 by rope_parameters, but rope_theta says 5000000.0",
        ),
        (
            {"partial_rotary_factors": [0.5] * 48},
            "partial_rotary_factor of sliding_attention is 1.0 by rope_parameters, but partial_rotary_factors says 0.5",
        ),
        (
            {"rope_scaling": {**LLAMA3, "factor": 4.0}},
            "factor of full_attention is 2.0 by rope_parameters, but rope_scaling says 4.0",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type of full_attention is llama3 by rope_parameters, but rope_scaling says yarn",
        ),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}},
            "high_freq_factor of full_attention is 32.0 by rope_parameters, but rope_scaling says 0.5",
        ),
    ],
)
def test_released_keys_that_contradict_rope_parameters_are_refused_by_name(
    said: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(FormatError, match=complaint):
        spec_of(with_released(said))


def test_a_kind_of_layer_without_positions_is_refused() -> None:
    keys = {key: value for key, value in RELEASED.items() if not key.startswith(("rope_", "partial_"))}
    with pytest.raises(FormatError, match="rope_parameters lacks sliding_attention, which layer 1 is"):
        spec_of({**keys, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}})


def test_no_other_family_turns_a_part_of_its_heads() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = config_of(tiny_family("qwen3_moe"), "float32")
    with pytest.raises(FormatError, match="partial_rotary_factor"):
        spec_of({**config, "rope_parameters": rope})


def test_layers_that_predict_further_and_the_part_that_sees_are_left_out(tmp_path: Path) -> None:
    model = random_decoder(tiny_family("step3p5"), 1, STD)
    moe_core.save(model, tmp_path / "m")
    own = {
        name: tensor
        for file in (tmp_path / "m").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    (tmp_path / "one").mkdir()
    copy(tmp_path / "m" / "config.json", tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    more = {
        "model.layers.3.eh_proj.weight": torch.zeros(4, 8), "model.layers.3.self_attn.g_proj.weight": torch.zeros(4, 4),
        "vision_model.conv1.weight": torch.zeros(2, 2), "vit_large_projector.weight": torch.zeros(2, 2),
    }  # fmt: skip
    ids = torch.arange(12)[None]
    save_file({**own, **more}, file)
    assert torch.equal(moe_core.load(file.parent)(ids), model(ids))
    save_file({**own, "model.layers.1.moe.up_proj.bias": torch.zeros(2)}, file)
    with pytest.raises(FormatError, match="hold unknown 1 tensors, first model.layers.1.moe.up_proj.bias"):
        moe_core.load(file.parent)
