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
# Between the seeds of two layers' tables: layer 1 of a seed is no layer 0 of the next.
LAYER_STRIDE = 1_000_003


class Words:
    """What gates may know of the vocabulary when they are born: embeddings, and how often each entry occurs.

    Clusters hang on these alone, so they are computed once and are the same in all layers.
    """

    def __init__(self, embedding_VD: Tensor | None = None, counts_V: Tensor | None = None) -> None:
        """Embeddings (V, D) and counts (V,), any dtype; raises SpecError for counts that are none."""
        if counts_V is not None and (counts_V.ndim != 1 or not bool((counts_V >= 0).all())):
            raise SpecError(f"token counts are (V,) and not negative; found shape {tuple(counts_V.shape)}")
        self.embedding_VD = embedding_VD
        self.counts_V = counts_V
        self._clustered: dict[tuple[int, int, int], Tensor] = {}

    @property
    def embedding(self) -> Tensor:
        """(V, D); SpecError where there is none."""
        if self.embedding_VD is None:
            raise SpecError("this gate starts from the token embedding; give it")
        return self.embedding_VD

    def table(self, moe: MoeSpec, vocab_size: int, layer: int) -> Tensor:
        """(V, K): the table of a hash gate. Drawn ones differ from layer to layer, so that no two words always meet."""
        gate = moe.gate
        assert isinstance(gate, Hash)
        size = (moe.num_experts, moe.top_k)
        if gate.choice == "clustered":
            key = (*size, gate.seed)
            if key not in self._clustered:
                self._clustered[key] = clustered_table(self.embedding, *key)
            return self._clustered[key]
        seed = (gate.seed + LAYER_STRIDE * layer) % (1 << 31)
        if gate.choice == "random":
            return random_table(vocab_size, *size, seed)
        counts_V = rank_counts(vocab_size) if self.counts_V is None else self.counts_V
        if counts_V.shape[0] != vocab_size:
            raise SpecError(f"token counts of {counts_V.shape[0]} entries for a vocabulary of {vocab_size}")
        return balanced_table(counts_V, *size, seed)


NO_WORDS = Words()


@torch.no_grad()
def start_gate(
    moe: MoeSpec,
    weights: GateWeights,
    generator: torch.Generator,
    std: float,
    words: Words = NO_WORDS,
    layer: int = 0,
) -> None:
    """Fill a gate's tensors in place: maps with normal numbers of `std`, biases with zeros, a scale with one.

    `words` are the model's, for gates that start from the meaning or the frequency of tokens; `layer` is the number of
    the layer. Equal generators give equal gates. Raises SpecError where something of `words` is needed and missing.
    """
    for name, tensor in weights.items():
        if name == "table":
            tensor.copy_(words.table(moe, tensor.shape[0], layer))
        elif name == "weight" and isinstance(moe.gate, Base) and moe.gate.centroids == "semantic":
            seed = int(torch.randint(1 << 31, (1,), generator=generator))
            tensor.copy_(centroids_of(words.embedding, moe.num_experts, seed))
        elif name in DRAWN:
            tensor.normal_(0.0, std, generator=generator)
        else:
            tensor.fill_(1.0 if name == "scale" else 0.0)
