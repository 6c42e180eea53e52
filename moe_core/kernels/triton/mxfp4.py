"""Experts in mxfp4 on a GPU, through `tl.dot_scaled`: weights go to the matrix unit as 4-bit floats with their exponents.

Shapes: T tokens, D model width, E experts, F expert width, R rows in expert order, O outer and I inner width of a weight,
B bytes of a row's codes, G its groups of 32.
Activations stay in 16 bits (W4A16: the compiler widens the weight to bfloat16 in registers, everywhere), or are rounded to
mxfp8 in groups of 32 (W4A8), which Blackwell's matrix unit multiplies with 4-bit weights as they are. The weight stands on
the left, (W · Xᵀ)ᵀ, as in `packed`. Biases and the gatings of gpt-oss and Step are in the kernel.

Source: Open Compute Project 2023, "OCP Microscaling Formats (MX)"; OpenAI 2025, gpt-oss (the clamped gating).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.mxfp4 import GROUP, Mxfp4
from moe_core.kernels.triton.align import Rows, align
from moe_core.kernels.triton.chip import chip_of, dot_precision, dots_scaled
from moe_core.kernels.triton.combine import combine
from moe_core.kernels.triton.gate_up import paired
from moe_core.kernels.triton.grouped_gemm import multiply, tile_place, tile_reads
from moe_core.kernels.triton.launch import launch
from moe_core.kernels.triton.tiles import Tile, mxfp4_tile

FORMS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
GATINGS = ("silu", "clamped", "clamped_silu")
Activations = Literal["plain", "mxfp8"]


@triton.jit
def power_of_two(exponent):
    """2^(exponent - 127) of e8m0 bytes, by its bits; the lowest is below float32's normal numbers."""
    bits = tl.where(exponent == 0, 0x00400000, exponent.to(tl.int32) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def spread(values, per_group, ROWS: tl.constexpr, STEP: tl.constexpr):
    """values · per_group, each of which is for 32 columns."""
    grouped = tl.reshape(values, (ROWS, STEP // 32, 32)) * per_group[:, :, None]
    return tl.reshape(grouped, (ROWS, STEP))


@triton.jit
def widened(code, exponent, ROWS: tl.constexpr, STEP: tl.constexpr):
    """(ROWS, STEP) float32 out of bytes of two E2M1 numbers, and exponents."""
    code = tl.reshape(tl.join(code & 0xF, code >> 4), (ROWS, STEP)).to(tl.int32)
    size = code & 7
    # Exponent and mantissa in the places of a float32's; 0 and 0.5 are not normal numbers.
    bits = (((size >> 1) + 126) << 23) | ((size & 1) << 22)
    value = tl.where(size < 2, size.to(tl.float32) * 0.5, bits.to(tl.float32, bitcast=True))
    value = tl.where(code >= 8, -value, value)
    return spread(value, power_of_two(exponent), ROWS, STEP)


@triton.jit
def rounded_to_mxfp8(x, ROWS: tl.constexpr, STEP: tl.constexpr):
    """E4M3 (ROWS, STEP) and e8m0 exponents (ROWS, STEP / 32); what 448 times the power cannot reach becomes 448 times it."""
    x = x.to(tl.float32)
    top = tl.max(tl.reshape(tl.abs(x), (ROWS, STEP // 32, 32)), axis=2)
    # The exponent of the largest in its group, less E4M3's largest, 8.
    exponent = tl.maximum(((top.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 8, 1)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    scaled = tl.minimum(tl.maximum(spread(x, inverse, ROWS, STEP), -448.0), 448.0)
    return scaled.to(tl.float8e4nv), exponent.to(tl.uint8)


@triton.jit
def gated(gate, up, alpha, limit, GATING: tl.constexpr):
    """What `moe_core.kernels.gating.Gating` says."""
    if GATING == "clamped":
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        out = (up + 1.0) * gate * tl.sigmoid(gate * alpha)
    elif GATING == "clamped_silu":
        out = tl.minimum(gate * tl.sigmoid(gate), limit) * tl.minimum(tl.maximum(up, -limit), limit)
    else:
        out = gate * tl.sigmoid(gate) * up
    return out


@triton.jit(do_not_specialize=["num_tiles_m"])
def mxfp4_kernel(
    x_ptr, codes_ptr, exponents_ptr, bias_ptr, out_ptr, choice_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr,
    num_tiles_m, num_outer, num_inner, x_stride, alpha, limit,
    TOP_K: tl.constexpr, PAIRED: tl.constexpr, HAS_BIAS: tl.constexpr, GATING: tl.constexpr,
    FORM: tl.constexpr, MXFP8: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile of rows times BLOCK_N rows of a weight in mxfp4; PAIRED: gate and up rows in turn, then the gating."""
    COLUMNS: tl.constexpr = BLOCK_N // 2 if PAIRED else BLOCK_N
    num_columns = num_outer // 2 if PAIRED else num_outer
    tile_m, tile_n = tile_place(num_tiles_m, tl.cdiv(num_columns, COLUMNS), GROUP_M)
    expert = tl.load(tile_expert_ptr + tile_m)
    if expert < 0:
        return
    row_M = tl.load(tile_row_ptr + tile_m) + tl.arange(0, BLOCK_M)
    real_M = row_M < tl.load(begin_ptr + expert + 1)
    choice_M = tl.load(choice_ptr + row_M, mask=real_M, other=0)
    from_M, column_N, outer_N = tile_reads(
        choice_M, row_M, real_M, tile_n, num_columns, TOP_K, PAIRED, BLOCK_N
    )
    inside_N = column_N < num_columns
    weight_row_N1 = (expert.to(tl.int64) * num_outer + outer_N)[:, None]
    byte_B = tl.arange(0, BLOCK_K // 2)
    group_G = tl.arange(0, BLOCK_K // 32)
    inner_K = tl.arange(0, BLOCK_K)
    codes_at = codes_ptr + weight_row_N1 * (num_inner // 2) + byte_B[None, :]
    exponents_at = exponents_ptr + weight_row_N1 * (num_inner // 32) + group_G[None, :]
    x_at = x_ptr + from_M.to(tl.int64)[:, None] * x_stride + inner_K[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(0, num_inner, BLOCK_K):
        left = num_inner - first
        x = tl.load(x_at, mask=real_M[:, None] & (inner_K < left)[None, :], other=0.0)
        code = tl.load(codes_at, mask=inside_N[:, None] & (byte_B < left // 2)[None, :], other=0)
        exponent = tl.load(exponents_at, mask=inside_N[:, None] & (group_G < left // 32)[None, :], other=127)
        if MXFP8:
            eight, power = rounded_to_mxfp8(x, BLOCK_M, BLOCK_K)
            if WIDEN:
                x = spread(eight.to(tl.float32), power_of_two(power), BLOCK_M, BLOCK_K)
            else:
                total = tl.dot_scaled(code, exponent, "e2m1", tl.trans(eight), power, "e4m3", total)
        elif not WIDEN:
            total = tl.dot_scaled(code, exponent, "e2m1", tl.trans(x), None, FORM, total)
        if WIDEN:
            w = widened(code, exponent, BLOCK_N, BLOCK_K)
            total = multiply(x, w, total, True, True, PRECISION)
        x_at += BLOCK_K
        codes_at += BLOCK_K // 2
        exponents_at += BLOCK_K // 32
    if HAS_BIAS:
        bias_N = tl.load(bias_ptr + expert.to(tl.int64) * num_outer + outer_N, mask=inside_N, other=0.0)
        total += bias_N.to(tl.float32)[:, None]
    column_C = tile_n * COLUMNS + tl.arange(0, COLUMNS)
    inside = real_M[:, None] & (column_C < num_columns)[None, :]
    if PAIRED:
        gate, up = paired(total, BLOCK_M, COLUMNS, True)
        out = gated(gate, up, alpha, limit, GATING)
        to_M = row_M
    else:
        out = tl.trans(total)
        to_M = choice_M
    out_at = out_ptr + to_M.to(tl.int64)[:, None] * num_columns + column_C[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)


def blocks(tile: Tile) -> dict[str, Any]:
    """A tile as the constants of the kernel."""
    sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    return sizes | {"GROUP_M": tile.group_m}


def mxfp4_gemm(
    x: Tensor, weight: Mxfp4, bias_EO: Tensor | None, rows: Rows, tile: Tile, *, gating: Gating | None,
    activations: Activations = "plain",
) -> Tensor:  # fmt: skip
    """With a gating, gate and up of gathered tokens gated, (R, O / 2) by row; else rows times the weight, (R, O) by choice.

    `weight` holds (E, O, B) codes and (E, O, G) exponents. Raises SpecError for what does not fit.
    """
    _check(x, weight, bias_EO, rows, gating)
    num_outer, num_inner = weight.shape[1:]
    pairs = gating is not None
    num_columns = num_outer // 2 if pairs else num_outer
    out = x.new_empty(rows.choice_R.shape[0], num_columns)
    if out.shape[0] == 0:
        return out
    way = {
        "TOP_K": rows.top_k, "PAIRED": pairs, "HAS_BIAS": bias_EO is not None,
        "GATING": gating.kind if gating else "silu", "FORM": FORMS[x.dtype], "MXFP8": activations == "mxfp8",
        "WIDEN": x.dtype is torch.float32 or not dots_scaled(), "PRECISION": dot_precision(x),
    }  # fmt: skip

    def lay(tile: Tile) -> tuple[int, dict[str, Any]]:
        columns = tile.block_n // 2 if pairs else tile.block_n
        return rows.max_tiles * triton.cdiv(num_columns, columns), blocks(tile) | way

    limits = (gating or PLAIN).alpha, (gating or PLAIN).limit
    arguments = (
        x, weight.codes, weight.exponents, bias_EO, out,
        rows.choice_R, rows.begin_E, rows.tile_expert_M, rows.tile_row_M,
        rows.max_tiles, num_outer, num_inner, x.stride(0), *limits,
    )  # fmt: skip
    launch(mxfp4_kernel, arguments, tile, lay)
    return out


def mxfp4_experts(
    hidden_TD: Tensor, gate_up: Mxfp4, down: Mxfp4, ids_TK: Tensor, weights_TK: Tensor, gating: Gating = PLAIN,
    gate_up_bias_E2F: Tensor | None = None, down_bias_ED: Tensor | None = None,
    activations: Activations = "plain",
) -> Tensor:  # fmt: skip
    """Weighted sum of the chosen experts' outputs, (T, D) in the dtype of the input; -1 is no expert. No gradient."""
    num_experts = down.codes.shape[0]
    tile = mxfp4_tile(ids_TK.numel(), num_experts, hidden_TD.dtype, chip_of(hidden_TD.device))
    ids_TK = ids_TK.contiguous()
    rows = align(ids_TK, num_experts, tile.block_m)
    act_RF = mxfp4_gemm(
        hidden_TD.contiguous(), gate_up, gate_up_bias_E2F, rows, tile, gating=gating, activations=activations
    )
    out_RD = mxfp4_gemm(act_RF, down, down_bias_ED, rows, tile, gating=None, activations=activations)
    return combine(out_RD, ids_TK, weights_TK.contiguous())


def supports(hidden_TD: Tensor, expert_ids_TK: Tensor, gating: Gating) -> bool:
    """CUDA or ROCm tensors of a dtype in FORMS, a gating in GATINGS, no gradient wanted."""
    return (
        hidden_TD.is_cuda
        and hidden_TD.dtype in FORMS
        and expert_ids_TK.device == hidden_TD.device
        and expert_ids_TK.dtype in (torch.int64, torch.int32)
        and gating.kind in GATINGS
        and not (torch.is_grad_enabled() and hidden_TD.requires_grad)
    )


def _check(x: Tensor, weight: Mxfp4, bias_EO: Tensor | None, rows: Rows, gating: Gating | None) -> None:
    num_rows, num_experts = rows.choice_R.shape[0], rows.begin_E.shape[0] - 1
    _, num_outer, num_inner = weight.shape
    wanted = (num_rows // rows.top_k if gating else num_rows, num_inner)
    if x.shape != wanted or x.stride(1) != 1 or x.dtype not in FORMS:
        raise SpecError(f"rows {tuple(x.shape)} {x.dtype} must be {wanted} with a last stride of 1")
    groups = (num_experts, num_outer, num_inner // GROUP)
    if num_inner % GROUP or weight.codes.shape[0] != num_experts or weight.exponents.shape != groups:
        raise SpecError(
            f"codes {tuple(weight.codes.shape)} and exponents {tuple(weight.exponents.shape)} must be of {num_experts} "
            f"experts, with an exponent for each {GROUP} weights of a row"
        )
    if gating is not None and (gating.kind not in GATINGS or num_outer % 2):
        raise SpecError(
            f"the gating {gating.kind!r} of {num_outer} rows must be one of {', '.join(GATINGS)}, of pairs"
        )
    if bias_EO is not None and bias_EO.shape != (num_experts, num_outer):
        raise SpecError(f"the bias {tuple(bias_EO.shape)} must be {(num_experts, num_outer)}")
    tensors = [weight.codes, weight.exponents, *([] if bias_EO is None else [bias_EO])]
    if not all(tensor.is_contiguous() and tensor.device == x.device for tensor in tensors):
        raise SpecError(f"codes, exponents and biases must be contiguous and on {x.device}")
