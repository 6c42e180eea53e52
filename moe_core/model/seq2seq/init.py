"""Random weights for encoder–decoders that start from nothing (tests, small experiments)."""

from __future__ import annotations

import torch

from moe_core.model.seq2seq.model import EncoderDecoder
from moe_core.routers.start import Words, start_gate
from moe_core.spec.seq2seq import Seq2SeqSpec


@torch.no_grad()
def random_encoder_decoder(
    spec: Seq2SeqSpec, seed: int, std: float = 0.02, dtype: torch.dtype = torch.float32
) -> EncoderDecoder:
    """Normal weights of the given standard deviation, norms of one, biases of norms of zero."""
    generator = torch.Generator().manual_seed(seed)
    model = EncoderDecoder(spec, dtype)
    for name, parameter in model.named_parameters():
        if "norm." in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif ".router." not in name:
            parameter.normal_(0.0, std, generator=generator)
    words = Words(model.embed_tokens.weight)
    for layer in model.moe_layers():
        moe = layer.router.moe
        start_gate(moe, layer.router.tensors, generator, std, words, layer.layer)
    return model
