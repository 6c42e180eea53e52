"""Small mixtures, prompts and distances that the tests of operations share."""

from __future__ import annotations

from typing import Any

import torch

from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations.prompts import Prompts
from moe_core.spec import ModelSpec
from tests.moe_core.tiny import STD, tiny_family, tiny_llama

IDS = torch.arange(1, 25).view(2, 12)


def mixture_spec(**moe: Any) -> ModelSpec:
    fields = {"moe_layers": (0, 2), "num_experts": 4, "top_k": 2, "moe_intermediate_size": 32, **moe}
    return ModelSpec.parse({**tiny_llama().model_dump(), "family": "turnout_moe", "moe": fields})


def mixture(seed: int = 5, **moe: Any) -> Decoder:
    return random_decoder(mixture_spec(**moe), seed, STD)


def gpt_oss() -> Decoder:
    """A tiny gpt-oss: biases in experts and gates, all of them large enough to count."""
    model = random_decoder(tiny_family("gpt_oss"), 3, STD)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".mlp." in name and "bias" in name:
                tensor.normal_(0.0, 0.5, generator=generator)
    return model


def some_prompts(seed: int = 0, per_domain: int = 4, low: int = 1, high: int = 97) -> Prompts:
    """Two domains whose tokens come from the two halves of a vocabulary; prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    middle = (low + high) // 2

    def drawn(start: int, stop: int, row: int) -> list[int]:
        return torch.randint(start, stop, (5 + row % 7,), generator=generator).tolist()

    return Prompts.of(
        {
            "law": [drawn(low, middle, row) for row in range(per_domain)],
            "code": [drawn(middle, high, row) for row in range(per_domain)],
        }
    )


@torch.no_grad()
def distance(one: Decoder, other: Decoder) -> float:
    """Relative difference of the logits."""
    return float((one(IDS) - other(IDS)).norm() / one(IDS).norm())
