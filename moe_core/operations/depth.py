"""Fewer layers: the blocks that change the residual stream least are left out.

Expert layers and dense ones keep their proportion, so that what comes out can be foretold without the weights. Width,
heads and vocabulary stay: nothing else of the trunk can be made smaller by leaving parts out.

Shapes: T tokens, D model width, L layers.
Source: Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv 2403.03853
(block influence).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from moe_core.model.decoder import Decoder
from moe_core.model.families import family_for
from moe_core.operations.parts import tensors_of
from moe_core.operations.passes import hidden_of
from moe_core.operations.prompts import Prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec.fewer_layers import with_kept

BLOCKS = "layers."


@torch.no_grad()
def influence(model: Decoder, prompts: Prompts, watch: Watch = unwatched) -> Tensor:
    """(L,) float64: 1 - mean cosine between what each block reads and what it leaves, over the prompts' real tokens."""
    sum_L = torch.zeros(len(model.layers), dtype=torch.float64)
    real_T = torch.zeros(0, dtype=torch.bool)

    def note(layer: int, read_TD: Tensor, left_TD: Tensor) -> None:
        alike_T = cosine_similarity(read_TD[real_T].double(), left_TD[real_T].double(), dim=-1)
        sum_L[layer] += float((1.0 - alike_T).sum())

    def hook(layer: int) -> Any:
        return lambda _block, args, out: note(layer, args[0], out)

    hooks = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(model.layers)]
    done = 0
    try:
        for batch in prompts.batches():
            real_T = batch.real_T
            hidden_of(model, batch)
            done += len(batch)
            watch("inputs", done, len(prompts))
    finally:
        for one in hooks:
            one.remove()
    return sum_L / max(1, int(prompts.real_NS.sum()))


@torch.no_grad()
def with_layers(model: Decoder, keep: list[int]) -> Decoder:
    """A new decoder of the given layers of `model`, in their order, every tensor a copy."""
    spec = with_kept(model.spec, keep)
    spec = spec.model_copy(update={"family": family_for(spec, first=model.spec.family)})
    new = Decoder(spec, model.dtype).to(model.embed_tokens.weight.device)
    source = tensors_of(model)
    for name, tensor in tensors_of(new).items():
        tensor.copy_(source[_source_name(name, keep)])
    return new


def _source_name(name: str, keep: list[int]) -> str:
    if not name.startswith(BLOCKS):
        return name
    _layers, number, rest = name.split(".", 2)
    return f"{BLOCKS}{keep[int(number)]}.{rest}"
