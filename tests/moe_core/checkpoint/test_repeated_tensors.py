"""What files hold though it follows from the rest: read over when it says the same, kept when a head does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import moe_core
from moe_core.checkpoint.hf import import_hf
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.engine.residency import load_resident
from moe_core.errors import FormatError
from moe_core.model import Decoder
from moe_core.model.families import config_of
from moe_core.spec import RoutingSpec

transformers = pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import model_of  # noqa: E402

IDS = torch.arange(1, 25).view(2, 12)
CASES = (
    ("LlamaConfig", {}),
    ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}),
)


@pytest.fixture(params=CASES, ids=[name for name, _changes in CASES])
def tied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, changes = request.param
    model_of(name, {**changes, "tie_word_embeddings": True}).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


def give_head(directory: Path, head_of: Callable[[Tensor], Tensor]) -> None:
    """Put a head beside the embedding that config.json ties it to."""
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = head_of(tensors["model.embed_tokens.weight"].clone())
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def by_import(directory: Path) -> Decoder:
    out = directory.parent / "imported"
    spec = import_hf(directory, out, dtype="float32")
    model = moe_core.load(out)
    assert model.spec == spec
    return model


@torch.no_grad()
@pytest.mark.parametrize("door", [moe_core.load, by_import])
def test_a_repeated_head_is_read_over(tied: Path, door: Callable[[Path], Decoder]) -> None:
    plain = moe_core.load(tied)
    give_head(tied, lambda embedding: embedding)
    model = door(tied)
    assert model.spec == plain.spec
    assert model.spec.tie_word_embeddings
    assert torch.equal(model(IDS), plain(IDS))


@torch.no_grad()
@pytest.mark.parametrize("door", [moe_core.load, by_import])
def test_a_head_of_its_own_is_kept_as_transformers_keeps_it(
    tied: Path, door: Callable[[Path], Decoder]
) -> None:
    give_head(tied, lambda embedding: embedding.flip(0))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32).eval()
    assert not torch.equal(theirs.lm_head.weight, theirs.model.embed_tokens.weight)
    model = door(tied)
    assert not model.spec.tie_word_embeddings
    assert config_of(model.spec, "float32")["tie_word_embeddings"] is False
    logits = theirs(IDS).logits
    assert float((model(IDS) - logits).norm() / logits.norm()) < 1e-6


def test_a_head_of_another_dtype_is_compared_by_its_values(tied: Path) -> None:
    tensors = load_file(tied / "model.safetensors")
    rounded = tensors["model.embed_tokens.weight"].bfloat16()
    save_file(
        {**tensors, "model.embed_tokens.weight": rounded.float(), "lm_head.weight": rounded},
        tied / "model.safetensors",
    )
    assert moe_core.load(tied).spec.tie_word_embeddings


@pytest.mark.parametrize("door", [moe_core.load, by_import])
def test_a_head_of_another_shape_is_refused(tied: Path, door: Callable[[Path], Decoder]) -> None:
    give_head(tied, lambda embedding: embedding[:-1].contiguous())
    with pytest.raises(FormatError, match=r"lm_head.weight: has shape \[96, 48\]"):
        door(tied)


@pytest.mark.parametrize("is_own", [False, True])
def test_what_is_told_of_a_directory_is_what_load_reads(tied: Path, is_own: bool) -> None:
    give_head(tied, lambda embedding: embedding.flip(0) if is_own else embedding)
    model = moe_core.load(tied)
    told = inspect_dir(tied)
    assert told["spec"] == model.spec.model_dump(mode="json")
    assert told["spec"]["tie_word_embeddings"] is not is_own
    assert told["params_total"] == sum(one.numel() for one in model.parameters())


@torch.no_grad()
def test_an_engine_that_keeps_some_experts_in_memory_reads_the_same_head(tmp_path: Path) -> None:
    name, changes = CASES[2]
    model_of(name, {**changes, "tie_word_embeddings": True}).save_pretrained(tmp_path)
    give_head(tmp_path, lambda embedding: embedding.flip(0))
    resident, residency = load_resident(tmp_path, "float32", 12, RoutingSpec())
    assert torch.equal(resident.lm_head.weight, moe_core.load(tmp_path).lm_head.weight)
    residency.close()


@torch.no_grad()
@pytest.mark.parametrize("owner", ["model", "model.layers.1.self_attn"])
def test_rotary_frequencies_are_read_over_wherever_old_files_keep_them(tied: Path, owner: str) -> None:
    plain = moe_core.load(tied)(IDS)
    tensors = load_file(tied / "model.safetensors")
    tensors[f"{owner}.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    for door in (moe_core.load, by_import):
        assert torch.equal(door(tied)(IDS), plain)
