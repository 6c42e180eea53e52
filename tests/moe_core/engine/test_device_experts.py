"""An engine is told how many experts a GPU holds, and says how many uses each memory served."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from moe_core.engine import loading, panel_cache
from moe_core.engine.copy_stream import GpuCopyStream
from moe_core.engine.device_pool import DeviceTier
from moe_core.engine.loading import build_engine
from moe_core.engine.panel_cache import PanelCache
from moe_core.errors import SpecError
from moe_core.spec import ServeSpec
from tests.moe_core.engine.copy_streams import Gpu, LateStream
from tests.moe_core.engine.http_engine import running_engine
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir

MOE = {"moe_layers": [0, 1, 2], "num_experts": 8, "top_k": 2, "moe_intermediate_size": 16}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_model_dir(path, tiny_model(5, family="turnout_moe", moe=MOE))
    return path


def spec_of(**fields: Any) -> ServeSpec:
    return ServeSpec.parse({"model_dir": "/models/m", "socket_path": "/run/m.sock", **fields})


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(line.get("text") or "" for line in lines)


@pytest.fixture
def played_gpu(monkeypatch) -> None:
    """The branch of a GPU, with the processor's memory in the place of its own."""
    monkeypatch.setattr(loading, "_device_of", lambda spec: torch.device("cuda"))

    def tier_of(spec: ServeSpec, device: torch.device) -> DeviceTier | None:
        return spec.device_experts and DeviceTier(LateStream(), spec.device_experts)

    monkeypatch.setattr(loading, "_tier_of", tier_of)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a played GPU")

    def pooled(model):
        raise AssertionError("what a pool holds is other experts from one moment to the next")

    monkeypatch.setattr(loading, "hold_in_mxfp4", pooled)


async def test_an_engine_serves_from_three_memories(model_dir, tmp_path, played_gpu) -> None:
    ask = {"prompt": "hello there", "max_tokens": 12, "ignore_eos": True}
    told = {"resident_experts": 12, "device_experts": 9}
    async with running_engine(model_dir, tmp_path, **told) as client:
        answer = await client.generate(**ask)
        stats = (await client.get("/stats"))["residency"]
    assert (stats["tier"], stats["capacity"], stats["experts"]) == ("device", 9, 24)
    assert stats["uses"] == stats["hits"] + stats["awaited"] + stats["misses"]
    host = stats["host"]
    assert host["capacity"] == 12
    assert host["hits"] + host["misses"] == stats["misses"] + stats["prefetched"] > 0
    assert stats["bytes_copied"] > stats["bytes_read"] > 0
    async with running_engine(model_dir, tmp_path, resident_experts=24) as client:
        whole = await client.generate(**ask)
        assert text_of(answer) == text_of(whole) != ""
        assert (await client.get("/stats"))["residency"]["tier"] == "memory"


async def test_by_itself_it_leaves_the_rest_in_memory(model_dir, tmp_path, played_gpu) -> None:
    async with running_engine(model_dir, tmp_path, device_experts=8) as client:
        await client.generate(prompt="hello", max_tokens=4)
        stats = (await client.get("/stats"))["residency"]
    assert stats["host"]["capacity"] == 24
    assert stats["host"]["misses"] == 0


async def test_without_a_gpu_it_does_nothing(model_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    async with running_engine(model_dir, tmp_path, device_experts=8) as client:
        assert "residency" not in await client.get("/stats")
    async with running_engine(model_dir, tmp_path, device_experts=8, resident_experts=10) as client:
        assert (await client.get("/stats"))["residency"]["capacity"] == 10


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("setting", ["device_experts", "resident_experts"])
def test_fewer_than_a_layer_has_are_refused_with_a_gpu_and_without(
    model_dir, tmp_path, monkeypatch, setting, has_gpu
) -> None:
    if has_gpu:
        Gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    few = {"resident_experts": 9, "device_experts": 9, setting: 7}
    spec = ServeSpec(model_dir=model_dir, socket_path=tmp_path / "s", dtype="float32", **few)
    with pytest.raises(SpecError, match=rf"{setting} \(7\)") as refusal:
        build_engine(spec, lambda state: None)
    assert refusal.value.faults[0][0] == (setting,)


def test_the_tier_is_the_gpus(monkeypatch) -> None:
    Gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    both = spec_of(device_experts=20, resident_experts=40)
    device = loading._device_of(both)
    assert device.type == "cuda"
    tier = loading._tier_of(both, device)
    assert tier is not None
    assert (tier.capacity, tier.stream.device) == (20, device)
    assert isinstance(tier.stream, GpuCopyStream)
    assert loading._tier_of(spec_of(), device) is None
    # As before: by itself it is the processor's, also where there is a GPU.
    assert loading._device_of(spec_of(resident_experts=40)).type == "cpu"
    with pytest.raises(SpecError, match="say with device_experts how many the GPU holds"):
        loading._device_of(spec_of(resident_experts=40, device="cuda"))


def test_what_contradicts_it_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"device_experts \(20\) is the memory of a GPU, and device is 'cpu'"
    ):
        ServeSpec(model_dir="/m", socket_path="/s", device="cpu", device_experts=20)
    with pytest.raises(ValidationError, match="leave dtype, resident_experts and device_experts out"):
        ServeSpec(model_dir="/m", socket_path="/s", weights="int8", device_experts=20)


def test_no_panels_are_kept_of_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(panel_cache, "library", lambda: SimpleNamespace(isa="avx512"))
    told = {"panel_dir": tmp_path, "files": {"a.safetensors": "0" * 64}}
    assert PanelCache.of(spec_of(**told)) is not None
    assert PanelCache.of(spec_of(**told, device_experts=20)) is None
