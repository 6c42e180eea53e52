"""A training step against transformers: forward, backward and AdamW, step by step in turn, judged by loss and gradients.

    ./turnout bench training [--layers 6] [--rounds 5] [--threads 1] [--only full router small]

full     every weight of `smol-moe-8x` (of its first layers, for memory), bfloat16 products, float32 masters
router   only the gates of the same model
small    a mixture of 14.7 M weights from scratch in float32; small-bf16 the same in bfloat16, float32 masters
Each batch is new to both; nothing is kept from one step to the next but the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import moe_core
from benchmarks.models import model_dir
from moe_core.checkpoint.store import load, read_spec
from moe_core.model.attention import DenseCausal
from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.routers import Routing
from moe_core.routers.losses import balance_loss
from moe_core.spec import ModelSpec
from moe_core.training.losses import mean_head_loss
from moe_core.training.optimiser import MasterAdamW

RATE, AUX = 1e-4, 0.001
LEAST_COSINE = 0.9999
# Of the loss of the first step. In 16 bits a loss of 37 lies up to 0.05 from that in float32, whoever computes it.
LOSS_APART = {"float32": 1e-5, "bfloat16": 1e-3}


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained, in what precision, on how much."""

    name: str
    precision: Literal["float32", "bfloat16"]
    batch: int
    sequence: int
    learns: Callable[[str], bool]


def _everything(name: str) -> bool:
    return True


def _gates(name: str) -> bool:
    return name.endswith(("router.weight", "mlp.gate.weight"))


CASES = {
    "full": Case("full", "bfloat16", 4, 256, _everything),
    "router": Case("router", "bfloat16", 4, 256, _gates),
    "small": Case("small", "float32", 8, 256, _everything),
    # Products in 16 bits, masters in 32: the peer is still the quicker of its float32 and its autocast.
    "small-bf16": Case("small-bf16", "bfloat16", 8, 256, _everything),
}


class Turnout:
    """Our decoder; weights in the dtype of the products, float32 masters beside them where that is 16 bits."""

    def __init__(self, path: Path, case: Case) -> None:
        self.model: Decoder = load(path, case.precision).requires_grad_(False)
        self.learns = {n: p.requires_grad_() for n, p in self.model.named_parameters() if case.learns(n)}
        if case.precision == "float32":
            self.adamw = torch.optim.AdamW(list(self.learns.values()), lr=RATE, fused=True, weight_decay=0.0)
        else:
            self.masters = MasterAdamW(self.learns)
        self.case = case

    def step(self, ids_BS: Tensor) -> float:
        """Forward, backward, AdamW; the loss of the language model."""
        language, total = self.losses(ids_BS)
        gradients = torch.autograd.grad(total, list(self.learns.values()))
        if self.case.precision == "float32":
            for weight, gradient in zip(self.learns.values(), gradients, strict=True):
                weight.grad = gradient
            self.adamw.step()
        else:
            self.masters.step(gradients, RATE, float("inf"), clip_each=False)
        return float(language.detach())

    def losses(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The language model's loss, and what is differentiated."""
        routings: list[Routing] = []
        context = RoutingContext(observe=lambda _, routing: routings.append(routing))
        batch, sequence = ids_BS.shape
        positions_T = torch.arange(sequence).repeat(batch)
        hidden_TD = self.model.hidden(ids_BS.reshape(-1), positions_T, DenseCausal(batch, sequence), context)
        before_BSD = hidden_TD.view(batch, sequence, -1)[:, :-1]
        language = mean_head_loss(
            before_BSD.flatten(0, 1), self.model.head_weight_VD, ids_BS[:, 1:].flatten()
        )
        real_T = torch.ones(batch * sequence, dtype=torch.bool)
        balance = torch.stack([balance_loss(routing, real_T) for routing in routings]).mean()
        return language, language + AUX * balance

    def gate_gradients(self, ids_BS: Tensor) -> Tensor:
        """Those of every gate by the loss of the language model, in one row."""
        return _row_of(
            torch.autograd.grad(self.losses(ids_BS)[0], [self.learns[n] for n in _gate_names(self.learns)])
        )


class Transformers:
    """Hugging Face's model, its weights in float32 under autocast where products are in 16 bits."""

    def __init__(self, path: Path, case: Case, experts: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, experts_implementation=experts, attn_implementation="sdpa"
        ).train()
        self.model.config.output_router_logits = True
        self.model.router_aux_loss_coef = AUX
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(case.learns(name))
        self.learns = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.adamw = torch.optim.AdamW(list(self.learns.values()), lr=RATE, fused=True, weight_decay=0.0)
        self.case = case

    def step(self, ids_BS: Tensor) -> float:
        out = self._out(ids_BS)
        out.loss.backward()
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return float(out.loss - AUX * out.aux_loss)

    def _out(self, ids_BS: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.case.precision != "float32"):
            return self.model(input_ids=ids_BS, labels=ids_BS, use_cache=False)

    def gate_gradients(self, ids_BS: Tensor) -> Tensor:
        """Those of every gate by the loss of the language model, in one row."""
        out = self._out(ids_BS)
        gates = [self.learns[n] for n in _gate_names(self.learns)]
        return _row_of(torch.autograd.grad(out.loss - AUX * out.aux_loss, gates))


Side = Turnout | Transformers


def _gate_names(learns: dict[str, Any]) -> list[str]:
    return [name for name in learns if _gates(name)]


def _row_of(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten().float() for gradient in gradients])


def _batch(case: Case, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocab, (case.batch, case.sequence), generator=generator)


def first_layers(home: Path, layers: int) -> Path:
    """The first layers of `smol-moe-8x`: all of them ask 19 GB of transformers."""
    path = home / f"smol-moe-8x-{layers}-layers"
    if path.exists():
        return path
    whole = load(model_dir("smol-moe-8x", home), "bfloat16")
    assert whole.spec.moe is not None
    moe = whole.spec.moe.model_copy(update={"moe_layers": tuple(range(layers))})
    part = Decoder(whole.spec.model_copy(update={"num_hidden_layers": layers, "moe": moe}), torch.bfloat16)
    kept = part.state_dict().keys()
    part.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in kept})
    moe_core.save(part, path, dtype="bfloat16")
    return path


def small(home: Path) -> Path:
    """The mixture from scratch: 4 layers of 8 experts, width 256."""
    path = home / "small-mixture"
    if not path.exists():
        spec = ModelSpec.parse(
            {
                "family": "mixtral", "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512,
                "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64,
                "max_position_embeddings": 2048, "tie_word_embeddings": True,
                "moe": {"moe_layers": [0, 1, 2, 3], "num_experts": 8, "top_k": 2, "moe_intermediate_size": 512},
            }
        )  # fmt: skip
        moe_core.save(random_decoder(spec, seed=0, std=0.02), path)
    return path


def judge(path: Path, case: Case, experts: list[str]) -> dict[str, float]:
    """Cosine of the gates' gradients in float32 to those of transformers; raises RuntimeError for too little.

    In 16 bits the gates of upcycled experts, which hardly differ, have gradients of rounding.
    """
    exact = replace(case, precision="float32", batch=1)
    ids_BS = _batch(exact, read_spec(path).vocab_size, 7)
    ours = Turnout(path, exact).gate_gradients(ids_BS)
    found = {}
    for name in experts:
        theirs = Transformers(path, exact, name).gate_gradients(ids_BS)
        found[name] = float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
        if not found[name] >= LEAST_COSINE:
            raise RuntimeError(
                f"{case.name}: gradients of the gates agree to {found[name]:.6f}, asked is {LEAST_COSINE}"
            )
    return found


def compare(case: Case, path: Path, experts: list[str], rounds: int) -> dict[str, Any]:
    """Steps in turn; seconds of processor and wall, and the ratio of medians to the best way of transformers."""
    vocab = read_spec(path).vocab_size
    judged = judge(path, case, experts)
    sides: dict[str, Side] = {"turnout": Turnout(path, case)}
    precisions = {case.precision, "float32"} if case.name.startswith("small") else {case.precision}
    for precision in sorted(precisions):
        there = replace(case, precision=precision)
        sides |= {f"transformers {precision} {name}": Transformers(path, there, name) for name in experts}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        ids_BS = _batch(case, vocab, 100 + number)
        for name, side in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            losses[name].append(side.step(ids_BS))
            times[name].append((time.process_time() - processor, time.perf_counter() - wall))
    first = {name: series[0] for name, series in losses.items()}
    apart = max(first.values()) - min(first.values())
    if not apart <= LOSS_APART[case.precision] * min(first.values()):
        raise RuntimeError(f"{case.name}: losses of the first step differ: {first}")
    # The first step of each makes its buffers.
    medians = {n: statistics.median(t[0] for t in series[1:]) for n, series in times.items()}
    best = min(value for name, value in medians.items() if name != "turnout")
    return {
        "judged": judged, "losses": losses, "processor_s": medians,
        "times": times, "ratio": best / medians["turnout"],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("var/bench"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--experts", nargs="+", default=["eager", "grouped_mm"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for name in options.only:
        path = small(options.home) if name.startswith("small") else first_layers(options.home, options.layers)
        results[name] = compare(CASES[name], path, options.experts, options.rounds)
        print(
            f"{name}: {results[name]['ratio']:.2f} times as fast as the best of transformers", file=sys.stderr
        )
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
