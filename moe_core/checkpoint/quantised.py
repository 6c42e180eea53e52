"""Weights in eight and four bits as DeepSeek and gpt-oss release them, widened while they are read.

fp8: `X` in E4M3 beside `X_scale_inv`, a factor for each block of 128 by 128: float32, or a power of two by its exponent
(E8M0).
mxfp4: `X_blocks` (…, G, 16) with two E2M1 numbers a byte, the low half first, beside `X_scales` (…, G), the exponent of a
power of two for each group of 32. Both are given out as if `X` were stored in float32, in the axes of transformers.

Source: DeepSeek-AI 2024, arXiv 2412.19437, section 3.3; Open Compute Project 2023, "OCP Microscaling Formats (MX)".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.safetensors_header import TensorInfo
from moe_core.errors import FormatError
from moe_core.kernels.mxfp4 import Mxfp4, dequantise_mxfp4

FP8_BLOCK = 128
SCALE, BLOCKS, SCALES = "_scale_inv", "_blocks", "_scales"


class Weights(Protocol):
    """Tensors by name, wherever they are and however they are stored."""

    @property
    def names(self) -> set[str]:
        """Every tensor."""
        ...

    def info(self, tensor: str) -> TensorInfo:
        """Dtype and shape of a tensor, before it is read."""
        ...

    def tensor(self, tensor: str) -> Tensor:
        """A copy of a tensor."""
        ...

    def read_into(self, tensor: str, target: Tensor) -> None:
        """Fill `target` with a tensor, converting its dtype."""
        ...


def widened(reader: WeightReader) -> Weights:
    """The reader itself, or one that widens what is quantised."""
    is_quantised = any(name.endswith((SCALE, BLOCKS)) for name in reader.names)
    return WidenedWeights(reader) if is_quantised else reader


@dataclass(frozen=True, slots=True)
class WidenedWeights:
    """Every quantised tensor under its plain name, and all others as they are."""

    reader: WeightReader

    @property
    def names(self) -> set[str]:
        """Every tensor, scales left out."""
        raw = self.reader.names
        kept = {name for name in raw if not name.endswith((SCALE, SCALES))}
        return {name.removesuffix(BLOCKS) for name in kept} | {name for name in raw if self._is_alone(name)}

    def _is_alone(self, name: str) -> bool:
        """A scale without a weight is nothing that is known here; it is shown, so that it is complained about."""
        owner = name.removesuffix(SCALE).removesuffix(SCALES)
        return owner != name and owner not in self.reader.names and owner + BLOCKS not in self.reader.names

    def info(self, tensor: str) -> TensorInfo:
        """Shape as transformers has it; quantised weights come out in float32."""
        if tensor + BLOCKS in self.reader.names:
            *outer, rows, groups, half = self.reader.info(tensor + BLOCKS).shape
            return TensorInfo("F32", (*outer, 2 * groups * half, rows), 0, 0)
        info = self.reader.info(tensor)
        return TensorInfo("F32", info.shape, info.begin, info.end) if info.dtype == "F8_E4M3" else info

    def tensor(self, tensor: str) -> Tensor:
        """The weight that the codes and scales stand for, float32; or the tensor as it is."""
        if tensor + BLOCKS in self.reader.names:
            return self._mxfp4(tensor)
        if self.reader.info(tensor).dtype == "F8_E4M3":
            scale = self._scale(tensor, tensor + SCALE, "F32", "F8_E8M0")
            return fp8_blocks(self.reader.tensor(tensor), scale, tensor)
        return self.reader.tensor(tensor)

    def read_into(self, tensor: str, target: Tensor) -> None:
        """Fill `target`, converting the dtype."""
        if tensor in self.reader.names and self.reader.info(tensor).dtype != "F8_E4M3":
            self.reader.read_into(tensor, target)
            return
        target.copy_(self.tensor(tensor).view(target.shape))

    def _mxfp4(self, tensor: str) -> Tensor:
        blocks = self._scale(tensor, tensor + BLOCKS, "U8")
        scales = self._scale(tensor, tensor + SCALES, "U8")
        if blocks.shape[:-1] != scales.shape:
            raise FormatError(
                f"{tensor}: blocks {list(blocks.shape)} and scales {list(scales.shape)} do not fit together"
            )
        # Stored as (experts, rows, columns); transformers holds the map transposed.
        return mxfp4(blocks, scales).transpose(-1, -2)

    def _scale(self, owner: str, name: str, *dtypes: str) -> Tensor:
        if name not in self.reader.names:
            raise FormatError(f"{owner}: is quantised, but the files lack {name}")
        if (dtype := self.reader.info(name).dtype) not in dtypes:
            raise FormatError(f"{name}: has dtype {dtype}; it must be {' or '.join(dtypes)}")
        return self.reader.tensor(name)


def fp8_blocks(codes_RC: Tensor, scale_rc: Tensor, name: str = "weight") -> Tensor:
    """E4M3 codes (…, R, C) times the factor of each 128 by 128 block, float32 or E8M0: float32 (…, R, C).

    Raises FormatError when there are not as many factors as blocks.
    """
    *outer, rows, columns = codes_RC.shape
    if tuple(scale_rc.shape) != (*outer, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)):
        raise FormatError(f"{name}: {rows} by {columns} weights do not fit scales {list(scale_rc.shape)}")
    spread = scale_rc.float().repeat_interleave(FP8_BLOCK, -2).repeat_interleave(FP8_BLOCK, -1)
    return codes_RC.float() * spread[..., :rows, :columns]


def mxfp4(blocks_G16: Tensor, scales_G: Tensor) -> Tensor:
    """Bytes (…, G, 16) of two E2M1 numbers each and exponents (…, G): float32 (…, 32 · G)."""
    return dequantise_mxfp4(Mxfp4(blocks_G16.flatten(-2), scales_G), torch.float32)
