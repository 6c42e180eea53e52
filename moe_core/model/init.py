"""Random weights for models that start from nothing (tests, small experiments)."""

from __future__ import annotations

import torch

from moe_core.model.decoder import Decoder
from moe_core.routers.start import Words, start_gate
from moe_core.spec import ModelSpec


def random_decoder(
    spec: ModelSpec, seed: int, std: float = 0.02, dtype: torch.dtype = torch.float32
) -> Decoder:
    """A decoder with normal weights of the given standard deviation and norms of one."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(spec, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(0.0 if spec.zero_centred_norms else 1.0)
            elif ".router." in name:
                continue
            else:
                parameter.normal_(0.0, std, generator=generator)
        words = Words(model.embed_tokens.weight)
        for layer in model.moe_layers():
            start_gate(layer.moe, layer.router.tensors, generator, std, words, layer.layer)
    return model
