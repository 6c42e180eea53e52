"""Dispatch for experts on several ranks: a token travels once to each rank that holds any of its experts.

transformers' own all-to-all sends a row for each (token, expert) pair. Here a rank gets each token once, with the ids and
weights of the experts that it holds, and sends one weighted sum back: with k experts on r ranks that is r rows instead of
k, there and back.

Shapes: T tokens, D model width, K top_k, G ranks, S rows that are sent, R rows that are received.
Source: DeepSeek-AI 2024, "DeepSeek-V3", arXiv 2412.19437, section 3.2.2 (a token is sent once to a node, whatever the number
of its experts there); the contract is transformers 5.23, distributed/expert_parallel.py, `EPImplementation`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed import all_to_all_single
from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers.distributed.expert_parallel import EPImplementation


class Plan(NamedTuple):
    """Which rows go where."""

    # (S,) token of each row that is sent, and the rank that it goes to; ordered by rank, tokens in their order.
    token_S: Tensor
    rank_S: Tensor
    send_sizes: list[int]
    receive_sizes: list[int]


class OncePerRankEP(EPImplementation):
    """One row for each (token, rank) pair; ids and weights travel beside it, sums come back."""

    @property
    def num_here(self) -> int:
        """How many experts each rank holds."""
        return cast(int, self.num_local_experts)

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(T, D): the weighted sum of each token's experts, wherever they are.

        `hidden_states` (T, D), `top_k_index` (T, K) global expert ids, `top_k_weights` (T, K). Gradients reach every rank
        that holds a token, weights included.
        """
        num_tokens = hidden_states.shape[0]
        x_TD, ids_TK, weights_TK = self._mine(hidden_states, top_k_index, top_k_weights)
        plan = self._plan(ids_TK)
        local_SK = self._local_ids(ids_TK[plan.token_S], plan.rank_S)
        weights_SK = weights_TK[plan.token_S].masked_fill(local_SK == self.num_here, 0.0)
        rows_RD, weights_RK = self._sent(x_TD[plan.token_S], plan), self._sent(weights_SK, plan)
        out_RD = self._run(rows_RD, self._sent_ids(local_SK, plan), weights_RK)
        back_SD = _exchange(out_RD, plan.send_sizes, plan.receive_sizes, self.ep_mesh.get_group())
        wide = torch.float64 if back_SD.dtype == torch.float64 else torch.float32
        out_TD = torch.zeros_like(x_TD, dtype=wide).index_add(0, plan.token_S, back_SD.to(wide))
        return self._of_all(out_TD.to(x_TD.dtype), num_tokens)

    def _plan(self, ids_TK: Tensor) -> Plan:
        """The rows to send and, after asking the others, how many come; the one host sync of the layer."""
        num_ranks = self.ep_mesh.size()
        rank_TK = ids_TK // self.num_here
        wanted_GT = (rank_TK == torch.arange(num_ranks, device=ids_TK.device)[:, None, None]).any(-1)
        rank_S, token_S = torch.nonzero(wanted_GT, as_tuple=True)
        sent_G = wanted_GT.sum(-1)
        received_G = torch.empty_like(sent_G)
        all_to_all_single(received_G, sent_G, group=self.ep_mesh.get_group())
        send_sizes, receive_sizes = torch.stack([sent_G, received_G]).tolist()
        return Plan(token_S, rank_S, send_sizes, receive_sizes)

    def _local_ids(self, ids_SK: Tensor, rank_S: Tensor) -> Tensor:
        """Ids as the receiving rank counts them; one beyond its last for experts that are elsewhere."""
        is_there_SK = ids_SK // self.num_here == rank_S[:, None]
        return torch.where(is_there_SK, ids_SK % self.num_here, self.num_here)

    def _sent(self, rows: Tensor, plan: Plan) -> Tensor:
        return _exchange(rows, plan.receive_sizes, plan.send_sizes, self.ep_mesh.get_group())

    def _sent_ids(self, local_SK: Tensor, plan: Plan) -> Tensor:
        ids_RK = local_SK.new_empty(sum(plan.receive_sizes), local_SK.shape[1])
        group = self.ep_mesh.get_group()
        all_to_all_single(ids_RK, local_SK.contiguous(), plan.receive_sizes, plan.send_sizes, group=group)
        return ids_RK

    def _run(self, rows_RD: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
        """The rank's own experts; a rank without a row still takes part in the backward exchange."""
        if rows_RD.shape[0]:
            out_RD: Tensor = self.experts_forward(rows_RD, ids_RK, weights_RK)
            return out_RD
        nothing_1D = rows_RD.sum(0, keepdim=True)
        absent_1K = ids_RK.new_zeros(1, ids_RK.shape[1])
        empty_0D: Tensor = self.experts_forward(nothing_1D, absent_1K, weights_RK.sum(0, keepdim=True))[:0]
        return empty_0D

    def _mine(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """This rank's share of a batch that the ranks of its tensor-parallel group hold in common."""
        if self.tp_mesh.size() == 1:
            return tensors
        whole = (DTensor.from_local(x, self.tp_mesh, [Replicate()], run_check=False) for x in tensors)
        return tuple(x.redistribute(self.tp_mesh, [Shard(0)]).to_local() for x in whole)

    def _of_all(self, out_TD: Tensor, num_tokens: int) -> Tensor:
        """The shares of the group put together again."""
        if self.tp_mesh.size() == 1:
            return out_TD
        width = out_TD.shape[1]
        parts = DTensor.from_local(
            out_TD.contiguous(),
            self.tp_mesh,
            [Shard(0)],
            shape=torch.Size((num_tokens, width)),
            stride=(width, 1),
        )
        whole_TD: Tensor = parts.full_tensor()
        return whole_TD


class _Waited(torch.autograd.Function):
    """The finished result of a collective; experts read memory, not promises."""

    @staticmethod
    def forward(ctx: object, pending: Tensor) -> Tensor:  # type: ignore[override]
        return wait_tensor(pending)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def _exchange(rows: Tensor, out_sizes: list[int], in_sizes: list[int], group: Any) -> Tensor:
    pending = all_to_all_single_autograd(rows.contiguous(), out_sizes, in_sizes, group)
    waited: Tensor = _Waited.apply(pending)
    return waited
