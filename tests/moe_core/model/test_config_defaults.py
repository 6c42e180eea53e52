"""What config.json leaves out is read as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.errors import FormatError
from moe_core.model.families import FAMILIES, spec_of

transformers = pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import attention_of, reference  # noqa: E402

# Past the lengths that the tiny models' yarn was trained on.
IDS = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-6


def saved_with(case: str, directory: Path, keys: dict[str, Any]) -> Path:
    """A random model of a case, whose config.json says of positions what `keys` do and nothing else."""
    reference(case).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"]
    (directory / "config.json").write_text(json.dumps(config | keys))
    return directory


@torch.no_grad()
def check_equal(directory: Path, model_type: str) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention_of(model_type)
    ).eval()
    wanted = theirs(IDS).logits
    assert float((moe_core.load(directory)(IDS) - wanted).norm() / wanted.norm()) < TOLERANCE


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "yarn"),
        ({"rope_theta": 5000.0}, "yarn"),
        ({"rope_theta": 5000.0, "rope_scaling": None}, "yarn"),
        ({"rope_theta": 5000.0, "rope_scaling": {}}, "yarn"),
        ({"rope_parameters": None}, "yarn"),
        ({"rope_parameters": {"rope_type": "default"}}, "plain"),
        ({"rope_parameters": {"rope_theta": 5000.0}}, "plain"),
    ],
)
def test_gpt_oss_stretches_positions_unless_a_key_says_that_it_does_not(
    tmp_path: Path, keys: dict[str, Any], kind: str
) -> None:
    directory = saved_with("gpt_oss", tmp_path, keys)
    spec = spec_of(json.loads((directory / "config.json").read_text()))
    assert spec.rope.kind == kind
    assert spec.rope_theta == (5000.0 if "5000" in str(keys) else 150_000.0)
    check_equal(directory, "gpt_oss")


# What no family has a default for here. Heads and widths are those that every default of transformers divides.
ASKED = {
    "vocab_size": 512, "hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 32,
}  # fmt: skip
# transformers' class for a family, and what must be asked of it besides.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mixtral": ("MixtralConfig", {}),
    "qwen2_moe": ("Qwen2MoeConfig", {}),
    "qwen3_moe": ("Qwen3MoeConfig", {}),
    "olmoe": ("OlmoeConfig", {}),
    # Of latent attention there are as many keys as queries, and V2 has no number of experts for a token.
    "deepseek_v3": ("DeepseekV3Config", {"num_attention_heads": 128}),
    "deepseek_v2": ("DeepseekV2Config", {"num_experts_per_tok": 6}),
    "gpt_oss": ("GptOssConfig", {}),
    "step3p5": ("Step3p7TextConfig", {}),
}
# The tokens that begin and end a text are none unless a file says them: those of one released tokenizer end no other's text.
UNSAID = ("bos_token_id", "eos_token_id", "pad_token_id")


def test_no_family_of_transformers_is_left_out() -> None:
    theirs = {family.name for family in FAMILIES.values() if family.in_transformers}
    # Of Step-3.5 transformers has the text of a larger model.
    assert set(CLASSES) == {*theirs, "step3p5"}


@pytest.mark.parametrize("family", CLASSES)
def test_what_is_left_out_is_what_transformers_writes_when_it_writes_everything(family: str) -> None:
    name, more = CLASSES[family]
    written = json.loads(json.dumps(getattr(transformers, name)(**{**ASKED, **more}).to_dict()))
    told = spec_of({key: value for key, value in written.items() if key not in UNSAID})
    assert spec_of({"model_type": family, **ASKED, **more}) == told


def test_deepseek_v2_says_how_many_experts_a_token_has() -> None:
    with pytest.raises(FormatError, match="num_experts_per_tok"):
        spec_of({"model_type": "deepseek_v2", **ASKED})


OLD_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5000.0, "rope_scaling": {"type": "yarn", "rope_type": "yarn", **OLD_YARN}},
        {"rope_parameters": {"type": "yarn", "rope_type": "yarn", "rope_theta": 5000.0, **OLD_YARN}},
        {"rope_parameters": {"type": "yarn", "rope_theta": 5000.0, **OLD_YARN}},
        # The longest text is 128 tokens.
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, **OLD_YARN, "factor": None}},
        {"rope_theta": 5000.0, "attention_dropout": None, "pretraining_tp": None},
    ],
)
def test_keys_that_are_said_twice_or_null_are_read_as_transformers_reads_them(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    directory = saved_with("llama", tmp_path, keys)
    spec = spec_of(json.loads((directory / "config.json").read_text()))
    stretched = "yarn" in str(keys)
    assert (spec.rope.kind, spec.rope.factor) == (("yarn", 4.0) if stretched else ("plain", 1.0))
    check_equal(directory, "llama")


NEW_YARN = {"rope_type": "yarn", **OLD_YARN}
PLAIN = {"rope_type": "default"}
# What config.json says of positions, and what of it counts: kind, factor and theta, None for the family's own.
SAID_TWICE: list[tuple[dict[str, Any], tuple[str, float, float | None]]] = [
    ({"rope_scaling": NEW_YARN, "rope_parameters": {**PLAIN, "rope_theta": 5000.0}}, ("yarn", 4.0, None)),
    ({"rope_scaling": PLAIN, "rope_parameters": {**NEW_YARN, "rope_theta": 5000.0}}, ("plain", 1.0, None)),
    (
        {"rope_scaling": {**NEW_YARN, "factor": 2.0}, "rope_parameters": {**NEW_YARN, "rope_theta": 5000.0}},
        ("yarn", 2.0, None),
    ),
    (
        {
            "rope_scaling": {**NEW_YARN, "rope_theta": 700.0},
            "rope_parameters": {**PLAIN, "rope_theta": 5000.0},
        },
        ("yarn", 4.0, 700.0),
    ),
    (
        {"rope_theta": 700.0, "rope_scaling": NEW_YARN, "rope_parameters": {**PLAIN, "rope_theta": 5000.0}},
        ("yarn", 4.0, 700.0),
    ),
    ({"rope_scaling": {}, "rope_parameters": {**NEW_YARN, "rope_theta": 5000.0}}, ("yarn", 4.0, 5000.0)),
    ({"rope_scaling": None, "rope_parameters": {**NEW_YARN, "rope_theta": 5000.0}}, ("yarn", 4.0, 5000.0)),
]
OWN_THETA = {"mixtral": 1_000_000.0, "qwen3_moe": 10_000.0, "gpt_oss": 150_000.0}


@pytest.mark.parametrize("family", OWN_THETA)
@pytest.mark.parametrize(("keys", "counts"), SAID_TWICE)
def test_a_rope_scaling_that_says_anything_counts_beside_rope_parameters(
    tmp_path: Path, family: str, keys: dict[str, Any], counts: tuple[str, float, float | None]
) -> None:
    directory = saved_with(family, tmp_path, keys)
    spec = spec_of(json.loads((directory / "config.json").read_text()))
    kind, factor, theta = counts
    assert (spec.rope.kind, spec.rope.factor) == (kind, factor)
    assert spec.rope_theta == (OWN_THETA[family] if theta is None else theta)
    check_equal(directory, family)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_two_types_of_positions_that_differ_are_refused(key: str) -> None:
    said = {key: {"type": "yarn", "rope_type": "llama3", **OLD_YARN}}
    with pytest.raises(FormatError, match=r"rope_type \(llama3\) and type \(yarn\) are one thing and differ"):
        spec_of({"model_type": "llama", **ASKED, **said})


def test_a_stretching_without_a_factor_has_that_of_its_lengths() -> None:
    said = {"rope_type": "yarn", "original_max_position_embeddings": 512}
    spec = spec_of({"model_type": "llama", **ASKED, "max_position_embeddings": 4096, "rope_parameters": said})
    assert spec.rope.factor == 8.0


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v3"])
def test_the_number_of_experts_is_read_by_either_name_that_transformers_knows(case: str) -> None:
    made = reference(case).config
    config = json.loads(made.to_json_string(use_diff=False))
    names = {kept for pair in made.attribute_map.items() if "experts" in pair[0] for kept in pair}
    (written,) = names & set(config)
    (other,) = names - {written}
    renamed = {other if key == written else key: value for key, value in config.items()}
    assert spec_of(renamed) == spec_of(config)
    with pytest.raises(FormatError, match="differ"):
        spec_of({**config, other: config[written] + 1})
