"""The serving engine on a GPU: output tokens a second at 1, 8 and 32 requests, and how much of a step is the host's.

usage: python -m benchmarks.gpu.engine OUT.json [--layers 12] [--kernels triton,torch] [--profile]
A random model in the shape of Qwen3-30B-A3B, cut to a few layers: what is measured does not depend on what it says.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch

from moe_core.engine.engine import Engine
from moe_core.engine.sequence import SamplingParams
from moe_core.model.decoder import Decoder
from moe_core.spec import ModelSpec, ServeSpec


class NoText:
    def step(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def model_of(layers: int) -> Decoder:
    spec = ModelSpec.parse({
        "family": "qwen3_moe", "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "max_position_embeddings": 4096,
        "moe": {"moe_layers": list(range(layers)), "num_experts": 128, "top_k": 8, "moe_intermediate_size": 768},
    })  # fmt: skip
    with torch.device("cuda"), torch.no_grad():
        model = Decoder(spec, torch.bfloat16)
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
    return model.eval()


def served(
    model: Decoder, num_requests: int, num_prompt: int = 128, num_output: int = 64
) -> dict[str, float]:
    spec = ServeSpec(
        model_dir=Path("model"), socket_path=Path("e.sock"), max_batch_tokens=2048, max_chunk_tokens=1024,
        max_sequences=64, kv_tokens=65_536, max_wait_s=600.0,
    )  # fmt: skip
    engine = Engine(spec, model)
    chance = random.Random(num_requests)
    for _ in range(num_requests):
        ids = [chance.randrange(32_000) for _ in range(num_prompt)]
        engine.submit(ids, SamplingParams(max_tokens=num_output, ignore_eos=True), NoText())
    began, first, steps = time.perf_counter(), 0.0, []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - start)
        first = first or time.perf_counter() - began
    total = time.perf_counter() - began
    decode = sorted(steps)[len(steps) // 2]
    return {
        "requests": num_requests, "first_token_ms": first * 1e3, "step_ms": decode * 1e3,
        "decode_tokens_per_s": num_requests / decode, "output_tokens_per_s": num_requests * num_output / total,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--kernels", default="triton,torch")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    model = model_of(options.layers)
    results = []
    for kernel in options.kernels.split(","):
        for layer in model.moe_layers():
            layer.experts.kernel = kernel
        served(model, 2, 32, 8)
        for num_requests in (1, 8, 32):
            row = {"kernel": kernel, **served(model, num_requests)}
            results.append(row)
            print(
                "  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                flush=True,
            )
    if options.profile:
        for layer in model.moe_layers():
            layer.experts.kernel = "triton"
        _profile(model)
    options.out.write_text(json.dumps({"card": torch.cuda.get_device_name(), "rows": results}, indent=1))


def _profile(model: Decoder) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        served(model, 8, 32, 16)
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=50))
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=50))


if __name__ == "__main__":
    main()
