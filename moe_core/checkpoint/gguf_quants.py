"""Blocks of quantised weights back to float32, in numpy.

Shapes: N blocks. Every function takes (N, block_bytes) uint8 and returns (N, block_elements) float32.
Source: the block structures of ggml (https://github.com/ggml-org/ggml, src/ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quant:
    """One storage type: how many elements and bytes a block has, and how to unpack it."""

    type_id: int
    name: str
    block_elements: int
    block_bytes: int
    unpack: Callable[[Bytes], Floats]


def _half(blocks: Bytes, start: int) -> Floats:
    """One float16 of each block, as (N, 1) float32."""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of all bytes, then high halves: (N, m) to (N, 2m)."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """32 bits of each block, lowest first, each moved to the place of 16."""
    bits: Bytes = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    return (bits << 4).astype(np.uint8, copy=False)


def _f32(blocks: Bytes) -> Floats:
    return blocks.copy().view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return _half(blocks, 0)


def _bf16(blocks: Bytes) -> Floats:
    wide = blocks.copy().view(np.uint16).astype(np.uint32) << 16
    return wide.view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (values.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * values.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight 6-bit scales and eight 6-bit minima out of 12 bytes: two (N, 8)."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    return scales, minima


def _q4_k(blocks: Bytes) -> Floats:
    scales, minima = _k_scales(blocks[:, 4:16])
    values = _k_nibbles(blocks[:, 16:])
    return _k_affine(blocks, scales, minima, values)


def _q5_k(blocks: Bytes) -> Floats:
    scales, minima = _k_scales(blocks[:, 4:16])
    # Bit j of byte i is the fifth bit of element i in group j.
    bits = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1)
    values = (_k_nibbles(blocks[:, 48:]) | (bits << 4)).astype(np.uint8, copy=False)
    return _k_affine(blocks, scales, minima, values)


def _k_nibbles(packed: Bytes) -> Bytes:
    """Eight groups of 32: each run of 32 bytes holds one group in its low halves and the next in its high."""
    runs = packed.reshape(len(packed), 4, 1, 32)
    return np.concatenate([runs & 0x0F, runs >> 4], axis=2).reshape(len(packed), 8, 32)


def _k_affine(blocks: Bytes, scales: Bytes, minima: Bytes, values: Bytes) -> Floats:
    scale = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    minimum = (_half(blocks, 2) * minima.astype(np.float32))[:, :, None]
    return (scale * values.astype(np.float32) - minimum).reshape(len(blocks), 256)


def _q6_k(blocks: Bytes) -> Floats:
    low: Bytes = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 8, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    values = low | ((high & 0x03) << 4).reshape(-1, 8, 32)
    signed = (values.astype(np.int8) - 32).reshape(-1, 16, 16).astype(np.float32)
    scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32) * _half(blocks, 208)
    return (scales[:, :, None] * signed).reshape(-1, 256)


def _mxfp4(blocks: Bytes) -> Floats:
    """An exponent, then sixteen bytes of E2M1 numbers; doubled values with half the power of two are exact."""
    exponent = blocks[:, :1].astype(np.uint32)
    # The lowest two powers are subnormal.
    bits = np.where(exponent < 2, np.uint32(0x00200000) << exponent, (exponent - 1) << np.uint32(23))
    power: Floats = bits.astype(np.uint32, copy=False).view(np.float32)
    return power * _E2M1_DOUBLED[_nibbles(blocks[:, 1:])]


_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)

_ALL = (
    Quant(0, "F32", 1, 4, _f32),
    Quant(1, "F16", 1, 2, _f16),
    Quant(2, "Q4_0", 32, 18, _q4_0),
    Quant(3, "Q4_1", 32, 20, _q4_1),
    Quant(6, "Q5_0", 32, 22, _q5_0),
    Quant(7, "Q5_1", 32, 24, _q5_1),
    Quant(8, "Q8_0", 32, 34, _q8_0),
    Quant(12, "Q4_K", 256, 144, _q4_k),
    Quant(13, "Q5_K", 256, 176, _q5_k),
    Quant(14, "Q6_K", 256, 210, _q6_k),
    Quant(30, "BF16", 1, 2, _bf16),
    Quant(39, "MXFP4", 32, 17, _mxfp4),
)
QUANT_BY_ID: Mapping[int, Quant] = {quant.type_id: quant for quant in _ALL}
# Storage types of ggml that are not unpacked here, so that a refusal can name them.
UNREAD: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
