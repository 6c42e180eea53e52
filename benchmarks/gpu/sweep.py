"""Which tile is best where: times of the two products of a layer for a list of tiles, against the rule's own choice.

usage: python -m benchmarks.gpu.sweep OUT.json CASE[,CASE...]   (CASE is shape:tokens)
Kernels are compiled by many processes first; then one process times them.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.layer import SHAPES
from benchmarks.gpu.timing import milliseconds
from moe_core.kernels.triton.align import align
from moe_core.kernels.triton.chip import Chip, chip_of
from moe_core.kernels.triton.gate_up import gate_up_swiglu
from moe_core.kernels.triton.grouped_gemm import grouped_gemm
from moe_core.kernels.triton.tiles import Tile, product_tile, rows_per_expert
from moe_core.kernels.triton.weight_gradient import weight_gradient


def candidates(rows: float) -> list[Tile]:
    """Tiles worth a try for so many rows of an expert."""
    if rows <= 40:
        block_m = 16 if rows <= 16 else 32
        small = [
            Tile(block_m, n, k, w, s, swap=True, group_m=1)
            for n, k, w, s in product((64, 128), (64, 128, 256), (4,), (3, 5))
        ]
        small += [
            Tile(block_m, 32, k, 4, s, swap=swap, group_m=1)
            for k, s, swap in ((128, 4, False), (256, 4, False))
        ]
        small += [
            Tile(32, 64, 128, 4, 4, swap=True),
            Tile(32, 64, 64, 4, 5, swap=True),
            Tile(32, 128, 64, 4, 4, swap=True),
            Tile(64, 128, 64, 4, 4),
            Tile(64, 64, 64, 4, 5),
            Tile(64, 128, 128, 8, 4, group_m=1), Tile(64, 128, 128, 8, 4), Tile(64, 128, 128, 4, 3), Tile(64, 128, 64, 4, 4, group_m=1),
            Tile(64, 64, 128, 4, 4), Tile(64, 64, 128, 4, 4, swap=True), Tile(64, 128, 128, 8, 4, swap=True), Tile(64, 256, 64, 8, 4),
            Tile(block_m, 128, 128, 4, 3, swap=True), Tile(block_m, 128, 128, 4, 2, swap=True, group_m=1),
            Tile(block_m, 64, 128, 4, 4, swap=False, group_m=1),
            Tile(block_m, 128, 128, 8, 4, swap=True, group_m=1),
        ]
        return small
    if rows <= 200:
        return [
            Tile(64, 128, 64, 4, 4), Tile(64, 256, 64, 8, 4), Tile(64, 128, 64, 4, 6), Tile(64, 128, 128, 4, 3), Tile(64, 64, 128, 4, 4),
            Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 3), Tile(128, 256, 64, 8, 4), Tile(128, 256, 64, 8, 4, group_m=1), Tile(32, 128, 128, 4, 4, swap=True), Tile(32, 128, 64, 4, 6, swap=True),
            Tile(64, 128, 64, 4, 4, swap=True), Tile(128, 128, 64, 4, 4), Tile(64, 256, 64, 4, 4),
        ]  # fmt: skip
    return [
        Tile(128, 256, 64, 8, 3), Tile(128, 256, 64, 8, 4), Tile(128, 256, 64, 8, 4, group_m=16), Tile(128, 256, 64, 8, 4, group_m=4),
        Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 4, 4), Tile(128, 128, 64, 4, 3), Tile(64, 256, 64, 4, 4), Tile(64, 256, 64, 8, 4),
        Tile(256, 128, 64, 8, 3), Tile(256, 128, 64, 8, 4), Tile(128, 256, 32, 8, 5), Tile(128, 128, 128, 8, 3), Tile(128, 256, 64, 4, 4),
    ]  # fmt: skip


def compile_one(job: tuple[str, Tile]) -> str | None:
    name, tile = job
    shape = SHAPES[name]
    x = torch.randn(4, shape.width, device="cuda", dtype=torch.bfloat16)
    gate_up = torch.zeros(1, 2 * shape.num_ff, shape.width, device="cuda", dtype=torch.bfloat16)
    down = torch.zeros(1, shape.width, shape.num_ff, device="cuda", dtype=torch.bfloat16)
    ids = torch.zeros(4, shape.top_k, device="cuda", dtype=torch.int64)
    try:
        rows = align(ids, 1, tile.block_m)
        act, _ = gate_up_swiglu(x, gate_up, rows, tile, keep=False)
        grouped_gemm(act, down, rows, tile, gather=False, scatter=True)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{name} {tile}: {error!r}"[:200]
    return None


WIDE = [
    Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 4, 4), Tile(128, 256, 64, 8, 3), Tile(128, 256, 64, 8, 4),
    Tile(256, 128, 64, 8, 3), Tile(128, 256, 32, 8, 5),
]  # fmt: skip


def weight_gradients(name: str, num_tokens: int) -> None:
    """Both gradients of a layer's weights."""
    shape = SHAPES[name]
    rows = num_tokens * shape.top_k
    ids = torch.rand(num_tokens, shape.num_experts, device="cuda").argsort(-1)[:, : shape.top_k].contiguous()
    order = align(ids, shape.num_experts, 128)
    wide, narrow = (
        torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
        for width in (2 * shape.num_ff, shape.width)
    )
    half = wide[:, : shape.num_ff].contiguous()
    print(f"{name} T={num_tokens} weight gradients (gate_up, down), us:")
    for tile in WIDE:
        try:
            first = milliseconds(lambda _, t=tile: weight_gradient(wide, narrow, order, t), 1)
            second = milliseconds(lambda _, t=tile: weight_gradient(narrow, half, order, t), 1)
            print(f"    {first * 1e3:9.1f} {second * 1e3:9.1f}   {str(tile)[5:-1]}", flush=True)
        except Exception as error:
            print(tile, repr(error)[:150])


def main() -> None:
    if sys.argv[1] == "--weights":
        for case in sys.argv[2].split(","):
            weight_gradients(case.split(":")[0], int(case.split(":")[1]))
        return
    out, cases = Path(sys.argv[1]), [case.split(":") for case in sys.argv[2].split(",")]
    jobs = set()
    for name, tokens in cases:
        shape = SHAPES[name]
        for tile in candidates(rows_per_expert(int(tokens) * shape.top_k, shape.num_experts)):
            jobs.add((name, tile.fitted(Chip("sm90", 132), 2)))
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        for said in pool.map(compile_one, sorted(jobs, key=str)):
            if said:
                print(said, flush=True)
    results = [timed(name, int(tokens)) for name, tokens in cases]
    out.write_text(json.dumps(results, indent=1))


def timed(name: str, num_tokens: int) -> dict[str, Any]:
    shape = SHAPES[name]
    torch.manual_seed(0)
    one = shape.weight_bytes(shape.num_experts)
    copies = int(2.5e8 // one) + 1 if one < 2.5e8 else 1
    gate_up = [
        torch.randn(shape.num_experts, 2 * shape.num_ff, shape.width, device="cuda", dtype=torch.bfloat16)
        for _ in range(copies)
    ]
    down = [
        torch.randn(shape.num_experts, shape.width, shape.num_ff, device="cuda", dtype=torch.bfloat16)
        for _ in range(copies)
    ]
    x = torch.randn(num_tokens, shape.width, device="cuda", dtype=torch.bfloat16)
    ids = torch.rand(num_tokens, shape.num_experts, device="cuda").argsort(-1)[:, : shape.top_k].contiguous()
    chip = chip_of(x.device)
    ruled = product_tile(ids.numel(), shape.num_experts, x.dtype, chip)
    found: list[dict[str, Any]] = []
    tiles = [ruled, *(t.fitted(chip, 2) for t in candidates(rows_per_expert(ids.numel(), shape.num_experts)))]
    for tile in dict.fromkeys(tiles):
        try:
            rows = align(ids, shape.num_experts, tile.block_m)
            act, _ = gate_up_swiglu(x, gate_up[0], rows, tile, keep=False)
            first = milliseconds(
                lambda i, r=rows, t=tile: gate_up_swiglu(x, gate_up[i], r, t, keep=False),
                copies,
                budget_ms=15,
                graph=True,
            )
            second = milliseconds(
                lambda i, r=rows, t=tile, a=act: grouped_gemm(a, down[i], r, t, gather=False, scatter=True),
                copies,
                budget_ms=15,
                graph=True,
            )
        except Exception as error:
            print(name, num_tokens, tile, repr(error)[:150])
            continue
        found.append(
            {"tile": str(tile), "ruled": tile == ruled, "gate_up_us": first * 1e3, "down_us": second * 1e3}
        )
    for key in ("gate_up_us", "down_us"):
        print(f"{name} T={num_tokens} {key}:")
        ordered = sorted(found, key=lambda row: row[key])
        for row in [r for i, r in enumerate(ordered) if i < 4 or r["ruled"]]:
            print(f"    {row[key]:9.1f} {'*' if row['ruled'] else ' '} {row['tile'][5:-1]}", flush=True)
    return {"shape": name, "tokens": num_tokens, "tiles": found}


if __name__ == "__main__":
    main()
