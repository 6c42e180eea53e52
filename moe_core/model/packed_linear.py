"""A linear map whose weight lies in 8 or 4 bits, and is multiplied so or widened when it is used.

Shapes: T tokens, O rows out, K columns in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.kernels.dispatch import has_triton
from moe_core.kernels.packing import Packed, code_bytes, dequantise, num_groups, quantise
from moe_core.kernels.precision import product
from moe_core.spec.quantisation import ExpertQuantSpec


class PackedLinear(nn.Module):
    """Codes, scales and zero points as buffers, in the format of `moe_core.kernels.packing`; a bias stays in floats."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        quantisation: ExpertQuantSpec,
        dtype: torch.dtype,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.quantisation, self.width_in, self.width_out = quantisation, width_in, width_out
        per_group = (width_out, num_groups(width_in, quantisation))
        codes = torch.empty(width_out, code_bytes(width_in, quantisation), dtype=torch.uint8)
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_scales", torch.empty(per_group, dtype=torch.float16))
        if not quantisation.symmetric:
            self.register_buffer("weight_zeros", torch.empty(per_group, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.empty(width_out, dtype=dtype)) if bias else None

    def packed(self) -> Packed:
        """The weight as it is stored, for kernels that read codes."""
        zeros = None if self.quantisation.symmetric else self.get_buffer("weight_zeros")
        return Packed(self.get_buffer("weight_codes"), self.get_buffer("weight_scales"), zeros)

    @torch.no_grad()
    def pack(self, weight_OK: Tensor) -> None:
        """Quantise a weight into the buffers."""
        source, target = quantise(weight_OK, self.quantisation), self.packed()
        target.codes.copy_(source.codes)
        target.scales.copy_(source.scales)
        if target.zeros is not None and source.zeros is not None:
            target.zeros.copy_(source.zeros)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, K) that the codes stand for."""
        return dequantise(self.packed(), self.width_in, self.quantisation, dtype)

    def forward(self, x_TK: Tensor) -> Tensor:
        """x · weightᵀ + bias, in the dtype of the input; few rows on a GPU are multiplied by the codes as they lie."""
        if self._on_codes(x_TK):
            from moe_core.kernels.triton.packed import packed_linear

            out_TO = packed_linear(x_TK.contiguous(), self.packed(), self.quantisation)
        else:
            out_TO = product(x_TK, self.widened(x_TK.dtype))
        return out_TO if self.bias is None else out_TO + self.bias

    def _on_codes(self, x_TK: Tensor) -> bool:
        """Whether a kernel takes the codes as they lie."""
        if not x_TK.is_cuda or x_TK.ndim != 2 or not has_triton():
            return False
        from moe_core.kernels.triton.packed import supports_linear

        return supports_linear(x_TK)
