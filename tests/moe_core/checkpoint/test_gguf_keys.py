"""A key of a GGUF file that changes the computation and is not read is refused by name, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.checkpoint.gguf_keys import unknown_key
from moe_core.errors import FormatError

pytest.importorskip("transformers")

from tests.moe_core.checkpoint import gguf_models
from tests.moe_core.checkpoint.test_gguf_families import CASE
from tests.moe_core.model.hf_families import model_of
from tests.moe_core.model.test_family_parity import IDS


def with_key(name: str, key: str, value: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model = model_of(*CASE[name])
    kind = getattr(model.config, "text_config", model.config).model_type
    own = gguf_models._OWN.get(kind, lambda writer, config: None)

    def more(writer: Any, config: Any) -> None:
        own(writer, config)
        add = {
            bool: writer.add_bool,
            float: writer.add_float32,
            int: writer.add_uint32,
            str: writer.add_string,
        }
        add[type(value)](f"{writer.arch}.{key}", value)

    monkeypatch.setitem(gguf_models._OWN, kind, more)
    return gguf_models.write_gguf(folder / "model.gguf", model)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "rope.scale_linear", 4.0),
        ("llama", "rope.scaling.factor", 4.0),
        ("llama", "attention.causal", False),
        ("mixtral", "expert_group_count", 2),
        ("qwen2_moe", "final_logit_softcapping", 30.0),
        ("qwen3_moe", "expert_group_used_count", 2),
        ("olmoe", "anything.new", "at all"),
        ("deepseek_v3", "attention.temperature_scale", 0.5),
        ("gpt_oss", "rope.freq_base_swa", 77.0),
        ("step3p5", "logit_scale", 2.0),
    ],
)
def test_a_key_that_changes_the_computation_is_refused(
    name: str, key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_key(name, key, value, tmp_path, monkeypatch)
    with pytest.raises(FormatError, match=rf"{key} is {value}, and what it changes is not computed"):
        moe_core.load(path, "float32")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "rope.scale_linear", 1.0),
        ("llama", "attention.causal", True),
        ("qwen3_moe", "expert_weights_scale", 1.0),
    ],
)
def test_a_key_with_a_value_that_changes_nothing_is_read_over(
    name: str, key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe_core.load(with_key(name, key, value, tmp_path, monkeypatch), "float32")


@pytest.mark.parametrize("name", ["llama", "mixtral", "step3p5"])
@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_linear_scaling_by_one_is_no_scaling(
    name: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = moe_core.load(with_key(name, "rope.scale_linear", 1.0, tmp_path, monkeypatch), "float32")
    with_key(name, "rope.scaling.type", "linear", tmp_path, monkeypatch)
    with_key(name, "rope.scaling.original_context_length", 4096, tmp_path, monkeypatch)
    path = with_key(name, "rope.scaling.factor", factor, tmp_path, monkeypatch)
    model = moe_core.load(path, "float32")
    assert model.spec == plain.spec
    assert torch.equal(model(IDS), plain(IDS))


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
@pytest.mark.parametrize("name", ["llama", "step3p5"])
def test_linear_scaling_by_more_is_refused(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_key(name, "rope.scaling.type", "linear", tmp_path, monkeypatch)
    with pytest.raises(FormatError, match="'linear'"):
        moe_core.load(with_key(name, key, 4.0, tmp_path, monkeypatch), "float32")


def test_a_factor_counts_unless_scaling_is_none() -> None:
    factor = {"llama.rope.scaling.factor": 4.0}
    assert unknown_key(factor, "llama", ()) == "rope.scaling.factor"
    assert unknown_key({**factor, "llama.rope.scaling.type": "none"}, "llama", ("rope.scaling.type",)) is None
    assert unknown_key({"qwen2moe.anything": 1, "general.name": "x"}, "llama", ()) is None
