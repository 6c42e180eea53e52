"""Packed experts on a GPU against bfloat16 ones: microseconds of a layer in 4 and 8 bits.

usage: python -m benchmarks.gpu.packed CASE[,CASE...]   (CASE is shape:tokens)
"""

from __future__ import annotations

import sys

import torch

from benchmarks.gpu.layer import SHAPES
from benchmarks.gpu.timing import milliseconds
from moe_core.kernels.packing import Packed
from moe_core.kernels.triton.experts import swiglu_experts_triton
from moe_core.kernels.triton.packed import packed_swiglu_experts
from moe_core.spec.quantisation import ExpertQuantSpec


def random_packed(num_experts: int, rows: int, width: int, spec: ExpertQuantSpec) -> Packed:
    codes = torch.randint(
        0, 256, (num_experts, rows, width * spec.bits // 8), dtype=torch.uint8, device="cuda"
    )
    scales = torch.rand(num_experts, rows, width // spec.group_size, device="cuda").half() * 0.01
    return Packed(codes, scales, None)


def main() -> None:
    for case in sys.argv[1].split(","):
        name, tokens = case.split(":")
        shape, num_tokens = SHAPES[name], int(tokens)
        x = torch.randn(num_tokens, shape.width, device="cuda", dtype=torch.bfloat16)
        ids = (
            torch.rand(num_tokens, shape.num_experts, device="cuda")
            .argsort(-1)[:, : shape.top_k]
            .contiguous()
        )
        weights = torch.rand(num_tokens, shape.top_k, device="cuda")
        line = f"{name} T={num_tokens}:"
        for bits, group in ((4, 64), (4, 128), (8, 128)):
            spec = ExpertQuantSpec.parse({"bits": bits, "group_size": group, "symmetric": True})
            copies = 4
            layers = [
                (
                    random_packed(shape.num_experts, 2 * shape.num_ff, shape.width, spec),
                    random_packed(shape.num_experts, shape.width, shape.num_ff, spec),
                )
                for _ in range(copies)
            ]
            ms = milliseconds(
                lambda i, held=layers, s=spec: packed_swiglu_experts(
                    x, held[i][0], held[i][1], shape.num_ff, s, ids, weights
                ),
                copies,
                graph=True,
            )
            line += f"  {bits} bits/{group} {ms * 1e3:.1f}"
            del layers
        copies = 4 if shape.weight_bytes(shape.num_experts) < 2e9 else 1
        wide = [
            (
                torch.randn(
                    shape.num_experts, 2 * shape.num_ff, shape.width, device="cuda", dtype=torch.bfloat16
                ),
                torch.randn(
                    shape.num_experts, shape.width, shape.num_ff, device="cuda", dtype=torch.bfloat16
                ),
            )
            for _ in range(copies)
        ]
        ms = milliseconds(
            lambda i, held=wide: swiglu_experts_triton(x, held[i][0], held[i][1], ids, weights),
            copies,
            graph=True,
        )
        print(f"{line}  bfloat16 {ms * 1e3:.1f}", flush=True)
        del wide


if __name__ == "__main__":
    main()
