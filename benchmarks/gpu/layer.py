"""The MoE layer alone on a GPU: Turnout's Triton kernels, the torch path, and transformers' grouped_mm, cold weights.

usage: python -m benchmarks.gpu.layer OUT.json [--shapes a,b] [--tokens 1,16] [--rounds 5] [--training] [--vllm FUSED_MOE.PY]
Every implementation's output is compared with float64 first; one that is wrong is not timed. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.timing import milliseconds, roofline, spread
from benchmarks.gpu.vllm_kernel import layer_of
from moe_core.kernels.torch_grouped import swiglu_experts_torch
from moe_core.kernels.triton.experts import swiglu_experts_triton


@dataclass(frozen=True)
class Shape:
    width: int
    num_ff: int
    num_experts: int
    top_k: int

    def weight_bytes(self, num_experts: float) -> float:
        return num_experts * 3 * self.width * self.num_ff * 2

    def floor_ms(self, num_tokens: int, active: int, roof: dict[str, float]) -> float:
        """The larger of what must be read and what must be multiplied, at the rates measured in this run."""
        rows = num_tokens * self.top_k
        num_bytes = self.weight_bytes(active) + 2 * num_tokens * self.width * 2
        flops = 6 * rows * self.width * self.num_ff
        return max(num_bytes / roof["read_GBps"] / 1e6, flops / roof["bf16_TFLOPs"] / 1e9)


SHAPES = {
    "smollm-8x": Shape(576, 1536, 8, 2),
    "qwen3-64e": Shape(1024, 384, 64, 8),
    "qwen3-30b-a3b": Shape(2048, 768, 128, 8),
    "mixtral-8x7b": Shape(4096, 14336, 8, 2),
}
Call = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def grouped_mm(
    shape: Shape, gate_up: Tensor, down: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """transformers' own grouped experts on the same weights; None where they cannot be had."""
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        config = MixtralConfig(
            hidden_size=shape.width, intermediate_size=shape.num_ff, num_local_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k, hidden_act="silu",
        )  # fmt: skip
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            module = MixtralExperts(config)
        module.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=gate_up.requires_grad)
        module.down_proj = torch.nn.Parameter(down, requires_grad=down.requires_grad)
    except Exception as error:
        print("transformers' experts cannot be had:", repr(error)[:200])
        return None
    return lambda x, ids, weights: module(x, ids, weights.to(x.dtype))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="1,16,128,1024,8192")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--vllm", type=Path, help="vLLM's fused_moe.py, its configs beside it")
    options = parser.parse_args()
    torch.manual_seed(0)
    roof = roofline()
    print(torch.cuda.get_device_name(), torch.__version__, {k: round(v) for k, v in roof.items()}, flush=True)
    results = [
        measured(name, int(tokens), roof, options.rounds, options.training, options.vllm)
        for name in options.shapes.split(",")
        for tokens in options.tokens.split(",")
    ]
    options.out.write_text(
        json.dumps({"card": torch.cuda.get_device_name(), "roof": roof, "rows": results}, indent=1)
    )


def measured(
    name: str, num_tokens: int, roof: dict[str, float], rounds: int, training: bool, vllm: Path | None = None
) -> dict[str, object]:
    """One row: every implementation's times of one shape and number of tokens."""
    shape = SHAPES[name]
    one = shape.weight_bytes(shape.num_experts)
    # At least five times the cache of 50 MB, so that no call finds its weights there.
    copies = max(1, int(2.5e8 // one) + 1) if one < 2.5e8 else 1
    layers = [
        (
            torch.randn(shape.num_experts, 2 * shape.num_ff, shape.width, device="cuda", dtype=torch.bfloat16)
            * shape.width**-0.5,
            torch.randn(shape.num_experts, shape.width, shape.num_ff, device="cuda", dtype=torch.bfloat16)
            * shape.num_ff**-0.5,
        )
        for _ in range(copies)
    ]
    x = torch.randn(num_tokens, shape.width, device="cuda", dtype=torch.bfloat16)
    ids = torch.rand(num_tokens, shape.num_experts, device="cuda").argsort(-1)[:, : shape.top_k].contiguous()
    weights = torch.rand(num_tokens, shape.top_k, device="cuda")
    calls: dict[str, Callable[[int], Any]] = {
        "triton": lambda i: swiglu_experts_triton(x, *layers[i], ids, weights),
        "torch": lambda i: swiglu_experts_torch(x, *layers[i], ids, weights),
    }
    peers = [grouped_mm(shape, *layer) for layer in layers]
    if peers[0] is not None:
        calls["grouped_mm"] = lambda i: peers[i](x, ids, weights)
    origin = ""
    if vllm is not None:
        theirs, origin = layer_of(vllm, ids, weights, shape.num_experts, shape.num_ff, shape.width)
        calls["vllm"] = lambda i: theirs(x, *layers[i])
    with torch.no_grad():
        truth_rows = min(num_tokens, 8)
        truth = (
            swiglu_experts_torch(
                x[:truth_rows].double(),
                layers[0][0].double(),
                layers[0][1].double(),
                ids[:truth_rows],
                weights[:truth_rows].double(),
            )
            if one < 4e8
            else swiglu_experts_torch(
                x[:truth_rows].float(),
                layers[0][0].float(),
                layers[0][1].float(),
                ids[:truth_rows],
                weights[:truth_rows],
            )
        )
        row: dict[str, object] = {"shape": name, "tokens": num_tokens, "copies": copies, "vllm_tile": origin}
        active = int(ids.unique().numel())
        floor = shape.floor_ms(num_tokens, active, roof)
        row["floor_ms"], row["active_experts"] = floor, active
        sound = {}
        for kind, call in list(calls.items()):
            try:
                out = call(0)[:truth_rows]
                wrong = float((out.double() - truth).norm() / truth.norm())
            except Exception as error:
                row[kind] = f"failed: {error!r}"[:300]
                continue
            sound[kind] = wrong
            if not wrong < 2e-2:
                row[kind] = f"refused: wrong by {wrong:.1e}"
                del sound[kind]
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind in sound:
                for graph in (False, True):
                    if graph and kind == "torch":
                        continue
                    key = f"{kind}{'/graph' if graph else ''}"
                    try:
                        times.setdefault(key, []).append(milliseconds(calls[kind], copies, graph=graph))
                    except Exception as error:
                        row[key] = f"failed: {error!r}"[:200]
        row |= {key: spread(values) for key, values in times.items()}
        row["errors"] = sound
    line = "  ".join(
        f"{key} {spread(v)['median'] * 1e3:8.1f} ({floor / spread(v)['median']:4.0%})"
        for key, v in times.items()
    )
    print(f"{name:14} T={num_tokens:5} floor {floor * 1e3:8.1f} us | {line}", flush=True)
    for kind in calls:
        if isinstance(row.get(kind), str):
            print("   ", kind, row[kind])
    if training:
        row["training"] = _training(shape, num_tokens, rounds, floor)
    return row


def _training(shape: Shape, num_tokens: int, rounds: int, floor: float) -> dict[str, object]:
    """Forward and backward with all gradients."""
    gate_up = (
        (torch.randn(shape.num_experts, 2 * shape.num_ff, shape.width, device="cuda") * shape.width**-0.5)
        .bfloat16()
        .requires_grad_()
    )
    down = (
        (torch.randn(shape.num_experts, shape.width, shape.num_ff, device="cuda") * shape.num_ff**-0.5)
        .bfloat16()
        .requires_grad_()
    )
    x = torch.randn(num_tokens, shape.width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ids = torch.rand(num_tokens, shape.num_experts, device="cuda").argsort(-1)[:, : shape.top_k].contiguous()
    weights = torch.rand(num_tokens, shape.top_k, device="cuda", requires_grad=True)
    grad = torch.randn_like(x)
    peer = grouped_mm(shape, gate_up, down)

    def step(call: Callable[[], Tensor]) -> Callable[[int], None]:
        def run(_: int) -> None:
            for leaf in (x, gate_up, down, weights):
                leaf.grad = None
            call().backward(grad)

        return run

    calls = {
        "triton": step(lambda: swiglu_experts_triton(x, gate_up, down, ids, weights)),
        "torch": step(lambda: swiglu_experts_torch(x, gate_up, down, ids, weights)),
    }
    if peer is not None:

        def through_peer() -> Tensor:
            return peer(x, ids, weights)

        calls["grouped_mm"] = step(through_peer)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for kind, call in calls.items():
            try:
                times.setdefault(kind, []).append(milliseconds(call, 1, budget_ms=40))
            except Exception as error:
                print("   training", kind, repr(error)[:200])
    line = "  ".join(
        f"{k} {spread(v)['median'] * 1e3:8.1f} ({3 * floor / spread(v)['median']:4.0%})"
        for k, v in times.items()
    )
    print(f"{'':14} forward and backward, floor {3 * floor * 1e3:8.1f} us | {line}", flush=True)
    return {kind: spread(values) for kind, values in times.items()}


if __name__ == "__main__":
    main()
