"""How even gates are that promise it: MaxVio of `quantile` and `sinkhorn` on drawn logits, and of hash tables on a text.

`PYTHONPATH=. python -m benchmarks.evenness loads` draws logits, spread · N(0, 1) a token and expert plus skew · N(0, 1) an
expert, and lets each gate decide on them as it does while training. `… evenness words TOKENIZER FILE…` joins files in the
order given, counts tokens in the first half, and sends the second half through tables. Each figure is the least and the
most of all seeds. Shapes: T tokens, E experts, K top_k, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from moe_core.routers import GateCall, decide
from moe_core.routers.hash import balanced_table, random_table, rank_counts
from moe_core.spec import GateSpec, MoeSpec
from moe_core.spec.gate import Quantile, Sinkhorn, SoftmaxTopk

# Experts, top_k, spread of a token's logits, skew of an expert's.
LOADS = ((8, 2, 1.0, 1.0), (64, 8, 5.0, 5.0), (64, 8, 20.0, 5.0), (256, 8, 8.0, 8.0))
GATES: dict[str, GateSpec] = {"plain": SoftmaxTopk(), "quantile": Quantile(), "sinkhorn": Sinkhorn()}
NUM_EXPERTS, TOP_K = 8, 2


def max_vio(expert_ids: Tensor, num_experts: int) -> float:
    """Load of the busiest expert over the mean, less one; ids of any shape, none of them -1."""
    load_E = torch.bincount(expert_ids.flatten(), minlength=num_experts).double()
    return float(load_E.max() / load_E.mean() - 1.0)


def drawn_max_vio(
    gate: GateSpec, num_experts: int, top_k: int, spread: float, skew: float, tokens: int, seed: int
) -> float:
    """MaxVio of one batch of drawn logits, which come to the gate as a prior over a map of zeros."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = spread * torch.randn(tokens, num_experts, generator=generator)
    logits_TE += skew * torch.randn(num_experts, generator=generator)
    moe = MoeSpec(
        moe_layers=(0,), num_experts=num_experts, top_k=top_k, moe_intermediate_size=4, gate=gate
    )  # fmt: skip
    tensors = {"weight": torch.zeros(num_experts, 1), "selection_bias": torch.zeros(num_experts)}
    call = GateCall(torch.ones(tokens, 1), top_k, bias_TE=logits_TE, training=True, rng=generator)
    return max_vio(decide(moe, tensors, call).expert_ids_TK, num_experts)


def tables_max_vio(ids: Sequence[int], vocab_size: int, seed: int) -> dict[str, float]:
    """MaxVio on the second half of a text, of tables at random, by rank, and by the counts of its first half."""
    half = len(ids) // 2
    counted, read_T = torch.tensor(ids[:half]), torch.tensor(ids[half:])
    counts_V = torch.bincount(counted, minlength=vocab_size)
    tables = {
        "random": random_table(vocab_size, NUM_EXPERTS, TOP_K, seed),
        "by rank": balanced_table(rank_counts(vocab_size), NUM_EXPERTS, TOP_K, seed),
        "counted": balanced_table(counts_V, NUM_EXPERTS, TOP_K, seed),
    }
    return {name: max_vio(table_VK[read_T], NUM_EXPERTS) for name, table_VK in tables.items()}


def main() -> None:
    """Print a line for each gate or table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("loads").add_argument("--tokens", type=int, default=4096)
    words = kinds.add_parser("words")
    words.add_argument("tokenizer", type=Path)
    words.add_argument("files", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.kind == "loads":
        _print_loads(asked.tokens, asked.seeds)
    else:
        _print_words(asked.tokenizer, asked.files, asked.seeds)


def _print_loads(tokens: int, seeds: int) -> None:
    for num_experts, top_k, spread, skew in LOADS:
        for name, gate in GATES.items():
            found = [
                drawn_max_vio(gate, num_experts, top_k, spread, skew, tokens, seed) for seed in range(seeds)
            ]
            print(
                f"{num_experts}/{top_k} spread {spread:g} skew {skew:g} {name}: {_range(found)}", flush=True
            )


def _print_words(tokenizer: Path, files: Sequence[Path], seeds: int) -> None:
    reader = Tokenizer.from_file(str(tokenizer))
    ids = reader.encode("\n".join(file.read_text() for file in files)).ids
    found = [tables_max_vio(ids, reader.get_vocab_size(), seed) for seed in range(seeds)]
    print(f"{len(ids)} tokens in {len(files)} files, the second half read")
    for name in found[0]:
        print(f"{name}: {_range([one[name] for one in found])}")


def _range(found: Sequence[float]) -> str:
    return f"{min(found):.3f} to {max(found):.3f} (median {sorted(found)[len(found) // 2]:.3f})"


if __name__ == "__main__":
    main()
