"""The tensors of a gate at the moment of birth.

E experts, D model width, V vocabulary, K top_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers.call import GateWeights
from moe_core.routers.centroids import centroids_of
from moe_core.routers.hash import balanced_table, clustered_table, random_table, rank_counts
from moe_core.spec import MoeSpec
from moe_core.spec.gate import Base, Hash

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
        if name == "table":
            tensor.copy_(_table(moe, tensor.shape[0], embedding_VD))
        elif name == "weight" and isinstance(moe.gate, Base) and moe.gate.centroids == "semantic":
            seed = int(torch.randint(1 << 31, (1,), generator=generator))
            tensor.copy_(centroids_of(_needed(embedding_VD), moe.num_experts, seed))
        elif name in DRAWN:
            tensor.normal_(0.0, std, generator=generator)
        else:
            tensor.fill_(1.0 if name == "scale" else 0.0)


def _table(moe: MoeSpec, vocab_size: int, embedding_VD: Tensor | None) -> Tensor:
    gate = moe.gate
    assert isinstance(gate, Hash)
    if gate.choice == "clustered":
        return clustered_table(_needed(embedding_VD), moe.num_experts, moe.top_k, gate.seed)
    if gate.choice == "balanced":
        return balanced_table(rank_counts(vocab_size), moe.num_experts, moe.top_k, gate.seed)
    return random_table(vocab_size, moe.num_experts, moe.top_k, gate.seed)


def _needed(embedding_VD: Tensor | None) -> Tensor:
    if embedding_VD is None:
        raise SpecError("this gate starts from the token embedding; give it")
    return embedding_VD
