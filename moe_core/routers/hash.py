"""A table from vocabulary entry to experts: balanced by how often tokens occur, at random, or by likeness of meaning.

Shapes: T tokens, V vocabulary, D model width, E experts, K top_k.
Source: Roller et al. 2021, "Hash Layers for Large Sparse Models", arXiv 2106.04426.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers.assignment import balanced_assignment
from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.centroids import centroids_of
from moe_core.routers.checks import check_words
from moe_core.routers.choosing import best
from moe_core.routers.logits import NEG_INF, adjusted
from moe_core.routers.routing import Routing
from moe_core.spec.gate import Hash


def hash_gate(gate: Hash, weights: GateWeights, call: GateCall) -> Routing:
    """The experts of the token's row, with equal weights or those of a learnt gate over them.

    A prior's bias or floor moves the weights of a learnt gate; where a token goes is moved by a mask only: in the place of
    a masked expert comes the next one after it, by number, that is neither masked nor taken. Raises SpecError without token
    ids.
    """
    if call.token_ids_T is None:
        raise SpecError(
            "a hash gate needs the ids of the tokens; call the model with `token_ids_T` in its context"
        )
    table_VK = weights["table"]
    check_words(call.token_ids_T, table_VK.shape[0])
    rows_TK = table_VK[call.token_ids_T].long()
    if "weight" in weights:
        raw_TE = torch.nn.functional.linear(call.hidden_TD.float(), weights["weight"].float())
    else:
        num_experts = call.num_experts or int(table_VK.max()) + 1
        raw_TE = torch.zeros(rows_TK.shape[0], num_experts, device=rows_TK.device)
    logits_TE = adjusted(raw_TE, call)
    ids_TK = call.forced_TK if call.forced_TK is not None else _allowed(rows_TK, logits_TE)
    chosen_TK = (
        logits_TE.gather(-1, ids_TK) if gate.weights == "learned" else torch.zeros_like(ids_TK).float()
    )
    probs_TE = torch.zeros_like(logits_TE).scatter(-1, ids_TK, torch.softmax(chosen_TK, -1))
    return Routing(ids_TK, torch.softmax(chosen_TK, -1), logits_TE, probs_TE)


def _allowed(rows_TK: Tensor, logits_TE: Tensor) -> Tensor:
    """The table's experts; a masked one gives way to the next after it, in a ring, that is neither masked nor taken.

    Those that stand in for masked ones come after the others; after them masked ones for which there is none.
    """
    masked_TE = logits_TE.detach() == NEG_INF
    if not masked_TE.any():
        return rows_TK
    num_experts = logits_TE.shape[1]
    every_E = torch.arange(num_experts, device=rows_TK.device)
    closed_TE = masked_TE.scatter(-1, rows_TK, True)
    is_masked_TK, ids_TK = masked_TE.gather(-1, rows_TK), rows_TK.clone()
    rank_TK = is_masked_TK.long()
    for place in range(rows_TK.shape[1]):
        distance_TE = ((every_E - rows_TK[:, place, None]) % num_experts).masked_fill(closed_TE, num_experts)
        nearest_T = distance_TE.argmin(-1)
        gives_way_T = is_masked_TK[:, place] & ~closed_TE.all(-1)
        ids_TK[:, place] = torch.where(gives_way_T, nearest_T, rows_TK[:, place])
        rank_TK[:, place] += is_masked_TK[:, place] & ~gives_way_T
        closed_TE = closed_TE.scatter(-1, ids_TK[:, place, None], True)
    return ids_TK.gather(-1, rank_TK.argsort(dim=-1, stable=True))


def random_table(vocab_size: int, num_experts: int, top_k: int, seed: int) -> Tensor:
    """(V, K) int64: k different experts for each entry, drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(vocab_size, num_experts, generator=generator).argsort(-1)[:, :top_k]


def balanced_table(counts_V: Tensor, num_experts: int, top_k: int, seed: int) -> Tensor:
    """(V, K): entries from the most to the least frequent, each to the k experts that carry least so far.

    `counts_V` (V,), of any dtype and not negative, says how often each entry occurs. One that never does counts half as
    much as the rarest that does, so that entries without a count are spread over the experts too. Ties are broken by
    numbers that are drawn. The table is int64.
    """
    generator = torch.Generator().manual_seed(seed)
    counts_V = _with_unseen(counts_V)
    order_V = torch.argsort(counts_V, descending=True, stable=True)
    counts = counts_V[order_V].tolist()
    drawn = torch.rand(counts_V.shape[0] * top_k + num_experts, generator=generator).tolist()
    ties = iter(drawn[num_experts:])
    # (load, tie, expert), the least first.
    experts = [(0.0, drawn[expert], expert) for expert in range(num_experts)]
    heapq.heapify(experts)
    rows = []
    for count in counts:
        least = [heapq.heappop(experts) for _ in range(top_k)]
        rows.append([expert for _, _, expert in least])
        for load, _, expert in least:
            heapq.heappush(experts, (load + count, next(ties), expert))
    table_VK = torch.empty(counts_V.shape[0], top_k, dtype=torch.int64)
    table_VK[order_V] = torch.tensor(rows, dtype=torch.int64).view(-1, top_k)
    return table_VK


def _with_unseen(counts_V: Tensor) -> Tensor:
    """(V,) float64, none of them zero: zeros would pile up on the experts that happen to carry least."""
    counts_V = counts_V.double()
    seen = counts_V[counts_V > 0]
    rarest = float(seen.min()) if seen.numel() else 1.0
    return torch.where(counts_V > 0, counts_V, 0.5 * rarest)


def rank_counts(vocab_size: int) -> Tensor:
    """(V,) counts by Zipf's law where nothing was counted: vocabularies list pieces roughly from frequent to rare."""
    return 1.0 / torch.arange(1, vocab_size + 1, dtype=torch.float64)


def clustered_table(embedding_VD: Tensor, num_experts: int, top_k: int, seed: int) -> Tensor:
    """(V, K): entries of like embeddings share experts; first choices hold V / E entries each (rounded).

    Second and further choices are the nearest centroids after the first.
    """
    x_VD = torch.nn.functional.normalize(embedding_VD.detach().float(), dim=-1)
    scores_VE = x_VD @ centroids_of(x_VD, num_experts, seed).t()
    first_V = balanced_assignment(scores_VE)
    return best(scores_VE.scatter(-1, first_V[:, None], float("inf")), top_k)
