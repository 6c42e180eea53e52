"""Every kernel with the constants of one use, for compiling it ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moe_core.kernels.triton import (
    activation_backward,
    align,
    combine,
    gate_up,
    gather,
    grouped_gemm,
    mxfp4,
    packed,
    topk,
    weight_gradient,
)
from moe_core.kernels.triton.chip import Chip
from moe_core.kernels.triton.tiles import Tile, mxfp4_tile, packed_tile, product_tile, weight_gradient_tile

# Rows of one token and of 8,192, of a mixture with 8 of 128 experts.
SIZES = {"decode": 8, "prompt": 8192 * 8}
ORDER = dict.fromkeys(("choice_ptr", "begin_ptr", "tile_expert_ptr", "tile_row_ptr"), "*i32")
TABLES = dict.fromkeys(
    ("choice_ptr", "begin_ptr", "tile_expert_ptr", "tile_row_ptr", "counts_ptr", "base_ptr", "total_ptr"),
    "*i32",
)
SIZES_OF_TABLES = dict.fromkeys(("num_choices", "num_experts", "max_tiles", "num_chunks"), "i32")
PLAIN = {"UPCAST": False, "PRECISION": "ieee"}

# tcgen05.mma of kind mxf8f6f4 with block scales.
BLOCK_SCALED = r"\bUTCQMMA\b"


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel with the constants of one use."""

    name: str
    kernel: Any
    # Argument name to Triton type, "*bf16" or "i32"; integers are taken as multiples of 16.
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    # Of a product: its tile, and the constants that a tile gives.
    tile: Tile | None = None
    lay: Callable[[Tile], Mapping[str, Any]] | None = None
    # The matrix instruction that is looked for, by architecture, where it is not the usual one.
    instructions: Mapping[str, str] = field(default_factory=dict)

    @property
    def multiplies(self) -> bool:
        """Whether matrix instructions are expected."""
        return self.tile is not None

    def tiled(self, tile: Tile) -> Case:
        """The same product with this tile."""
        assert self.lay is not None
        constants = {**self.constants, **self.lay(tile)}
        return replace(
            self, constants=constants, num_warps=tile.num_warps, num_stages=tile.num_stages, tile=tile
        )


def product(
    name: str, kernel: Any, arguments: Mapping[str, str], constants: Mapping[str, Any],
    tile: Tile, lay: Callable[[Tile], Mapping[str, Any]],
) -> Case:  # fmt: skip
    """A kernel that multiplies, with the tile that the rule gives."""
    return Case(name, kernel, arguments, constants, tile=tile, lay=lay).tiled(tile)


def cases(arch: str) -> Iterator[Case]:
    """Every kernel with the tiles that `arch` would use for a decoding step and for a long prompt, in bfloat16."""
    chip = Chip(arch, 132)
    for size, num_rows in SIZES.items():
        yield from _products(size, product_tile(num_rows, 128, torch.bfloat16, chip))
    yield product(
        "weight_gradient", weight_gradient.weight_gradient_kernel,
        dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), "*bf16")
        | {"begin_ptr": "*i32", "num_p": "i32", "num_q": "i32"},
        PLAIN, weight_gradient_tile(torch.bfloat16, chip), weight_gradient.blocks,
    )  # fmt: skip
    for size, num_rows in SIZES.items():
        yield _packed(size, packed_tile(num_rows, 128, torch.bfloat16, chip))
    yield _packed_map(packed_tile(8, 1, torch.bfloat16, chip))
    for size, num_rows in SIZES.items():
        tile = mxfp4_tile(num_rows, 128, torch.bfloat16, chip)
        yield _mxfp4(f"mxfp4/{size}", tile)
        if chip.has_block_scales:
            yield _mxfp4(f"mxfp4/{size} with mxfp8", tile, {"MXFP8": True})
    yield from _sorting()
    yield from _of_rows()
    yield _decision()


def _products(size: str, tile: Tile) -> Iterator[Case]:
    even = {"EVEN_N": True, "EVEN_K": True, "TOP_K": 8} | PLAIN
    ints = ("num_tiles_m", "num_outer", "num_inner", "x_stride", "w_stride_e", "w_stride_o", "out_stride")
    yield product(
        f"gate_up/{size}", gate_up.gate_up_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "act_ptr", "both_ptr"), "*bf16") | ORDER
        | dict.fromkeys(("num_tiles_m", "num_ff", "num_inner", "x_stride", "w_stride_e", "w_stride_o"), "i32"),
        even | {"KEEP": size == "prompt"}, tile, grouped_gemm.blocks,
    )  # fmt: skip
    plain = even | {"GATHER": False, "SCATTER": True}
    yield product(
        f"grouped_gemm/{size}", grouped_gemm.grouped_gemm_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), "*bf16") | ORDER | dict.fromkeys(ints, "i32"),
        plain | {"w_stride_i": 1}, tile, grouped_gemm.blocks,
    )  # fmt: skip
    if size == "decode":
        return
    yield product(
        f"grouped_gemm/{size} transposed", grouped_gemm.grouped_gemm_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), "*bf16") | ORDER
        | dict.fromkeys((*(i for i in ints if i != "w_stride_o"), "w_stride_i"), "i32"),
        plain | {"w_stride_o": 1}, tile, grouped_gemm.blocks,
    )  # fmt: skip


def _packed(size: str, tile: Tile) -> Case:
    """Experts in 4 bits, groups of 64 with zero points."""
    return _of_codes(f"packed/{size}", tile, ORDER, {"ONE": False, "PAIRED": True})


def _packed_map(tile: Tile) -> Case:
    """A projection of attention for the few rows of a decoding step."""
    return _of_codes("packed/map", tile, {}, {"ONE": True, "PAIRED": False} | dict.fromkeys(ORDER))


def _of_codes(name: str, tile: Tile, order: dict[str, str], way: Mapping[str, Any]) -> Case:
    ints = ("num_tiles_m", "num_rows", "num_outer", "num_inner", "row_bytes", "num_groups", "x_stride")
    return product(
        name, packed.packed_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "codes_ptr": "*u8", "scales_ptr": "*fp16", "zeros_ptr": "*u8"}
        | order | dict.fromkeys(ints, "i32"),
        {"TOP_K": 8, "BITS": 4, "GROUP": 64, "SHARE": 1, "HAS_ZEROS": True, **way} | PLAIN,
        tile, lambda tile: packed.blocks(tile, 64),
    )  # fmt: skip


def _mxfp4(name: str, tile: Tile, way: Mapping[str, Any] | None = None) -> Case:
    """gpt-oss' first product: biases and its gating. 4-bit floats meet 8-bit ones where the matrix unit takes both."""
    ints = ("num_tiles_m", "num_outer", "num_inner", "x_stride")
    constants = {
        "TOP_K": 8, "PAIRED": True, "HAS_BIAS": True, "GATING": "clamped",
        "FORM": "bf16", "MXFP8": False, "WIDEN": False, "PRECISION": "ieee", **(way or {}),
    }  # fmt: skip
    case = product(
        name, mxfp4.mxfp4_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "bias_ptr": "*bf16", "codes_ptr": "*u8", "exponents_ptr": "*u8"}
        | ORDER | dict.fromkeys(ints, "i32") | {"alpha": "fp32", "limit": "fp32"},
        constants, tile, mxfp4.blocks,
    )  # fmt: skip
    return replace(case, instructions={"sm100": BLOCK_SCALED}) if way else case


def _known(kernel: Any) -> dict[str, str]:
    """Of what describes the order of rows, the arguments that a kernel has."""
    known = TABLES | SIZES_OF_TABLES | {"ids_ptr": "*i64"}
    return {name: kind for name, kind in known.items() if name in kernel.arg_names}


def _sorting() -> Iterator[Case]:
    laid = {"EXPERTS": 128, "BLOCK_M": 16, "TILES": 16}
    yield Case(
        "align_few",
        align.align_few,
        _known(align.align_few),
        laid | {"CHOICES": align.FEW_CHOICES},
    )
    chunk = {"CHUNK": align.CHUNK}
    yield Case(
        "count_chunks",
        align.count_chunks,
        _known(align.count_chunks),
        chunk | {"EXPERTS": 128, "STEP": 32},
    )
    yield Case(
        "scan_chunks",
        align.scan_chunks,
        _known(align.scan_chunks),
        laid | {"OWN": 8, "STEP": align.SCAN_STEP},
        8,
    )
    yield Case("place_chunks", align.place_chunks, _known(align.place_chunks), chunk | {"STEP": 32}, 8)


def _of_rows() -> Iterator[Case]:
    backward = activation_backward.activation_backward_kernel
    yield Case(
        "activation_backward", backward,
        dict.fromkeys(("d_act_ptr", "both_ptr", "d_both_ptr", "scaled_ptr"), "*bf16")
        | {"weights_ptr": "*fp32", "dots_ptr": "*fp32"} | _known(backward) | {"num_ff": "i32"},
        {"BOTH": True, "SCALED": True, "DOTS": True, "BLOCK_F": 1024},
    )  # fmt: skip
    yield Case(
        "gather", gather.gather_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "width": "i32", "x_stride": "i32"} | _known(gather.gather_kernel),
        {"TOP_K": 8, "BLOCK_D": 2048},
    )  # fmt: skip
    yield Case(
        "combine", combine.combine_kernel,
        {"rows_ptr": "*bf16", "ids_ptr": "*i64", "weights_ptr": "*fp32", "out_ptr": "*bf16", "width": "i32"},
        {"TOP_K": 8, "WEIGHTED": True, "BLOCK_D": 1024},
    )  # fmt: skip


def _decision() -> Case:
    """A gate with groups, a domain prior and a balancing bias."""
    scores = dict.fromkeys(
        ("raw_ptr", "prior_ptr", "bias_ptr", "weights_ptr", "logits_ptr", "shares_ptr"), "*fp32"
    )
    sizes = {
        "num_tokens": "i32",
        "num_experts": "i32",
        "temperature": "fp32",
        "factor": "fp32",
        "ids_ptr": "*i64",
    }
    return Case(
        "topk", topk.topk_kernel, scores | sizes,
        {"TOP_K": 8, "SCORES": "sigmoid", "NORMALISED": True, "BY_LOGITS": False, "HAS_PRIOR": True, "HAS_BIAS": True,
         "GROUPS": 8, "TOP_GROUPS": 4, "TWO_BEST": True, "TOKENS": 4, "EXPERTS": 256, "PLACES": 8},
    )  # fmt: skip
