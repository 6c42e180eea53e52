"""The nine cases in which running experts goes wrong, and empty places beside them; truths that group nothing.

Shapes: T tokens, D model width, E experts, K top_k, r rows of one expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

# One expert on its rows, unweighted: (expert, (r, D)) → (r, D); None where it gives nothing, whatever its weight.
OneExpert = Callable[[int, Tensor], Tensor | None]


def drawn(num_tokens: int, num_experts: int, top_k: int) -> Callable[[Generator], Tensor]:
    """Different experts for each token, any of them."""
    return lambda chance: torch.rand(num_tokens, num_experts, generator=chance).argsort(-1)[:, :top_k]


@dataclass(frozen=True, slots=True)
class Case:
    """How many experts a layer has, and what each token chooses of them: (T, K), -1 for no expert."""

    num_experts: int
    choose: Callable[[Generator], Tensor]
    # Tokens whose hidden state has one NaN, and tokens whose first weight is NaN.
    sick: tuple[int, ...] = ()
    sick_weights: tuple[int, ...] = ()
    # Every choice counts alike.
    tied: bool = False

    def inputs(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (T, D), ids (T, K) and weights (T, K), float64 for such states and else float32."""
        chance = torch.Generator().manual_seed(11)
        ids_TK = self.choose(chance).contiguous()
        x_TD = torch.randn(ids_TK.shape[0], width, generator=chance).to(dtype)
        weights_TK = torch.rand(ids_TK.shape, generator=chance)
        if self.tied:
            weights_TK = torch.full_like(weights_TK, 1 / ids_TK.shape[1])
        x_TD[list(self.sick), 1] = float("nan")
        weights_TK[list(self.sick_weights), 0] = float("nan")
        weights_TK[ids_TK < 0] = float("nan")
        return x_TD, ids_TK, weights_TK.to(torch.float64 if dtype is torch.float64 else torch.float32)


def _without_one(chance: Generator) -> Tensor:
    ids_TK = drawn(30, 4, 2)(chance)
    return torch.where(ids_TK == 3, 4, ids_TK)


CASES: dict[str, Case] = {
    # Neither order, nor repetition, nor equal weights may lose a choice.
    "ties": Case(
        4, lambda _: torch.tensor([[0, 1], [1, 0], [0, 1], [2, 2], [1, 0], [3, 2], [1, 1]]), tied=True
    ),
    "NaN": Case(5, drawn(11, 5, 3), sick=(4, 8), sick_weights=(6,)),
    "no token": Case(4, lambda _: torch.empty(0, 2, dtype=torch.long)),
    "one expert": Case(1, lambda _: torch.zeros(5, 1, dtype=torch.long)),
    "k equals E": Case(5, drawn(9, 5, 5)),
    "all to one": Case(5, lambda _: torch.full((67, 1), 2)),
    "one empty": Case(5, _without_one),
    # 393 rows: no block of any kernel divides them.
    "odd rows": Case(5, drawn(131, 5, 3)),
    # More tokens than 15 bits can number, more rows than 16.
    "huge": Case(4, drawn(40_009, 4, 2)),
    "empty places": Case(
        8, lambda _: torch.tensor([[0, -1], [-1, -1], [1, -1], [-1, 3], [6, 5], [2, 4], [7, -1]])
    ),
}


def loop(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, one: OneExpert) -> Tensor:
    """(T, D), one token and one choice at a time; differentiable."""
    rows = []
    for token, (ids, weights_K) in enumerate(zip(ids_TK.tolist(), weights_TK, strict=True)):
        total_1D = torch.zeros_like(x_TD[:1])
        for expert, weight in zip(ids, weights_K, strict=True):
            out_1D = one(expert, x_TD[token : token + 1]) if expert >= 0 else None
            total_1D = total_1D if out_1D is None else total_1D + weight * out_1D
        rows.append(total_1D)
    return torch.cat(rows) if rows else torch.zeros_like(x_TD)


def dense(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, one: OneExpert) -> Tensor:
    """(T, D), every expert on every token: nothing is sorted or gathered; for very many tokens without NaN."""
    total_TD = torch.zeros_like(x_TD)
    for expert in ids_TK.unique().tolist():
        out_TD = one(expert, x_TD) if expert >= 0 else None
        if out_TD is not None:
            share_T1 = torch.where(ids_TK == expert, weights_TK, 0.0).sum(-1, keepdim=True)
            total_TD = total_TD + share_T1 * out_TD
    return total_TD


def assert_same(found_TD: Tensor, wanted_TD: Tensor, tolerance: float) -> None:
    """NaN in the same places, and each row within a share of its own size; exact where that is zero."""
    assert found_TD.shape == wanted_TD.shape
    found_TD, wanted_TD = (values.detach().double().flatten(1) for values in (found_TD, wanted_TD))
    assert torch.equal(found_TD.isnan(), wanted_TD.isnan())
    error_T = (found_TD - wanted_TD).nan_to_num().norm(dim=1)
    size_T = wanted_TD.nan_to_num().norm(dim=1)
    assert bool((error_T <= tolerance * size_T).all()), float((error_T / size_T.clamp(min=1e-30)).max())
