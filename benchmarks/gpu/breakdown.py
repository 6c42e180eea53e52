"""Where a layer's time goes: microseconds of each kernel, by the profiler.

usage: python -m benchmarks.gpu.breakdown CASE[,CASE...] [--training]   (CASE is shape:tokens)
"""

from __future__ import annotations

import sys
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.layer import SHAPES
from moe_core.kernels.triton.experts import swiglu_experts_triton

REPEATS = 10


def main() -> None:
    for case in sys.argv[1].split(","):
        name, tokens = case.split(":")
        _show(name, int(tokens), "--training" in sys.argv)


def _show(name: str, num_tokens: int, training: bool) -> None:
    shape = SHAPES[name]
    gate_up = torch.randn(
        shape.num_experts,
        2 * shape.num_ff,
        shape.width,
        device="cuda",
        dtype=torch.bfloat16,
        requires_grad=training,
    )
    down = torch.randn(
        shape.num_experts,
        shape.width,
        shape.num_ff,
        device="cuda",
        dtype=torch.bfloat16,
        requires_grad=training,
    )
    x = torch.randn(num_tokens, shape.width, device="cuda", dtype=torch.bfloat16, requires_grad=training)
    ids = torch.rand(num_tokens, shape.num_experts, device="cuda").argsort(-1)[:, : shape.top_k].contiguous()
    weights = torch.rand(num_tokens, shape.top_k, device="cuda", requires_grad=training)

    def run() -> None:
        for leaf in (gate_up, down, x, weights):
            leaf.grad = None
        out = swiglu_experts_triton(x, gate_up, down, ids, weights)
        if training:
            out.backward(torch.ones_like(out))

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()
    times: dict[str, float] = defaultdict(float)
    for event in seen.events():
        if str(event.device_type).endswith("CUDA"):
            times[event.name[:50]] += event.device_time_total / REPEATS
    line = "  ".join(
        f"{kernel} {us:.1f}" for kernel, us in sorted(times.items(), key=lambda item: -item[1]) if us > 0.3
    )
    print(f"{name} T={num_tokens}{' training' if training else ''}: {line}", flush=True)


if __name__ == "__main__":
    main()
