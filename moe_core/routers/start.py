"""The tensors of a gate at the moment of birth.

E experts, D model width, V vocabulary, K top_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.call import GateWeights
from moe_core.spec import MoeSpec

# Drawn at random; a learnt scale starts at one, everything else (biases, noise, corrections) at zero.
DRAWN = ("weight", "domain_weight", "group_weight")


@torch.no_grad()
def start_gate(
    moe: MoeSpec,
    weights: GateWeights,
    generator: torch.Generator,
    std: float,
    embedding_VD: Tensor | None = None,
) -> None:
    """Fill a gate's tensors in place: maps with normal numbers of `std`, biases with zeros, a scale with one.

    `embedding_VD` is the model's token embedding, for gates that start from the meaning of tokens. Equal generators give
    equal gates.
    """
    for name, tensor in weights.items():
        if name in DRAWN:
            tensor.normal_(0.0, std, generator=generator)
        else:
            tensor.fill_(1.0 if name == "scale" else 0.0)
