"""Model directories: saved whole or not at all, loaded only when every name, shape and hash fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.errors import CheckpointError, FormatError, HashMismatch
from moe_core.model import Decoder
from moe_core.model.families import config_of, spec_of
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec, cost_of
from tests.moe_core.tiny import STD, tiny_llama, tiny_mixtral, tiny_turnout

SPECS = [tiny_llama(), tiny_llama(tie_word_embeddings=False), tiny_mixtral(), tiny_turnout()]
IDS = torch.arange(1, 21).view(2, 10)


def named(spec: ModelSpec) -> str:
    return f"{spec.family}-{'tied' if spec.tie_word_embeddings else 'untied'}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_a_model_survives_the_disk_bit_for_bit(spec: ModelSpec, dtype: Any, tmp_path: Path) -> None:
    model = random_decoder(spec, 1, STD, getattr(torch, dtype))
    moe_core.save(model, tmp_path / "m")
    loaded = moe_core.load(tmp_path / "m", dtype)
    assert loaded.spec == spec
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert torch.equal(loaded(IDS), model(IDS))


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_inspection_tells_what_the_built_model_measures(spec: ModelSpec, tmp_path: Path) -> None:
    model = random_decoder(spec, 1)
    moe_core.save(model, tmp_path / "m", dtype="bfloat16")
    told = inspect_dir(tmp_path / "m")
    assert told["params_total"] == sum(p.numel() for p in model.parameters()) == cost_of(spec).total
    assert told["family"] == spec.family
    assert ModelSpec.parse(told["spec"]) == spec
    router = told["params"].get("router", 0)
    assert told["bytes_total"] == 2 * (told["params_total"] - router) + 4 * router
    assert told["files"].keys() == hashes_of(tmp_path / "m").keys()
    assert told["has_tokenizer"] is False
    json.dumps(told)


def test_shards_follow_the_parts_of_the_model(tmp_path: Path) -> None:
    moe_core.save(random_decoder(tiny_turnout(), 1), tmp_path / "m")
    weights = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert weights == [
        "experts-0.safetensors",
        "experts-2.safetensors",
        "router.safetensors",
        "trunk.safetensors",
    ]


def test_a_tuned_router_leaves_every_other_shard_as_it_was(tmp_path: Path) -> None:
    model = random_decoder(tiny_mixtral(), 1)
    moe_core.save(model, tmp_path / "before")
    with torch.no_grad():
        for moe in model.moe_layers():
            moe.router.weight += 1e-3
    moe_core.save(model, tmp_path / "after")
    before, after = hashes_of(tmp_path / "before"), hashes_of(tmp_path / "after")
    assert {name for name in before if before[name] != after[name]} == {"router.safetensors"}


def test_routers_stay_float32_in_a_sixteen_bit_model(tmp_path: Path) -> None:
    model = random_decoder(tiny_mixtral(), 1, STD, torch.bfloat16)
    moe_core.save(model, tmp_path / "m")
    loaded = moe_core.load(tmp_path / "m", "bfloat16")
    moe = next(iter(loaded.moe_layers()))
    assert moe.router.weight.dtype == torch.float32
    assert moe.experts.down_EDF.dtype == loaded.dtype == torch.bfloat16


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_core.checkpoint import store

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_json", full_disk)
    with pytest.raises(OSError, match="No space"):
        moe_core.save(random_decoder(tiny_llama(), 1), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        moe_core.save(random_decoder(tiny_llama(), 1), tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["precious"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return moe_core.save(random_decoder(tiny_mixtral(), 1, STD), tmp_path / "m")


def test_promised_hashes_are_checked_before_anything_else(saved: Path) -> None:
    hashes = hashes_of(saved)
    moe_core.load(saved, expected_hashes=hashes)
    shard = saved / "router.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(HashMismatch, match="router.safetensors: sha256 is"):
        moe_core.load(saved, expected_hashes=hashes)
    (saved / "extra").write_text("x")
    with pytest.raises(CheckpointError, match="extra: does not belong"):
        moe_core.load(saved, expected_hashes=hashes)


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"model_type": "gpt9"}, "model_type 'gpt9' is not served; known are llama, .* encoder–decoders switch_t"),
        ({"model_type": ["llama"]}, "not served"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 8.0}}, "rope_parameters"),
        ({"rope_theta": 777.0}, "different values"),
        ({"num_local_experts": 10**9}, "num_local_experts"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_local_experts": 5}, "lack 9 tensors"),
        ({"num_local_experts": 3}, "hold unknown 9 tensors"),
        ({"num_key_value_heads": 3}, r"has shape \[32, 48\]; config.json demands \[48, 48\]"),
        ({"vocab_size": 98}, "has shape"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    saved: Path, change: dict[str, Any], sentence: str
) -> None:
    rewrite_json(saved / "config.json", lambda config: config.update(change))
    with pytest.raises(FormatError, match=sentence):
        moe_core.load(saved)
    with pytest.raises(FormatError, match=sentence):
        inspect_dir(saved)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "../trunk.safetensors"}),
            "plain tensor and file",
        ),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "/etc/passwd"}),
            "plain tensor and file",
        ),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "router.safetensors"}),
            "says router",
        ),
        (
            lambda index: index["weight_map"].update({"ghost": "trunk.safetensors"}),
            "that no file holds, first ghost",
        ),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "ghost.safetensors"}),
            "cannot be opened",
        ),
        (lambda index: index["weight_map"].pop("model.norm.weight"), "says None"),
        (lambda index: index.update(weight_map=[]), "weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    rewrite_json(saved / "model.safetensors.index.json", change)
    with pytest.raises(CheckpointError, match=sentence):
        moe_core.load(saved)


def test_missing_files_are_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no directory '.*nowhere'; is the path right"):
        moe_core.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="config.json: cannot be opened"):
        moe_core.load(tmp_path / "empty")
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="has neither"):
        moe_core.load(saved)


@pytest.mark.parametrize("path", ["Qwen/Qwen3-30B-A3B", Path("deepseek-ai/DeepSeek-V3.1")])
def test_the_name_of_a_model_on_a_hub_is_no_directory(
    path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="on a hub, download it first: only what is on disk is read"):
        moe_core.load(path)


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_a_configuration_survives_its_own_spelling(spec: ModelSpec) -> None:
    assert spec_of(config_of(spec, "bfloat16")) == spec


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5000.0},
        {"rope_theta": 5000.0, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
        {"rope_theta": 5000.0, "rope_scaling": {"type": "default"}},
    ],
)
def test_the_rotary_base_is_read_from_old_and_new_spellings(spelling: dict[str, Any]) -> None:
    config = config_of(tiny_llama(), "float32")
    del config["rope_parameters"]
    assert spec_of({**config, **spelling}).rope_theta == 5000.0


def test_the_model_type_is_a_decoder() -> None:
    assert moe_core.Decoder is Decoder
