"""One layer of experts alone, of one implementation, a line of JSON each way.

    python -m benchmarks.fronts.layer KIND THREADS

    {"shape": [D, F, E, k], "tokens": [1, 16]}   ->  {"errors": {"1": 0.004}}      weights are made, outputs checked
    {"run": 16}                                  ->  {"wall": 0.002, "cpu": 0.002, "active_bytes": 1e7}   a layer's mean

Kinds: "turnout 16", "turnout 8", "turnout 4", "grouped_mm" of transformers, "vllm". Equal seeds give everybody the same
weights, inputs and choices; the router is left out. So many copies of the layer go round, by the bytes that they are kept
in, that none is found in a cache; one token chooses other experts each time, until all were chosen.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
COPIES_BYTES = 500e6
# So many of the copies have weights of their own; those after them have theirs again, in memory of their own.
DISTINCT = 12


def forward_of(kind: str, gate_up: Tensor, down: Tensor, top_k: int) -> Forward:
    """The implementation over one layer's weights (E, 2F, D) and (E, D, F)."""
    if kind == "grouped_mm":
        return _grouped_mm(gate_up, down, top_k)
    if kind == "vllm":
        return _vllm(gate_up, down)
    from benchmarks.models import EIGHT, FOUR
    from moe_core.kernels.cpu.panels import bfloat16_panels, code_panels
    from moe_core.kernels.packing import quantise
    from moe_core.spec.quantisation import ExpertQuantSpec

    bits = _bits(kind)
    if bits == 16:
        return bfloat16_panels(gate_up, down).run
    spec = ExpertQuantSpec.parse(EIGHT if bits == 8 else FOUR)
    width, num_ff = down.shape[1:]
    return code_panels(quantise(gate_up, spec), quantise(down, spec), width, num_ff, spec).run


def _bits(kind: str) -> int:
    """Of a weight as this implementation keeps it."""
    return int(kind.split()[1]) if kind.startswith("turnout") else 16


def _grouped_mm(gate_up: Tensor, down: Tensor, top_k: int) -> Forward:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    num_experts, width, num_ff = down.shape
    config = MixtralConfig(
        hidden_size=width, intermediate_size=num_ff, num_local_experts=num_experts, num_experts_per_tok=top_k,
        hidden_act="silu",
    )  # fmt: skip
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        module = MixtralExperts(config)
    module.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=False)
    module.down_proj = torch.nn.Parameter(down, requires_grad=False)
    return lambda x, ids, weights: module(x, ids, weights.to(x.dtype))


def _vllm(gate_up: Tensor, down: Tensor) -> Forward:
    import vllm._custom_ops as ops

    isa = "vec"
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
        isa = "amx"
    first, second = ops.cpu_prepack_moe_weight(gate_up, isa), ops.cpu_prepack_moe_weight(down, isa)

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.empty_like(x)
        chosen = ids.to(torch.int32)
        ops.cpu_fused_moe(out, x, first, second, None, None, weights, chosen, "silu", isa, False)
        return out

    return run


def plain(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The layer in float32."""
    x, out = x.float(), torch.zeros(x.shape)
    for expert in range(down.shape[0]):
        token, place = torch.where(ids == expert)
        gate, up = (x[token] @ gate_up[expert].float().T).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        out.index_add_(0, token, inner @ down[expert].float().T * weights[token, place, None])
    return out


class Layers:
    """Copies of one layer with their inputs."""

    def __init__(self, kind: str, shape: list[int], tokens: list[int]) -> None:
        width, num_ff, num_experts, top_k = shape
        random = torch.Generator().manual_seed(0)
        self.expert_bytes = 3 * width * num_ff * 2
        stored_bytes = num_experts * self.expert_bytes * _bits(kind) / 16
        count = max(2, round(COPIES_BYTES / stored_bytes))
        self.forwards: list[Forward] = []
        # Of each number of tokens, the inputs of all copies for each of the times that go round.
        self.inputs: dict[int, list[list[tuple[Tensor, Tensor, Tensor]]]] = {
            number: [[] for _ in range(num_experts // top_k if number == 1 else 1)] for number in tokens
        }
        self.times = dict.fromkeys(tokens, 0)
        self.errors: dict[str, float] = {}
        made: list[tuple[Tensor, Tensor]] = []
        for copy in range(count):
            if copy < DISTINCT:
                gate_up = torch.randn(num_experts, 2 * num_ff, width, generator=random) * width**-0.5
                down = torch.randn(num_experts, width, num_ff, generator=random) * num_ff**-0.5
                made.append((gate_up.bfloat16(), down.bfloat16()))
            gate_up, down = made[copy % DISTINCT]
            forward = forward_of(kind, gate_up.clone(), down.clone(), top_k)
            self.forwards.append(forward)
            for number in tokens:
                scores = torch.randn(number, num_experts, generator=random).softmax(-1)
                ranked, order = scores.sort(-1, descending=True)
                x = torch.randn(number, width, generator=random).bfloat16()
                for turn, inputs in enumerate(self.inputs[number]):
                    chosen = slice(turn * top_k, (turn + 1) * top_k)
                    weights = ranked[:, chosen]
                    inputs.append((x, order[:, chosen].contiguous(), weights / weights.sum(-1, keepdim=True)))
                if copy == 0:
                    given = self.inputs[number][0][0]
                    right = plain(*given, gate_up, down)
                    self.errors[str(number)] = float((forward(*given).float() - right).norm() / right.norm())

    def warm(self) -> None:
        """Each choice of one token a few times: memory of a virtual machine is slow until it was read."""
        for number, inputs in self.inputs.items():
            for _ in range(3 * len(inputs) if len(inputs) > 1 else 0):
                self.run(number)

    def run(self, number: int) -> dict[str, float]:
        """Every copy once: seconds of one layer, and the bytes of the experts that it needed in 16 bits."""
        inputs = self.inputs[number][self.times[number] % len(self.inputs[number])]
        self.times[number] += 1
        wall, cpu = time.perf_counter(), time.process_time()
        for forward, given in zip(self.forwards, inputs, strict=True):
            forward(*given)
        count = len(self.forwards)
        used = sum(given[1].unique().numel() for given in inputs) / count
        return {
            "wall": (time.perf_counter() - wall) / count,
            "cpu": (time.process_time() - cpu) / count,
            "active_bytes": used * self.expert_bytes,
        }


def main() -> None:
    kind, threads = sys.argv[1], int(sys.argv[2])
    # What libraries print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    if kind.startswith("turnout"):
        from moe_core.kernels.cpu.native import library

        native = library()
        assert native is not None
        native.set_threads(threads)
    layers: Layers | None = None
    with torch.inference_mode():
        for line in sys.stdin:
            told: dict[str, Any] = json.loads(line)
            if "shape" in told:
                del layers
                layers = Layers(kind, told["shape"], told["tokens"])
                layers.warm()
                reply: dict[str, Any] = {"errors": layers.errors}
            else:
                assert layers is not None
                reply = layers.run(told["run"])
            answers.write(json.dumps(reply) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
