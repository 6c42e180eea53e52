"""The best assignment of tokens to experts with equal loads; and of rows to columns, which is the same with loads of one.

First prices: the bias of each expert at which about T / E tokens like it best (`moe_core.routers.thresholds`). Tokens that
get what they like best at these prices are placed at once, for no exchange among them gains anything. Those that are left
come one after the other; each takes the shortest chain of moves that ends at an expert with room, so that what is placed is
the best possible at any time. The graph has E nodes: an edge from expert a to expert b costs what the cheapest token to move
from a to b loses. Prices keep all edges at or above zero, so that chains are found by Dijkstra's method: O(E²) a token,
beside looking anew for the movers of the experts that changed.

Tokens that are alike (the same word at the same place) all like the same expert best at any price. Where there are many,
prices place few, and all tokens come one after the other.

Shapes: T tokens, E experts, n rows and columns.
Source: successive shortest paths for the transportation problem from dual prices (Ahuja, Magnanti & Orlin 1993, "Network
Flows", section 9.7; the prices as in Bertsekas 1992, auction algorithms); with loads of one it is the Hungarian method in
the form of Jonker and Volgenant 1987; for experts: Lewis et al. 2021, "BASE Layers", arXiv 2103.16716.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers.thresholds import balancing_bias

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


# Prices are good enough when so few tokens are left for each expert; more rounds are tried while they halve what is left.
LEFT_PER_EXPERT = 0.25
ROUNDS = 3
# Chains from prices are longer than chains from nothing: worth it where prices place most tokens.
MOST_LEFT = 0.1


def balanced_assignment(scores_TE: Tensor) -> Tensor:
    """(T,) int64: one expert a token so that the sum of scores is the highest possible with even loads.

    Every expert gets ⌊T / E⌋ tokens, and T mod E of them one more: those for which it pays most. Runs on the CPU. Raises
    SpecError for scores that are not finite.
    """
    scores = scores_TE.detach().to("cpu", torch.float64)
    if not scores.isfinite().all():
        raise SpecError(
            "a balanced assignment needs finite scores; mask experts with large negative numbers instead"
        )
    return _solved(scores).to(scores_TE.device)


def assign(cost: Floats) -> Ints:
    """For each row the column that it is paired with, (n,) int64, such that the sum of the costs (n, n) is least.

    O(n³), each inner step one numpy row. Raises SpecError unless the costs are square and finite.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise SpecError(f"an assignment needs as many rows as columns, not {cost.shape}")
    if not np.isfinite(cost).all():
        raise SpecError("an assignment needs finite costs; found NaN or infinity")
    return _Transport(-cost).solve()


def _solved(scores_TE: Tensor) -> Tensor:
    num_tokens, num_experts = scores_TE.shape
    if num_tokens < num_experts or num_experts == 1:
        return torch.from_numpy(_Transport(scores_TE.numpy()).solve())
    price_E = torch.zeros(num_experts, dtype=torch.float64)
    left, before = num_tokens, 2 * num_tokens + 1
    while LEFT_PER_EXPERT * num_experts < left < before / 2:
        price_E = balancing_bias(scores_TE, 1, ROUNDS, price_E)
        owner_T = _placed_at(scores_TE, price_E)
        left, before = int((owner_T < 0).sum()) - num_tokens % num_experts, left
    transport = _Transport(scores_TE.numpy())
    if left <= MOST_LEFT * num_tokens:
        transport.begin(owner_T.numpy(), price_E.numpy())
    return torch.from_numpy(transport.solve())


def _placed_at(scores_TE: Tensor, price_E: Tensor) -> Tensor:
    """(T,): the expert that a token likes best at these prices; -1 beyond the ⌊T / E⌋ tokens that like it most."""
    num_tokens, num_experts = scores_TE.shape
    two_T2 = (scores_TE + price_E).topk(2, dim=-1)
    liked_T = two_T2.indices[:, 0]
    keenest_T = torch.argsort(two_T2.values[:, 0] - two_T2.values[:, 1], descending=True, stable=True)
    order_T = keenest_T[torch.argsort(liked_T[keenest_T], stable=True)]
    load_E = torch.bincount(liked_T, minlength=num_experts)
    place_T = torch.arange(num_tokens) - (load_E.cumsum(0) - load_E)[liked_T[order_T]]
    owner_T = torch.full_like(liked_T, -1)
    inside_R = order_T[place_T < num_tokens // num_experts]
    owner_T[inside_R] = liked_T[inside_R]
    return owner_T


class _Transport:
    """A partial assignment that is optimal for its own loads, and grows by one token at a time."""

    def __init__(self, scores: Floats) -> None:
        self.num_tokens, self.num_experts = scores.shape
        self.scores = scores
        self.floor = self.num_tokens // max(1, self.num_experts)
        self.owner: Ints = np.full(self.num_tokens, -1, dtype=np.int64)
        self.load: Ints = np.zeros(self.num_experts, dtype=np.int64)
        # What the cheapest move from a to b loses, and which token it is.
        self.loss: Floats = np.full((self.num_experts, self.num_experts), np.inf)
        self.mover: Ints = np.full((self.num_experts, self.num_experts), -1, dtype=np.int64)
        # loss[a, b] + price[a] - price[b] is never below zero.
        self.price: Floats = np.zeros(self.num_experts)

    def begin(self, owner: Ints, price: Floats) -> None:
        """Start from tokens that have what they like best at given prices (-1: not placed), ⌊T / E⌋ an expert at most."""
        self.owner, self.price = owner.copy(), price.copy()
        self.load = np.bincount(owner[owner >= 0], minlength=self.num_experts)
        for expert in range(self.num_experts):
            self._weigh(expert)

    def solve(self) -> Ints:
        for token in np.flatnonzero(self.owner < 0):
            self._place(int(token))
        return self.owner

    def _place(self, token: int) -> None:
        """Find the chain of moves with the highest gain, then carry it out from its end."""
        # A place below the floor must be filled in any case; one above it, while there are such places.
        room = self.load < self.floor
        if not room.any():
            room = self.load < self.floor + 1
        end, before = self._cheapest_chain(-self.scores[token], room)
        self.load[end] += 1
        changed = [end]
        while before[end] >= 0:
            source = int(before[end])
            moved = int(self.mover[source, end])
            self.owner[moved] = end
            end = source
            changed.append(end)
        self.owner[token] = end
        for expert in changed:
            self._weigh(expert)

    def _cheapest_chain(self, first: Floats, room: NDArray[np.bool_]) -> tuple[int, Ints]:
        """The expert with room that is reached at the least loss, and the expert before each (-1: the new token)."""
        reduced, before = first - self.price, np.full(self.num_experts, -1, dtype=np.int64)
        is_open = np.ones(self.num_experts, dtype=bool)
        cheapest_room = self.price[room].min()
        best, end = np.inf, -1
        reach = reduced.min()
        while is_open.any():
            nearest = int(np.where(is_open, reduced, np.inf).argmin())
            # Everything that is still open ends at least this high.
            if reduced[nearest] + cheapest_room >= best:
                break
            is_open[nearest] = False
            reach = reduced[nearest]
            if room[nearest] and reach + self.price[nearest] < best:
                best, end = reach + self.price[nearest], nearest
            through = reach + self.price[nearest] + self.loss[nearest] - self.price
            better = is_open & (through < reduced)
            reduced[better], before[better] = through[better], nearest
        self.price += np.minimum(reduced, reach)
        return end, before

    def _weigh(self, expert: int) -> None:
        """Find again which token of an expert moves most cheaply to each other one."""
        mine = np.flatnonzero(self.owner == expert)
        if not mine.size:
            self.loss[expert] = np.inf
            return
        losses = self.scores[mine, expert][:, None] - self.scores[mine]
        cheapest = losses.argmin(0)
        self.loss[expert] = losses[cheapest, np.arange(self.num_experts)]
        self.mover[expert] = mine[cheapest]
        self.loss[expert, expert] = np.inf
