"""Maps of all experts of a layer in 8 or 4 bits, as buffers: codes, scales and zero points.

Shapes: E experts, U experts in use.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.kernels.packing import Packed, code_bytes, dequantise, num_groups, quantise
from moe_core.spec.quantisation import ExpertQuantSpec


class PackedMaps(nn.Module):
    """Named maps, of each of which every expert has one; none of them is kept in 16 bits."""

    def __init__(
        self, num_experts: int, shapes: Mapping[str, tuple[int, int]], quantisation: ExpertQuantSpec
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.quantisation = quantisation
        # Rows and row length of each map.
        self.shapes = dict(shapes)
        for name, (rows, width) in self.shapes.items():
            codes = torch.empty(num_experts, rows, code_bytes(width, quantisation), dtype=torch.uint8)
            per_group = (num_experts, rows, num_groups(width, quantisation))
            self.register_buffer(f"{name}_codes", codes)
            self.register_buffer(f"{name}_scales", torch.empty(per_group, dtype=torch.float16))
            if not quantisation.symmetric:
                self.register_buffer(f"{name}_zeros", torch.empty(per_group, dtype=torch.uint8))

    def packed_away(self) -> SpecError:
        """Why none of the maps can be had in floats to learn."""
        return SpecError(
            f"the experts are packed in {self.quantisation.bits} bits and cannot be changed; "
            "start from the model before it was quantised, and quantise last"
        )

    def packed(self, name: str) -> Packed:
        """A map of all experts as it is stored, for kernels that read codes."""
        zeros = None if self.quantisation.symmetric else self.get_buffer(f"{name}_zeros")
        return Packed(self.get_buffer(f"{name}_codes"), self.get_buffer(f"{name}_scales"), zeros)

    @torch.no_grad()
    def pack(self, name: str, weight: Tensor) -> None:
        """Quantise (E, rows, width) into the buffers of a map, one expert at a time."""
        for expert in range(self.num_experts):
            self.pack_one(name, expert, weight[expert])

    @torch.no_grad()
    def pack_one(self, name: str, expert: int, weight: Tensor) -> None:
        """Quantise (rows, width) into one expert's part of the buffers of a map."""
        target, source = self.packed(name), quantise(weight, self.quantisation)
        target.codes[expert].copy_(source.codes)
        target.scales[expert].copy_(source.scales)
        if target.zeros is not None and source.zeros is not None:
            target.zeros[expert].copy_(source.zeros)

    def widened(self, name: str, experts: Tensor, dtype: torch.dtype) -> Tensor:
        """A map of some experts in floats, (U, rows, width)."""
        packed = self.packed(name)
        zeros = None if packed.zeros is None else packed.zeros[experts]
        chosen = Packed(packed.codes[experts], packed.scales[experts], zeros)
        return dequantise(chosen, self.shapes[name][1], self.quantisation, dtype)
