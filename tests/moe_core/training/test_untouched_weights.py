"""What an operation or a tuning run leaves alone keeps its bits, also where bfloat16 is the quicker and weights are float32."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.store import load, save, stored_dtype
from moe_core.kernels import precision
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from moe_core.training import run_job
from tests.moe_core.tiny import tiny_llama
from tests.moe_core.training.world import DOMAINS, RecordingIO, byte_tokenizer, tune_spec

GATE = ".block_sparse_moe.gate."
EXPERT = re.compile(r"layers\.(\d+)\..*experts\.(\d+)\.")


@pytest.fixture(autouse=True)
def _multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)


@pytest.fixture(scope="module")
def mixture(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four different experts in each of two layers, stored in float32."""
    dense = tiny_llama(
        vocab_size=byte_tokenizer().get_vocab_size(), num_hidden_layers=2, eos_token_ids=(2,)
    ).model_dump()
    moe = {"moe_layers": [0, 1], "num_experts": 4, "top_k": 2, "moe_intermediate_size": 16}
    spec = ModelSpec.parse({**dense, "family": "turnout_moe", "moe": moe})
    out = tmp_path_factory.mktemp("mixture") / "model"
    return save(random_decoder(spec, seed=5, std=0.1), out, tokenizer_from=world / "model")


def io_on(model: Path, world: Path, folder: Path) -> RecordingIO:
    io = RecordingIO(world, folder)
    io.inputs = {**io.inputs, "model": model}
    return io


def tensors_of(model: Path) -> dict[str, Tensor]:
    """All but the routers'."""
    with WeightReader(model) as reader:
        return {name: reader.tensor(name) for name in sorted(reader.names) if GATE not in name}


def new_in(after: Path, *before: Path) -> set[str]:
    """The tensors whose bits are those of no tensor before."""
    known = {t.numpy().tobytes() for path in before for t in tensors_of(path).values()}
    now = tensors_of(after)
    assert {tensor.dtype for tensor in now.values()} == {torch.float32}
    return {name for name, tensor in now.items() if tensor.numpy().tobytes() not in known}


def experts_in(names: set[str]) -> set[tuple[int, int]]:
    """Layer and number of the experts that tensors are of; fails where one is of none."""
    found = {name: EXPERT.search(name) for name in names}
    assert all(found.values()), sorted(name for name, match in found.items() if match is None)
    return {(int(match[1]), int(match[2])) for match in found.values() if match}


@pytest.mark.parametrize(
    ("operation", "most"),
    [
        ({"kind": "add", "source": 0}, 0),
        ({"kind": "remove", "expert": 1}, 0),
        ({"kind": "grow", "num_experts": 8}, 0),
        ({"kind": "merge", "first": 0, "second": 3}, 2),
        ({"kind": "wake_expert", "steps": 2}, 2),
        ({"kind": "specialise_clone", "domain": "sums", "steps": 2}, 2),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_an_operation_leaves_other_tensors_of_a_float32_version_bit_for_bit(
    world: Path, mixture: Path, tmp_path: Path, operation: dict[str, Any], most: int
) -> None:
    io = io_on(mixture, world, tmp_path)
    run_job("operate", {"operation": operation, "prompts_per_domain": 4, "prompt_tokens": 24}, io)
    touched = experts_in(new_in(io.out_dir, mixture))
    # One a layer; no token may have come near to choosing the one to be woken.
    assert min(1, most) <= len(touched) <= most
    assert len(touched) == len({layer for layer, _ in touched})


def test_releasing_twins_leaves_every_tensor_of_a_float32_version_bit_for_bit(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    grown = io_on(mixture, world, tmp_path / "grown")
    run_job("operate", {"operation": {"kind": "grow", "num_experts": 8}}, grown)
    io = io_on(grown.out_dir, world, tmp_path / "released")
    run_job("operate", {"operation": {"kind": "release_twins"}}, io)
    assert new_in(io.out_dir, mixture) == set()


def test_tuning_leaves_all_but_routers_and_mapped_experts_of_a_float32_version_bit_for_bit(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    io = io_on(mixture, world, tmp_path)
    steps = {"specialise_steps": 1, "route_steps": 1, "control": False}
    result = run_job("tune", tune_spec(dtype="auto", layout=None, **steps), io)
    # The general experts are the other two of four.
    assert experts_in(new_in(io.out_dir, mixture)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert result["lineage"]["environment"]["dtype"] == "float32"


def test_models_in_both_precisions_are_composed_without_rounding_either(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    half = save(load(mixture), tmp_path / "half", dtype="bfloat16", tokenizer_from=mixture)
    wide = save(load(half), tmp_path / "wide", dtype="float32")
    io = io_on(half, world, tmp_path)
    io.inputs = {**io.inputs, "other-1": mixture}
    run_job("operate", {"operation": {"kind": "compose", "domains": list(DOMAINS)}, "prompt_tokens": 24}, io)
    assert new_in(io.out_dir, wide, mixture) == set()


def test_a_bfloat16_version_stays_one(world: Path, mixture: Path, tmp_path: Path) -> None:
    half = save(load(mixture), tmp_path / "half", dtype="bfloat16", tokenizer_from=mixture)
    io = io_on(half, world, tmp_path)
    run_job("operate", {"operation": {"kind": "add", "source": 0}}, io)
    before, after = tensors_of(half), tensors_of(io.out_dir)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("changed", "stored"),
    [
        (lambda name, tensor: tensor, "float32"),
        (lambda name, tensor: tensor.bfloat16(), "bfloat16"),
        (lambda name, tensor: tensor.half(), "float32"),
        (lambda name, tensor: tensor if "norm" in name else tensor.bfloat16(), "float32"),
        (lambda name, tensor: tensor if GATE in name else tensor.bfloat16(), "bfloat16"),
    ],
    ids=["float32", "bfloat16", "float16", "norms in float32", "routers in float32"],
)
def test_what_counts_is_how_the_files_hold_weights(
    mixture: Path, tmp_path: Path, changed: Callable[[str, Tensor], Tensor], stored: str
) -> None:
    (tmp_path / "config.json").write_bytes((mixture / "config.json").read_bytes())
    with WeightReader(mixture) as reader:
        tensors = {name: changed(name, reader.tensor(name)).contiguous() for name in reader.names}
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == stored
