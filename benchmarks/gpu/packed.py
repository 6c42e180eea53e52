"""Packed experts on a GPU against bfloat16 ones: microseconds of a layer in 4 and 8 bits, and in mxfp4; cold weights.

usage: python -m benchmarks.gpu.packed CASE[,CASE...] [OUT.json] [--rounds 3]   (CASE is shape:tokens)
Every output is compared with the widened weights' first; one that is wrong is not timed. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.layer import SHAPES, Shape
from benchmarks.gpu.timing import milliseconds, roofline, spread
from moe_core.kernels.mxfp4 import Mxfp4, dequantise_mxfp4
from moe_core.kernels.packing import Packed, dequantise
from moe_core.kernels.torch_grouped import swiglu_experts_torch
from moe_core.kernels.triton.experts import swiglu_experts_triton
from moe_core.kernels.triton.mxfp4 import mxfp4_experts
from moe_core.kernels.triton.packed import packed_swiglu_experts
from moe_core.spec.quantisation import ExpertQuantSpec

SPECS = {
    "4 bits/32": ExpertQuantSpec(bits=4, group_size=32),
    "4 bits/64": ExpertQuantSpec(bits=4, group_size=64),
    "4 bits/128": ExpertQuantSpec(bits=4, group_size=128),
    "8 bits/64": ExpertQuantSpec(bits=8, group_size=64),
    "8 bits/128": ExpertQuantSpec(bits=8, group_size=128),
    "8 bits/768": ExpertQuantSpec(bits=8, group_size=768),
}
TOLERANCE = 2e-2
Weights = tuple[Any, Any]


def random_packed(num_experts: int, rows: int, width: int, spec: ExpertQuantSpec) -> Packed:
    """Codes and scales of a weight of about unit gain."""
    shape, groups = (num_experts, rows, width * spec.bits // 8), -(-width // spec.group_size)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    size = 2.0 ** (1 - spec.bits) * width**-0.5
    return Packed(codes, (torch.rand(num_experts, rows, groups, device="cuda") * size).half(), None)


def random_mxfp4(num_experts: int, rows: int, width: int) -> Mxfp4:
    """The same in mxfp4: two codes a byte, an exponent for 32."""
    codes = torch.randint(0, 256, (num_experts, rows, width // 2), dtype=torch.uint8, device="cuda")
    return Mxfp4(codes, torch.randint(118, 121, (num_experts, rows, width // 32), dtype=torch.uint8, device="cuda"))


def both(shape: Shape, make: Callable[[int, int, int], Any]) -> Weights:
    """gate_up and down."""
    return make(shape.num_experts, 2 * shape.num_ff, shape.width), make(shape.num_experts, shape.width, shape.num_ff)


def wrong(found: Tensor, floats: tuple[Tensor, Tensor], x: Tensor, ids: Tensor, weights: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖ of the first rows."""
    num = min(4, x.shape[0])
    gate_up, down = (weight.float() for weight in floats)
    truth = swiglu_experts_torch(x[:num].float(), gate_up, down, ids[:num], weights[:num])
    return float((found[:num].float() - truth).norm() / truth.norm())


def measured(name: str, num_tokens: int, rounds: int) -> dict[str, Any]:
    """One case: every form's times in turn."""
    shape = SHAPES[name]
    x = torch.randn(num_tokens, shape.width, device="cuda", dtype=torch.bfloat16)
    ids = torch.rand(num_tokens, shape.num_experts, device="cuda").argsort(-1)[:, : shape.top_k].contiguous()
    weights = torch.rand(num_tokens, shape.top_k, device="cuda")
    copies = 4 if shape.weight_bytes(shape.num_experts) < 2e9 else 1
    calls: dict[str, Callable[[int], Tensor]] = {}
    row: dict[str, Any] = {"shape": name, "tokens": num_tokens}

    def offer(form: str, held: list[Weights], floats: tuple[Tensor, Tensor], call: Callable[[Weights], Tensor]) -> None:
        off = wrong(call(held[0]), floats, x, ids, weights)
        if off < TOLERANCE:
            calls[form] = lambda i: call(held[i])
        else:
            row[form] = f"refused: wrong by {off:.1e}"

    for form, spec in SPECS.items():
        held = [both(shape, lambda e, o, i, spec=spec: random_packed(e, o, i, spec)) for _ in range(copies)]
        gate_up, down = (dequantise(w, i, spec, torch.bfloat16) for w, i in zip(held[0], (shape.width, shape.num_ff), strict=True))

        def from_codes(w: Weights, spec: ExpertQuantSpec = spec) -> Tensor:
            return packed_swiglu_experts(x, w[0], w[1], shape.num_ff, spec, ids, weights)

        offer(form, held, (gate_up, down), from_codes)
    held = [both(shape, random_mxfp4) for _ in range(copies)]
    gate_up, down = (dequantise_mxfp4(w, torch.bfloat16) for w in held[0])
    offer("mxfp4", held, (gate_up, down), lambda w: mxfp4_experts(x, w[0], w[1], ids, weights))
    wide = [
        both(shape, lambda e, o, i: torch.randn(e, o, i, device="cuda", dtype=torch.bfloat16) * i**-0.5) for _ in range(copies)
    ]
    offer("bfloat16", wide, wide[0], lambda w: swiglu_experts_triton(x, w[0], w[1], ids, weights))
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for form, call in calls.items():
            times.setdefault(form, []).append(milliseconds(call, copies, graph=True))
    row |= {form: spread(values) for form, values in times.items()}
    print(f"{name} T={num_tokens}: " + "  ".join(f"{form} {spread(v)['median'] * 1e3:.1f}" for form, v in times.items()), flush=True)
    print(*(f"   {form}: {said}" for form, said in row.items() if isinstance(said, str) and form != "shape"), sep="\n", flush=True)
    return row


def main() -> None:
    """Measure the cases, print them, and write them where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    roof = roofline()
    rows = [measured(name, int(tokens), options.rounds) for name, tokens in (case.split(":") for case in options.cases.split(","))]
    if options.out:
        options.out.write_text(json.dumps({"card": torch.cuda.get_device_name(), "roof": roof, "rows": rows}, indent=1))


if __name__ == "__main__":
    with torch.no_grad():
        main()
