"""The table of docs/reference/families.md on bfloat16: transformers' models in bfloat16 beside ours, all layers of each.

`python -m tests.moe_core.bfloat16_table` writes it anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moe_core
from moe_core.model import Decoder, RoutingContext
from moe_core.routers import Routing
from moe_core.routers.call import GateCall
from moe_core.spec import MoeSpec
from tests.moe_core.families_table import PAGE
from tests.moe_core.model.hf_families import CASES, chosen_experts, model_of

BEGIN, END = (
    "<!-- table: python -m tests.moe_core.bfloat16_table -->\n",
    "<!-- end of table on bfloat16 -->\n",
)
IDS = torch.randint(0, 97, (8, 33), generator=torch.Generator().manual_seed(7))
# In float32 the best token is ahead by more than the logits' rounding in bfloat16.
CLEAR = 0.1
HEAD = ["model", "KL, same routing", "KL, own routing", "float32 to ours", "float32 to theirs", "top-1", "top-1, clear", "same experts"]  # fmt: skip


class AsTheyChose(RoutingContext):
    """Sends every token where transformers sent it, in all expert layers below `free_from`."""

    chosen_L: Sequence[Tensor] = ()
    free_from: int = 1 << 10

    def call(self, moe: MoeSpec, moe_index: int, x_TD: Tensor) -> GateCall:
        call = super().call(moe, moe_index, x_TD)
        return call if moe_index >= self.free_from else replace(call, forced_TK=self.chosen_L[moe_index])


def context(chosen_L: Sequence[Tensor], free_from: int = 1 << 10) -> tuple[AsTheyChose, dict[int, Routing]]:
    seen: dict[int, Routing] = {}
    made = AsTheyChose(observe=lambda layer, routing: seen.update({layer: routing}))
    made.chosen_L, made.free_from = chosen_L, free_from
    return made, seen


def log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1).flatten(0, -2)


def divergence(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean Kullback-Leibler divergence of two tables of log-probabilities, in nats."""
    return float((p_TV.exp() * (p_TV - q_TV)).sum(-1).mean())


@dataclass(frozen=True, slots=True)
class Figures:
    """One row; divergences in nats, shares of positions, and of tokens in the layer where fewest agree."""

    same_routing: float
    own_routing: float
    truth_to_ours: float
    truth_to_theirs: float
    top1: float
    top1_clear: float
    same_experts: float

    def cells(self) -> list[str]:
        values = [getattr(self, field.name) for field in fields(self)]
        return [*(f"{value:.1e}" for value in values[:4]), *(f"{100 * value:.1f} %" for value in values[4:])]


def pair(case: str, directory: Path) -> tuple[Any, Decoder]:
    """transformers' model of a case in bfloat16, and ours of its files."""
    theirs = model_of(*CASES[case]).bfloat16()
    theirs.save_pretrained(directory)
    ours = moe_core.load(directory, "bfloat16")
    assert isinstance(ours, Decoder)
    return theirs, ours


@torch.no_grad()
def measured(theirs: Any, ours: Decoder, directory: Path) -> Figures:
    chosen_L = [ids_TK for ids_TK, _ in chosen_experts(theirs, IDS)]
    exact = moe_core.load(directory)(IDS, context(chosen_L)[0])
    p, q = log_probs(theirs(IDS).logits), log_probs(ours(IDS, context(chosen_L)[0]))
    truth = log_probs(exact)
    best_T2 = exact.flatten(0, 1).topk(2).values
    clear_T = best_T2[:, 0] - best_T2[:, 1] > CLEAR
    alike_T = (p.argmax(-1) == q.argmax(-1)).float()
    return Figures(
        divergence(p, q),
        divergence(p, log_probs(ours(IDS))),
        divergence(truth, q),
        divergence(truth, p),
        float(alike_T.mean()),
        float(alike_T[clear_T].mean()),
        min((alike(ours, chosen_L, index) for index in range(len(chosen_L))), default=1.0),
    )


def alike(ours: Decoder, chosen_L: Sequence[Tensor], index: int) -> float:
    """Share of tokens that one expert layer sends where transformers' did, after earlier layers that did so too."""
    made, seen = context(chosen_L, free_from=index)
    ours(IDS, made)
    layer = list(ours.moe_layers())[index].layer
    ids_TK = seen[layer].expert_ids_TK.sort(-1).values
    return float((ids_TK == chosen_L[index]).all(-1).float().mean())


def row(case: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = pair(case, Path(folder))
        return [case, *measured(theirs, ours, Path(folder)).cells()]


def table() -> str:
    """Markdown, one row a model."""
    rows = [HEAD, ["---"] * len(HEAD), *map(row, CASES)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def written(page: str) -> dict[str, list[str]]:
    """The rows that stand in a page, by model."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    return {first: rest for first, *rest in cells}


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], "utf-8")
