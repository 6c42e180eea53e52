"""A version in 16 bits that an engine packs when it loads it says what the same version says when it was quantised."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import moe_core
from moe_core.checkpoint.hashes import hashes_of
from moe_core.engine.engine import Engine
from moe_core.engine.loading import build_engine
from moe_core.engine.panel_cache import SUFFIX
from moe_core.errors import SpecError
from moe_core.experts import PackedExperts
from moe_core.kernels.cpu.native import library
from moe_core.model.init import random_decoder
from moe_core.model.packed_linear import PackedLinear
from moe_core.operations.quantise import quantise
from moe_core.spec import ServeSpec
from moe_core.spec.operations import QuantiseSpec
from moe_core.spec.quantisation import PACKINGS, WeightsName
from tests.moe_core.engine.model_dirs import NUM_TOKENS, tiny_model, write_byte_tokenizer, write_model_dir
from tests.moe_core.engine.test_panel_cache import answer, start
from tests.moe_core.tiny import STD, tiny_family

NAMES: tuple[WeightsName, ...] = ("int8", "int4")


def engine_of(path: Path, **more: Any) -> Engine:
    return build_engine(spec_of(path, **more), lambda state: None)[0]


def spec_of(path: Path, **more: Any) -> ServeSpec:
    return ServeSpec(model_dir=path, socket_path=Path("none"), kv_tokens=1024, **more)


def written(path: Path, packed: WeightsName | None = None) -> Path:
    model = tiny_model(tie_word_embeddings=True)
    if packed is None:
        write_model_dir(path, model)
        return path
    packing = PACKINGS[packed]
    # The engine packs the bfloat16 of the directory, not the floats that it was written from.
    parts = {"quantisation": packing.experts, "attention": packing.attention, "head": packing.head}
    wanted = QuantiseSpec(**parts, level=True)
    moe_core.save(quantise(moe_core.load(written(path.with_name("source")), "bfloat16"), wanted)[0], path)
    write_byte_tokenizer(path)
    return path


@pytest.mark.parametrize("weights", NAMES)
def test_it_says_what_a_quantised_version_says(tmp_path: Path, weights: WeightsName) -> None:
    packed = engine_of(written(tmp_path / "stored"), weights=weights)
    assert answer(packed) == answer(engine_of(written(tmp_path / "packed", weights)))
    model = packed.runner.model
    experts = {layer.experts for layer in model.moe_layers()}
    maps = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert all(isinstance(one, PackedExperts) for one in experts)
    bits = {one.quantisation.bits for one in experts if isinstance(one, PackedExperts)}
    assert bits == {PACKINGS[weights].experts.bits}
    # Two around each attention, and the head, which was the embedding.
    assert len(maps) == 2 * len(model.layers) + 1


@pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
@pytest.mark.parametrize("weights", NAMES)
def test_its_panels_lie_in_a_file_of_their_own(tmp_path: Path, weights: WeightsName) -> None:
    path = written(tmp_path / "stored")
    shelf = {"files": hashes_of(path), "panel_dir": tmp_path / "panels"}
    plain, _ = start(spec_of(path, **shelf))
    first, cache = start(spec_of(path, weights=weights, **shelf))
    assert cache.reader is None
    deadline = time.monotonic() + 20
    while len(list((tmp_path / "panels").glob(f"*{SUFFIX}"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    second, cache = start(spec_of(path, weights=weights, **shelf))
    assert cache.reader is not None
    assert answer(first) == answer(second)
    kinds = {
        type(layer.experts).__name__
        for engine in (plain, second)
        for layer in engine.runner.model.moe_layers()
    }
    assert kinds == {"PanelExperts", "PanelPackedExperts"}


@pytest.mark.parametrize("weights", NAMES)
@pytest.mark.parametrize("family", ["deepseek_v3", "step3p5"])
def test_attention_that_cannot_be_packed_stays_in_sixteen_bits(
    tmp_path: Path, family: str, weights: WeightsName
) -> None:
    spec = tiny_family(family).model_copy(update={"vocab_size": NUM_TOKENS})
    write_model_dir(tmp_path / "stored", random_decoder(spec, 3, STD))
    engine = engine_of(tmp_path / "stored", weights=weights)
    model = engine.runner.model
    assert all(isinstance(layer.experts, PackedExperts) for layer in model.moe_layers())
    assert [name for name, module in model.named_modules() if isinstance(module, PackedLinear)] == ["lm_head"]
    assert answer(engine)


@pytest.mark.parametrize(
    ("told", "why"), [({"moe": None, "family": "llama"}, "has no experts"), ({}, "in 8 bits already")]
)
def test_what_cannot_be_packed_is_refused(tmp_path: Path, told: dict[str, Any], why: str) -> None:
    if told:
        path = tmp_path / "dense"
        write_model_dir(path, tiny_model(**told))
    else:
        path = written(tmp_path / "packed", "int8")
    with pytest.raises(
        SpecError, match=f"this version {why if told else 'is packed ' + why}; leave weights 'stored'"
    ):
        engine_of(path, weights="int4")


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"resident_experts": 4}, {"device_experts": 4}])
def test_packing_wants_bfloat16_and_every_expert_in_memory(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match="weights 'int8' are computed in bfloat16 with all experts in memory"
    ):
        spec_of(tmp_path, weights="int8", **other)
    with pytest.raises(ValidationError, match="weights"):
        spec_of(tmp_path, weights="int3")
