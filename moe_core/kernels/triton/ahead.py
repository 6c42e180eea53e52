"""Ahead-of-time compilation of every kernel for chips that are not here, and what the machine code tells of itself.

It shows registers, spills, shared memory and the matrix instruction. It cannot show time, races or rounding.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe_core.kernels.triton import (
    activation_backward,
    align,
    combine,
    gate_up,
    gather,
    grouped_gemm,
    packed,
    topk,
    weight_gradient,
)
from moe_core.kernels.triton.chip import SHARED_BYTES, Chip
from moe_core.kernels.triton.tiles import Tile, packed_tile, product_tile, weight_gradient_tile

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# The matrix instruction of each architecture, as its disassembly names it.
MATRIX_INSTRUCTION = {
    "sm80": r"\bHMMA\b",
    "sm90": r"\bHGMMA\b",
    "sm100": r"\bUTC\w*MMA\b",
    "sm120": r"\bHMMA\b",
    "gfx942": r"\bv_mfma_",
}


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
    multiplies: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What one compiled kernel needs."""

    case: str
    arch: str
    registers: int
    spills: int
    shared_bytes: int
    matrix_instructions: int

    @property
    def fits(self) -> bool:
        """Whether a block gets the shared memory that it asks for, with nothing spilled."""
        return self.spills == 0 and self.shared_bytes <= SHARED_BYTES[self.arch]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def compile_case(case: Case, arch: str) -> Report:
    """Compile one case for one architecture. Raises whatever Triton raises when that is impossible."""
    signature = {name: case.arguments.get(name, "constexpr") for name in case.kernel.arg_names}
    constants = {(case.kernel.arg_names.index(name),): value for name, value in case.constants.items()}
    varying = getattr(case.kernel, "do_not_specialize", ())
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and name not in varying
    }
    source = ASTSource(case.kernel, signature, constants, aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=TARGETS[arch], options=options)
    code, registers, spills = _read_hsaco(compiled) if arch.startswith("gfx") else _read_cubin(compiled)
    found = len(re.findall(MATRIX_INSTRUCTION[arch], code))
    return Report(case.name, arch, registers, spills, int(compiled.metadata.shared), found)


def _read_cubin(compiled: Any) -> tuple[str, int, int]:
    """SASS, registers a thread, and bytes of stack or local accesses: any of them is a spill."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = {
        name: int(value)
        for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr)
    }
    return sass, used["REG"], used["STACK"] + used["LOCAL"] + len(re.findall(r"\b(?:LDL|STL)\b", sass))


def _read_hsaco(compiled: Any) -> tuple[str, int, int]:
    code = compiled.asm["amdgcn"]
    count = {
        name: int(value)
        for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s*(\d+)", code)
    }
    return code, count["vgpr_count"], count["vgpr_spill_count"] + count["sgpr_spill_count"]


def cases(arch: str) -> Iterator[Case]:
    """Every kernel with the tiles that `arch` would use for a decoding step and for a long prompt, in bfloat16."""
    chip = Chip(arch, 132)
    for size, tile in tiles(chip).items():
        yield from _products(size, tile)
    wide = weight_gradient_tile(torch.bfloat16, chip)
    yield Case(
        "weight_gradient", weight_gradient.weight_gradient_kernel,
        dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), "*bf16")
        | {"begin_ptr": "*i32", "num_p": "i32", "num_q": "i32"},
        {"BLOCK_P": wide.block_m, "BLOCK_Q": wide.block_n, "BLOCK_R": wide.block_k,
         "UPCAST": False, "PRECISION": "ieee"},
        wide.num_warps, wide.num_stages, multiplies=True,
    )  # fmt: skip
    for size, num_rows in (("decode", 8), ("prompt", 8192 * 8)):
        yield _packed(size, packed_tile(num_rows, 128, torch.bfloat16, chip))
    yield from _bookkeeping()


def tiles(chip: Chip) -> dict[str, Tile]:
    """The tile of one token and of 8,192 of a mixture with 8 of 128 experts."""
    return {
        "decode": product_tile(8, 128, torch.bfloat16, chip),
        "prompt": product_tile(8192 * 8, 128, torch.bfloat16, chip),
    }


def _products(size: str, tile: Tile) -> Iterator[Case]:
    order = dict.fromkeys(("choice_ptr", "begin_ptr", "tile_expert_ptr", "tile_row_ptr"), "*i32")
    blocks = {
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": tile.group_m,
        "UPCAST": False, "PRECISION": "ieee", "TOP_K": 8,
    }  # fmt: skip
    even = {"SWAP": tile.swap, "EVEN_N": True, "EVEN_K": True}
    ints = ("num_tiles_m", "num_outer", "num_inner", "x_stride", "w_stride_e", "w_stride_o", "out_stride")
    yield Case(
        f"gate_up/{size}", gate_up.gate_up_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "act_ptr", "both_ptr"), "*bf16") | order
        | dict.fromkeys(("num_tiles_m", "num_ff", "num_inner", "x_stride", "w_stride_e", "w_stride_o"), "i32"),
        blocks | even | {"KEEP": size == "prompt"}, tile.num_warps, tile.num_stages, multiplies=True,
    )  # fmt: skip
    yield Case(
        f"grouped_gemm/{size}", grouped_gemm.grouped_gemm_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), "*bf16") | order | dict.fromkeys(ints, "i32"),
        blocks | even | {"GATHER": False, "SCATTER": True, "w_stride_i": 1},
        tile.num_warps, tile.num_stages, multiplies=True,
    )  # fmt: skip
    if size == "decode":
        return
    yield Case(
        f"grouped_gemm/{size} transposed", grouped_gemm.grouped_gemm_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), "*bf16") | order
        | dict.fromkeys((*(i for i in ints if i != "w_stride_o"), "w_stride_i"), "i32"),
        blocks | even | {"GATHER": False, "SCATTER": True, "w_stride_o": 1},
        tile.num_warps, tile.num_stages, multiplies=True,
    )  # fmt: skip


def _packed(size: str, tile: Tile) -> Case:
    """Experts in 4 bits, groups of 64 with zero points."""
    ints = ("num_tiles_m", "num_outer", "num_inner", "row_bytes", "num_groups", "x_stride")
    return Case(
        f"packed/{size}", packed.packed_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "codes_ptr": "*u8", "scales_ptr": "*fp16", "zeros_ptr": "*u8"}
        | dict.fromkeys(("choice_ptr", "begin_ptr", "tile_expert_ptr", "tile_row_ptr"), "*i32")
        | dict.fromkeys(ints, "i32"),
        {"TOP_K": 8, "PAIRED": True, "UNROLL": max(1, tile.block_k // 64), "BITS": 4, "GROUP": 64,
         "HAS_ZEROS": True, "BLOCK_M": tile.block_m,
         "BLOCK_N": tile.block_n, "GROUP_M": tile.group_m, "UPCAST": False, "PRECISION": "ieee"},
        tile.num_warps, tile.num_stages, multiplies=True,
    )  # fmt: skip


def _bookkeeping() -> Iterator[Case]:
    tables = dict.fromkeys(
        ("choice_ptr", "begin_ptr", "tile_expert_ptr", "tile_row_ptr", "counts_ptr", "base_ptr", "total_ptr"),
        "*i32",
    )
    sizes = dict.fromkeys(("num_choices", "num_experts", "max_tiles", "num_chunks"), "i32")

    def of(kernel: Any, arguments: Mapping[str, str]) -> dict[str, str]:
        return {name: kind for name, kind in arguments.items() if name in kernel.arg_names}

    laid = {"EXPERTS": 128, "BLOCK_M": 16, "TILES": 16}
    known = tables | sizes | {"ids_ptr": "*i64"}
    yield Case(
        "align_few",
        align.align_few,
        of(align.align_few, known),
        laid | {"CHOICES": align.FEW_CHOICES},
    )
    chunk = {"CHUNK": align.CHUNK}
    yield Case(
        "count_chunks",
        align.count_chunks,
        of(align.count_chunks, known),
        chunk | {"EXPERTS": 128, "STEP": 32},
    )
    yield Case(
        "scan_chunks", align.scan_chunks, of(align.scan_chunks, known), laid | {"OWN": 8, "STEP": 256}, 8
    )
    yield Case("place_chunks", align.place_chunks, of(align.place_chunks, known), chunk | {"STEP": 32}, 8)
    backward = activation_backward.activation_backward_kernel
    yield Case(
        "activation_backward", backward,
        dict.fromkeys(("d_act_ptr", "both_ptr", "d_both_ptr", "scaled_ptr"), "*bf16")
        | {"weights_ptr": "*fp32", "dots_ptr": "*fp32"} | of(backward, known) | {"num_ff": "i32"},
        {"BOTH": True, "SCALED": True, "DOTS": True, "BLOCK_F": 1024},
    )  # fmt: skip
    yield Case(
        "gather", gather.gather_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "width": "i32", "x_stride": "i32"} | of(gather.gather_kernel, known),
        {"TOP_K": 8, "BLOCK_D": 2048},
    )  # fmt: skip
    yield Case(
        "combine", combine.combine_kernel,
        {"rows_ptr": "*bf16", "ids_ptr": "*i64", "weights_ptr": "*fp32", "out_ptr": "*bf16", "width": "i32"},
        {"TOP_K": 8, "WEIGHTED": True, "BLOCK_D": 1024},
    )  # fmt: skip

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
    yield Case(
        "topk", topk.topk_kernel, scores | sizes,
        {"TOP_K": 8, "SCORES": "sigmoid", "NORMALISED": True, "BY_LOGITS": False, "HAS_PRIOR": True, "HAS_BIAS": True,
         "GROUPS": 8, "TOP_GROUPS": 4, "TWO_BEST": True, "TOKENS": 4, "EXPERTS": 256, "PLACES": 8},
    )  # fmt: skip


def retiled(case: Case, tile: Tile) -> Case:
    """The same product with another tile, to compare what it would need."""
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    constants = {**case.constants, **blocks, "GROUP_M": tile.group_m}
    if "SWAP" in constants:
        constants["SWAP"] = tile.swap
    return replace(case, constants=constants, num_warps=tile.num_warps, num_stages=tile.num_stages)


def table() -> str:
    """Every case on every architecture as Markdown: registers, shared memory in KiB, matrix instructions."""
    found: dict[str, dict[str, Report]] = {}
    for arch in TARGETS:
        for case in cases(arch):
            found.setdefault(case.name, {})[arch] = compile_case(case, arch)
    lines = [f"| kernel | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for name, reports in found.items():
        cells = [_cell(reports[arch]) if arch in reports else "" for arch in TARGETS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(report: Report) -> str:
    multiplies = f", {report.matrix_instructions} MMA" if report.matrix_instructions else ""
    spilled = f", {report.spills} SPILLED" if report.spills else ""
    return f"{report.registers} regs, {report.shared_bytes / 1024:.0f} KiB{multiplies}{spilled}"


if __name__ == "__main__":
    print(table())  # noqa: T201
