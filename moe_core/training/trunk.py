"""A decoder cut where learning begins: what lies below the first expert layer is computed once and kept.

While routers and experts learn, embeddings, attention and the dense layers below the first expert layer stay as they
are, and so does what they say about a window. Shapes: N windows, S tokens a window, T = B·S tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_core.errors import TrainingError
from moe_core.model.attention import DenseCausal
from moe_core.model.decoder import Block, Decoder
from moe_core.model.layers import MoeMlp
from moe_core.model.rotary import Rotary, rotary_of
from moe_core.training.data import Windows

# An expert layer and its normed input (T, D) → its output (T, D).
FeedForward = Callable[[MoeMlp, Tensor], Tensor]

# Windows computed together, always the same ones: a product's last bits may depend on how many rows it has.
CHUNK_WINDOWS = 8


class CutDecoder:
    """The two halves of a mixture: below and above the first expert layer's norm."""

    def __init__(self, model: Decoder) -> None:
        if model.spec.moe is None:
            raise TrainingError.of("no_router", family=model.spec.family)
        self.model = model
        self.device = model.device
        self.first = model.spec.moe.moe_layers[0]
        self.blocks: list[Block] = [block for block in model.layers if isinstance(block, Block)]

    @torch.no_grad()
    def below(self, ids_BS: Tensor) -> Tensor:
        """The residual stream (T, D) that enters the first expert layer's feed-forward, its attention included.

        Where attention and experts stand side by side, the stream that enters both.
        """
        attention, rotary = self._surroundings(*ids_BS.shape)
        x_TD = self.model.embed_tokens(ids_BS.reshape(-1))
        for block in self.blocks[: self.first]:
            x_TD = block(x_TD, rotary, attention, None)
        if self.model.spec.parallel_blocks:
            return x_TD
        summed_TD, _ = self.blocks[self.first].attended(x_TD, rotary, attention)
        return summed_TD

    def above(self, x_TD: Tensor, batch: int, sequence: int, feed_forward: FeedForward) -> Tensor:
        """Hidden states after the final norm (T, D), from what `below` gave; expert layers do what they are told."""
        attention, rotary = self._surroundings(batch, sequence)
        for block in self.blocks[self.first :]:
            if block is self.blocks[self.first] and block.mlp_norm is not None:
                normed_TD = block.mlp_norm(x_TD)
            else:
                x_TD, normed_TD = block.attended(x_TD, rotary, attention)
            mlp = block.mlp
            x_TD = x_TD + (feed_forward(mlp, normed_TD) if isinstance(mlp, MoeMlp) else mlp(normed_TD))
        hidden_TD: Tensor = self.model.norm(x_TD)
        return hidden_TD

    def _surroundings(self, batch: int, sequence: int) -> tuple[DenseCausal, Rotary]:
        positions_T = torch.arange(sequence, device=self.device).repeat(batch)
        return DenseCausal(batch, sequence), rotary_of(self.model.spec, positions_T, self.model.dtype)


class TrunkCache:
    """What the lower half says about each window, computed on first need in fixed groups."""

    def __init__(self, cut: CutDecoder, windows: Windows) -> None:
        self.cut = cut
        self.windows = windows
        self._groups: dict[int, Tensor] = {}

    def missing(self, places: Sequence[int]) -> list[int]:
        """Numbers of the groups that are still to be computed for these places."""
        return sorted({place // CHUNK_WINDOWS for place in places} - self._groups.keys())

    def fill(self, group: int) -> None:
        """Compute one group; safe to call for different groups in several threads."""
        ids_BS = self.windows.ids_NS[group * CHUNK_WINDOWS : (group + 1) * CHUNK_WINDOWS]
        self._groups[group] = self.cut.below(ids_BS).view(*ids_BS.shape, -1)

    def hidden(self, places: Sequence[int]) -> Tensor:
        """(len(places)·S, D), in the order of the places."""
        for group in self.missing(places):
            self.fill(group)
        return torch.cat([self._groups[place // CHUNK_WINDOWS][place % CHUNK_WINDOWS] for place in places])

    @property
    def num_bytes(self) -> int:
        """Memory that the kept states take."""
        return sum(group.numel() * group.element_size() for group in self._groups.values())
