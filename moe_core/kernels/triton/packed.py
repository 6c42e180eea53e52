"""Experts in 8 or 4 bits on a GPU: codes are read as they lie and widened in registers, a group at a time (W4A16, W8A16).

Shapes: T tokens, D model width, E experts, F expert width, R rows in expert order, O outer and I inner width of a weight,
B bytes of a row's codes, G its groups.
Attention's projections and other maps in few bits are one expert that has all rows.
The weight stands on the left of every product, (W · Xᵀ)ᵀ: what was just widened is in registers, where the left operand
of a matrix instruction may be. The format is that of `moe_core.kernels.packing`; a step of the loop is one group,
or a part of a long one.

Source: groups as in GPTQ (arXiv 2210.17323); widening in the loop as in vLLM's `fused_moe_kernel_gptq_awq`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.packing import Packed, code_bytes, num_groups
from moe_core.kernels.triton.align import Rows, align
from moe_core.kernels.triton.chip import chip_of, dot_precision, upcasts
from moe_core.kernels.triton.combine import combine
from moe_core.kernels.triton.gate_up import paired
from moe_core.kernels.triton.grouped_gemm import multiply, tile_place, tile_reads
from moe_core.kernels.triton.launch import launch
from moe_core.kernels.triton.tiles import Tile, packed_tile
from moe_core.spec.quantisation import ExpertQuantSpec

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# The most columns of one step; longer groups take several, which share a scale.
MOST_OF_STEP = 128
# With more rows a product is bound by arithmetic, and codes that each tile of rows widens anew are no gain.
MAX_LINEAR_ROWS = 256


@triton.jit(do_not_specialize=["num_tiles_m", "num_rows"])
def packed_kernel(
    x_ptr, codes_ptr, scales_ptr, zeros_ptr, out_ptr, choice_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr,
    num_tiles_m, num_rows, num_outer, num_inner, row_bytes, num_groups, x_stride,
    TOP_K: tl.constexpr, ONE: tl.constexpr, PAIRED: tl.constexpr, UNROLL: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """A tile of rows times BLOCK_N rows of a packed weight; PAIRED: gate and up rows in turn, then the gating.

    ONE: all rows as they lie have one weight, and there is no map of them. SHARE: so many steps have one scale.
    """
    # How many columns of the output the tile has: its gate rows only, where gate and up come in pairs.
    COLUMNS: tl.constexpr = BLOCK_N // 2 if PAIRED else BLOCK_N
    num_columns = num_outer // 2 if PAIRED else num_outer
    tile_m, tile_n = tile_place(num_tiles_m, tl.cdiv(num_columns, COLUMNS), GROUP_M)
    if ONE:
        expert = tile_m * 0
        row_M = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        real_M = row_M < num_rows
        choice_M = row_M
    else:
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
    weight_row_N = expert.to(tl.int64) * num_outer + outer_N
    group_at = weight_row_N * num_groups
    STEP_BYTES: tl.constexpr = GROUP * BITS // 8
    byte_B = tl.arange(0, STEP_BYTES)
    codes_at = codes_ptr + weight_row_N[:, None] * row_bytes + byte_B[None, :]
    inner_K = tl.arange(0, GROUP)
    x_at = x_ptr + from_M.to(tl.int64)[:, None] * x_stride + inner_K[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    num_steps = tl.cdiv(num_inner, GROUP)
    for step in range(0, num_steps, UNROLL):
        # Loads of several groups are in flight at once: one group of few rows is too little.
        for within in tl.static_range(UNROLL):
            group = step + within
            known_N = column_N < tl.where(group < num_steps, num_columns, 0)
            inside_K = inner_K < num_inner - group * GROUP
            x = tl.load(x_at + within * GROUP, mask=real_M[:, None] & inside_K[None, :], other=0.0)
            inside_B = byte_B < row_bytes - group * STEP_BYTES
            code = tl.load(
                codes_at + within * STEP_BYTES, mask=inside_N[:, None] & inside_B[None, :], other=0
            )
            scale_N = tl.load(scales_ptr + group_at + group // SHARE, mask=known_N, other=0.0).to(tl.float32)
            if BITS == 4:
                code = tl.reshape(tl.join(code & 0xF, code >> 4), (BLOCK_N, GROUP))
            # 2^23 + code by its bits: converting integers to floats is slow, and this is exact.
            value = (code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
            if HAS_ZEROS:
                zero_N = tl.load(zeros_ptr + group_at + group // SHARE, mask=known_N, other=0).to(tl.float32)
                w = value - (8388608.0 + zero_N)[:, None]
            else:
                w = value - (8388608.0 + 2.0 ** (BITS - 1))
            # Whole numbers of up to eight bits are exact in bfloat16 too; the scale multiplies the sum of the group.
            part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            part = multiply(x, w.to(x_ptr.dtype.element_ty), part, True, UPCAST, PRECISION)
            total += part * scale_N[:, None]
        x_at += UNROLL * GROUP
        codes_at += UNROLL * STEP_BYTES
    column_C = tile_n * COLUMNS + tl.arange(0, COLUMNS)
    inside = real_M[:, None] & (column_C < num_columns)[None, :]
    if PAIRED:
        gate, up = paired(total, BLOCK_M, COLUMNS, True)
        out = gate * tl.sigmoid(gate) * up
        to_M = row_M
    else:
        out = tl.trans(total)
        to_M = choice_M
    out_at = out_ptr + to_M.to(tl.int64)[:, None] * num_columns + column_C[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)


def blocks(tile: Tile, group_size: int) -> dict[str, Any]:
    """A tile as the constants of the kernel; a step of its loop is as many groups as `block_k` holds."""
    sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "GROUP_M": tile.group_m}
    return sizes | {"UNROLL": max(1, tile.block_k // group_size)}


def _constants(x: Tensor, weight: Packed, spec: ExpertQuantSpec, tile: Tile) -> dict[str, Any]:
    """What the kernel must know of codes and numbers."""
    step = min(spec.group_size, MOST_OF_STEP)
    # A step is a range of the kernel, whose length is a power of two, and has one scale.
    if step & (step - 1) or spec.group_size % step:
        most = MOST_OF_STEP
        raise SpecError(f"groups of {spec.group_size} are no power of two up to {most} and no whole times {most}")
    codes = {"BITS": spec.bits, "GROUP": step, "SHARE": spec.group_size // step, "HAS_ZEROS": weight.zeros is not None}
    return blocks(tile, step) | codes | {"UPCAST": upcasts(x), "PRECISION": dot_precision(x)}


def packed_gemm(
    x: Tensor, weight: Packed, num_outer: int, spec: ExpertQuantSpec, rows: Rows, tile: Tile, *, pairs: bool
) -> Tensor:
    """With `pairs`, silu(gate) · up of gathered tokens, (R, O / 2) by row; else rows times the weight, (R, O) by choice.

    `weight` holds (E, O, B) codes, (E, O, G) scales and zero points or none, contiguous. Raises SpecError for what does
    not fit.
    """
    _check(x, weight, num_outer, spec, rows, pairs)
    num_rows, num_inner = rows.choice_R.shape[0], x.shape[1]
    num_columns = num_outer // 2 if pairs else num_outer
    out = x.new_empty(num_rows, num_columns)
    if num_rows == 0:
        return out

    def lay(tile: Tile) -> tuple[int, dict[str, Any]]:
        columns = tile.block_n // 2 if pairs else tile.block_n
        way = {"TOP_K": rows.top_k, "ONE": False, "PAIRED": pairs}
        return rows.max_tiles * triton.cdiv(num_columns, columns), _constants(x, weight, spec, tile) | way

    arguments = (
        x, weight.codes, weight.scales, weight.zeros, out,
        rows.choice_R, rows.begin_E, rows.tile_expert_M, rows.tile_row_M,
        rows.max_tiles, num_rows, num_outer, num_inner, weight.codes.shape[2], weight.scales.shape[2], x.stride(0),
    )  # fmt: skip
    launch(packed_kernel, arguments, tile, lay)
    return out


def packed_linear(x_RK: Tensor, weight: Packed, spec: ExpertQuantSpec) -> Tensor:
    """x · weightᵀ, (R, O) in the dtype of `x_RK`; `weight` holds (O, B) codes and (O, G) scales of one map. No gradient.

    Raises SpecError for what does not fit.
    """
    num_rows, num_inner = x_RK.shape
    num_outer = weight.codes.shape[0]
    _check_weight(x_RK, weight, (num_outer,), spec)
    out_RO = x_RK.new_empty(num_rows, num_outer)
    if num_rows == 0:
        return out_RO
    tile = packed_tile(num_rows, 1, x_RK.dtype, chip_of(x_RK.device))
    num_tiles = triton.cdiv(num_rows, tile.block_m)

    def lay(tile: Tile) -> tuple[int, dict[str, Any]]:
        way = {"TOP_K": 1, "ONE": True, "PAIRED": False}
        return num_tiles * triton.cdiv(num_outer, tile.block_n), _constants(x_RK, weight, spec, tile) | way

    arguments = (
        x_RK, weight.codes, weight.scales, weight.zeros, out_RO, None, None, None, None,
        num_tiles, num_rows, num_outer, num_inner, weight.codes.shape[1], weight.scales.shape[1], x_RK.stride(0),
    )  # fmt: skip
    launch(packed_kernel, arguments, tile, lay)
    return out_RO


def packed_swiglu_experts(
    hidden_TD: Tensor, gate_up: Packed, down: Packed, num_ff: int, spec: ExpertQuantSpec, ids_TK: Tensor, weights_TK: Tensor,
    slots_E: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted sum of the chosen packed experts' outputs, (T, D) in the dtype of the input; -1 is no expert. No gradient.

    With `slots_E` (E,) int64 the codes of expert e lie in slot slots_E[e] of a pool.
    """
    num_slots, width = down.codes.shape[0], hidden_TD.shape[1]
    num_experts = num_slots if slots_E is None else slots_E.shape[0]
    tile = packed_tile(ids_TK.numel(), num_experts, hidden_TD.dtype, chip_of(hidden_TD.device))
    ids_TK = ids_TK.contiguous()
    rows = align(ids_TK, num_experts, tile.block_m).in_slots(slots_E, num_slots)
    act_RF = packed_gemm(hidden_TD.contiguous(), gate_up, 2 * num_ff, spec, rows, tile, pairs=True)
    out_RD = packed_gemm(act_RF, down, width, spec, rows, tile, pairs=False)
    return combine(out_RD, ids_TK, weights_TK.contiguous())


def supports(hidden_TD: Tensor, expert_ids_TK: Tensor) -> bool:
    """CUDA or ROCm tensors of one of DTYPES, no gradient wanted."""
    ids_fit = expert_ids_TK.device == hidden_TD.device and expert_ids_TK.dtype in (torch.int64, torch.int32)
    return _supports(hidden_TD) and ids_fit


def supports_linear(x_RK: Tensor) -> bool:
    """The same of one map, for up to MAX_LINEAR_ROWS rows: the widening of more is little beside their product."""
    return _supports(x_RK) and x_RK.shape[0] <= MAX_LINEAR_ROWS


def _supports(x: Tensor) -> bool:
    learns = torch.is_grad_enabled() and x.requires_grad
    return x.is_cuda and x.dtype in DTYPES and not learns


def _check(x: Tensor, weight: Packed, num_outer: int, spec: ExpertQuantSpec, rows: Rows, pairs: bool) -> None:
    num_rows = rows.choice_R.shape[0]
    wanted = num_rows // rows.top_k if pairs else num_rows
    if x.shape[0] != wanted:
        raise SpecError(f"rows {tuple(x.shape)} must be ({wanted}, I)")
    _check_weight(x, weight, (rows.begin_E.shape[0] - 1, num_outer), spec)


def _check_weight(x: Tensor, weight: Packed, outer: tuple[int, ...], spec: ExpertQuantSpec) -> None:
    """Rows and codes of one width, contiguous and together."""
    if x.stride(1) != 1 or x.dtype not in DTYPES:
        raise SpecError(
            f"rows {tuple(x.shape)} {x.dtype} need a last stride of 1, and a dtype of 16 or 32 bits"
        )
    codes = (*outer, code_bytes(x.shape[1], spec))
    groups = (*outer, num_groups(x.shape[1], spec))
    if weight.codes.shape != codes or weight.scales.shape != groups:
        raise SpecError(
            f"codes {tuple(weight.codes.shape)} and scales {tuple(weight.scales.shape)} must be {codes} and {groups}"
        )
    tensors = [weight.codes, weight.scales, *([] if weight.zeros is None else [weight.zeros])]
    if not all(tensor.is_contiguous() and tensor.device == x.device for tensor in tensors):
        raise SpecError(f"codes, scales and zero points must be contiguous and on {x.device}")
