"""The k best experts of each token in one pass over its logits: prior, score function, group limit, choice, weights.

Shapes: T tokens, E experts, G groups, M experts a group, K top_k, P padded to a power of two.
Each round takes the largest of 64-bit keys: the score's bits in an order that integers keep, then the expert's number
turned round. So ties go to the lower expert, NaN comes first as in a descending sort, and nothing is ever sorted whole.

Source: the packed keys of triton_kernels' streaming top-k; DeepSeek-AI 2024, arXiv 2412.19437, for groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError

MAX_EXPERTS = 1024
MAX_TOP_K = 64
SCORES = ("softmax", "sigmoid", "sqrtsoftplus")


@triton.jit
def ordered_key(score, last_number, number):
    """An int64 that orders like the score; equal scores like falling numbers; NaN above all; -0 equals 0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(score != score, 0x7FC00000, tl.where(score == 0.0, 0, bits))
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return (rising << 32) | (last_number - number).to(tl.int64)


@triton.jit(do_not_specialize=["num_tokens"])
def topk_kernel(
    raw_ptr, prior_ptr, bias_ptr, ids_ptr, weights_ptr, logits_ptr, shares_ptr,
    num_tokens, num_experts, temperature, factor,
    TOP_K: tl.constexpr, SCORES: tl.constexpr, NORMALISED: tl.constexpr, BY_LOGITS: tl.constexpr,
    HAS_PRIOR: tl.constexpr, HAS_BIAS: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, TWO_BEST: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """TOKENS tokens. With groups EXPERTS is the number of experts, else a power of two above it."""
    token_T = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real_T = token_T < num_tokens
    expert_E = tl.arange(0, EXPERTS)
    known_E = expert_E < num_experts
    inside_TE = real_T[:, None] & known_E[None, :]
    at_TE = token_T.to(tl.int64)[:, None] * num_experts + expert_E[None, :]
    raw_TE = tl.load(raw_ptr + at_TE, mask=inside_TE, other=0.0)
    # A plain division is not rounded correctly on a GPU, and a logit must be that of the gate to the bit.
    logits_TE = tl.div_rn(raw_TE, temperature + tl.zeros_like(raw_TE))
    if HAS_PRIOR:
        logits_TE += tl.load(prior_ptr + at_TE, mask=inside_TE, other=0.0)
    tl.store(logits_ptr + at_TE, logits_TE, mask=inside_TE)
    logits_TE = tl.where(known_E[None, :], logits_TE, -float("inf"))

    # Shares sum to one; scores are what chooses and weighs.
    if SCORES == "softmax":
        risen_TE = tl.exp(logits_TE - tl.max(logits_TE, axis=1)[:, None])
        score_TE = tl.div_rn(risen_TE, tl.sum(risen_TE, axis=1)[:, None] + tl.zeros_like(risen_TE))
        share_TE = score_TE
    else:
        if SCORES == "sigmoid":
            score_TE = tl.div_rn(tl.full([TOKENS, EXPERTS], 1.0, tl.float32), 1.0 + tl.exp(-logits_TE))
        else:
            # log(1 + y) with what 1 + y rounds away divided back in (Kahan): exact for small y, where it would be nothing.
            risen_TE = tl.exp(tl.where(logits_TE > 20.0, 20.0, logits_TE))
            one_more_TE = 1.0 + risen_TE
            part_TE = tl.where(one_more_TE == 1.0, 1.0, one_more_TE - 1.0)
            log_TE = tl.where(one_more_TE == 1.0, risen_TE, tl.log(one_more_TE) * (risen_TE / part_TE))
            middle_TE = tl.sqrt_rn(tl.where(logits_TE > 20.0, logits_TE, log_TE))
            score_TE = tl.where(logits_TE < -20.0, tl.exp(0.5 * logits_TE), middle_TE)
        score_TE = tl.where(known_E[None, :], score_TE, 0.0)
        share_TE = score_TE / (tl.sum(score_TE, axis=1)[:, None] + 1e-20)
    tl.store(shares_ptr + at_TE, share_TE, mask=inside_TE)

    # What picks: scores and balancing bias, or logits where nothing is added (a softmax rounds small ones to zero).
    if HAS_BIAS:
        pick_TE = score_TE + tl.load(bias_ptr + expert_E, mask=known_E, other=0.0)[None, :]
        pick_TE = tl.where(logits_TE == -float("inf"), -float("inf"), pick_TE)
    elif BY_LOGITS:
        pick_TE = logits_TE
    else:
        pick_TE = tl.where(logits_TE == -float("inf"), -float("inf"), score_TE)
    if GROUPS > 1:
        pick_TE = inside_best_groups(pick_TE, GROUPS, TOP_GROUPS, TWO_BEST, TOKENS, EXPERTS)

    key_TE = ordered_key(pick_TE, EXPERTS - 1, expert_E[None, :] + tl.zeros([TOKENS, EXPERTS], tl.int32))
    nothing = -0x7FFFFFFFFFFFFFFF
    key_TE = tl.where(known_E[None, :], key_TE, nothing)
    place_P = tl.arange(0, PLACES)
    id_TP = tl.zeros([TOKENS, PLACES], tl.int32)
    chosen_TP = tl.zeros([TOKENS, PLACES], tl.float32)
    for place in tl.static_range(TOP_K):
        best_T = tl.max(key_TE, axis=1)
        id_T = (EXPERTS - 1 - (best_T & 0xFFFFFFFF)).to(tl.int32)
        is_best_TE = expert_E[None, :] == id_T[:, None]
        key_TE = tl.where(is_best_TE, nothing, key_TE)
        if BY_LOGITS and NORMALISED:
            value_TE = logits_TE
        else:
            value_TE = score_TE
        value_T = tl.sum(tl.where(is_best_TE, value_TE, 0.0), axis=1)
        is_place_P = (place_P == place)[None, :]
        id_TP = tl.where(is_place_P, id_T[:, None], id_TP)
        chosen_TP = tl.where(is_place_P, value_T[:, None], chosen_TP)
    used_P = (place_P < TOP_K)[None, :]
    if NORMALISED:
        if BY_LOGITS:
            # A softmax of the chosen logits: the same as renormalising, and no 0 / 0 when all are unlikely.
            chosen_TP = tl.where(used_P, chosen_TP, -float("inf"))
            chosen_TP = tl.exp(chosen_TP - tl.max(chosen_TP, axis=1)[:, None])
            chosen_TP = chosen_TP / tl.sum(chosen_TP, axis=1)[:, None]
        else:
            chosen_TP = chosen_TP / (tl.sum(tl.where(used_P, chosen_TP, 0.0), axis=1)[:, None] + 1e-20)
    out_TP = token_T.to(tl.int64)[:, None] * TOP_K + place_P[None, :]
    tl.store(ids_ptr + out_TP, id_TP.to(tl.int64), mask=real_T[:, None] & used_P)
    tl.store(weights_ptr + out_TP, chosen_TP * factor, mask=real_T[:, None] & used_P)


@triton.jit
def inside_best_groups(
    pick_TE, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, TWO_BEST: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The scores that pick, with experts outside the best groups far below; a group is worth its one or two best."""
    MEMBERS: tl.constexpr = EXPERTS // GROUPS
    pick_TGM = tl.reshape(pick_TE, (TOKENS, GROUPS, MEMBERS))
    # A group is worth what it is without its masked experts, and nothing where all are masked.
    masked_TGM = pick_TGM == -float("inf")
    value_TGM = tl.where(masked_TGM, 0.0, pick_TGM)
    number_TGM = tl.arange(0, MEMBERS)[None, None, :] + tl.zeros([TOKENS, GROUPS, MEMBERS], tl.int32)
    key_TGM = ordered_key(pick_TGM, MEMBERS - 1, number_TGM)
    best_TG = tl.max(key_TGM, axis=2)
    is_best_TGM = key_TGM == best_TG[:, :, None]
    worth_TG = tl.sum(tl.where(is_best_TGM, value_TGM, 0.0), axis=2)
    if TWO_BEST and MEMBERS > 1:
        second_TG = tl.max(tl.where(is_best_TGM, -0x7FFFFFFFFFFFFFFF, key_TGM), axis=2)
        worth_TG += tl.sum(tl.where(key_TGM == second_TG[:, :, None], value_TGM, 0.0), axis=2)
    all_masked_TG = tl.min(masked_TGM.to(tl.int32), axis=2) == 1
    worth_TG = tl.where(all_masked_TG, -float("inf"), worth_TG)
    group_G = tl.arange(0, GROUPS)
    key_TG = ordered_key(worth_TG, GROUPS - 1, group_G[None, :] + tl.zeros([TOKENS, GROUPS], tl.int32))
    outside_TG = tl.full([TOKENS, GROUPS], 1, tl.int32)
    for _ in tl.static_range(TOP_GROUPS):
        best_T = tl.max(key_TG, axis=1)
        is_best_TG = key_TG == best_T[:, None]
        outside_TG = tl.where(is_best_TG, 0, outside_TG)
        key_TG = tl.where(is_best_TG, -0x7FFFFFFFFFFFFFFF, key_TG)
    outside_TGM = outside_TG[:, :, None] + tl.zeros([TOKENS, GROUPS, MEMBERS], tl.int32)
    # -1e4 is more than any two scores and biases differ.
    return tl.reshape(tl.where(outside_TGM == 1, pick_TGM - 1e4, pick_TGM), (TOKENS, EXPERTS))


def topk(
    raw_TE: Tensor,
    *,
    top_k: int,
    scores: str = "softmax",
    normalised: bool = True,
    by_logits: bool = False,
    temperature: float = 1.0,
    factor: float = 1.0,
    prior_TE: Tensor | None = None,
    selection_bias_E: Tensor | None = None,
    num_groups: int = 1,
    topk_group: int = 1,
    two_best: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids (T, K) int64 best first, weights (T, K), logits (T, E) after temperature and prior, shares (T, E); float32.

    `raw_TE` is float32. `by_logits` (a plain softmax gate) picks by logits where no bias is given, and renormalises by a
    softmax over the chosen ones. `prior_TE` may hold -inf, which masks; `selection_bias_E` only changes what is picked.
    With groups, E and E / num_groups must be powers of two. Raises SpecError for what does not fit.
    """
    _check(raw_TE, top_k, scores, temperature, prior_TE, selection_bias_E, num_groups, topk_group)
    num_tokens, num_experts = raw_TE.shape
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int64, device=raw_TE.device)
    weights_TK = raw_TE.new_empty(num_tokens, top_k)
    logits_TE, shares_TE = torch.empty_like(raw_TE), torch.empty_like(raw_TE)
    if num_tokens == 0:
        return ids_TK, weights_TK, logits_TE, shares_TE
    experts = triton.next_power_of_2(num_experts)
    tokens = max(1, min(16, 1024 // experts))
    topk_kernel[(triton.cdiv(num_tokens, tokens),)](
        raw_TE, prior_TE, selection_bias_E, ids_TK, weights_TK, logits_TE, shares_TE,
        num_tokens, num_experts, float(temperature), float(factor),
        TOP_K=top_k, SCORES=scores, NORMALISED=normalised, BY_LOGITS=by_logits,
        HAS_PRIOR=prior_TE is not None, HAS_BIAS=selection_bias_E is not None,
        GROUPS=num_groups if topk_group < num_groups else 1, TOP_GROUPS=topk_group, TWO_BEST=two_best,
        TOKENS=tokens, EXPERTS=experts, PLACES=triton.next_power_of_2(top_k), num_warps=4,
    )  # fmt: skip
    return ids_TK, weights_TK, logits_TE, shares_TE


def takes(num_experts: int, top_k: int, num_groups: int = 1) -> bool:
    """Whether the kernel has these sizes: at most MAX_EXPERTS and MAX_TOP_K; with groups, powers of two."""
    powers = num_groups == 1 or (num_experts & (num_experts - 1) == 0 and num_groups & (num_groups - 1) == 0)
    return powers and num_experts <= MAX_EXPERTS and 1 <= top_k <= min(MAX_TOP_K, num_experts)


def _check(
    raw_TE: Tensor,
    top_k: int,
    scores: str,
    temperature: float,
    prior_TE: Tensor | None,
    bias_E: Tensor | None,
    num_groups: int,
    topk_group: int,
) -> None:
    if raw_TE.ndim != 2 or raw_TE.dtype is not torch.float32 or not raw_TE.is_contiguous():
        raise SpecError(f"logits must be contiguous (T, E) float32, not {tuple(raw_TE.shape)} {raw_TE.dtype}")
    num_experts = raw_TE.shape[1]
    if not takes(num_experts, top_k, num_groups) or not 1 <= topk_group <= num_groups:
        raise SpecError(
            f"top_k ({top_k}) of {num_experts} experts in {num_groups} groups, {topk_group} chosen, is not for this "
            f"kernel: at most {MAX_EXPERTS} experts and {MAX_TOP_K} choices, powers of two where there are groups"
        )
    if scores not in SCORES:
        raise SpecError(f"scores ({scores!r}) must be one of {', '.join(SCORES)}")
    if not temperature > 0.0:
        raise SpecError(f"temperature ({temperature}) must be above 0 for this kernel")
    for name, tensor, shape in (
        ("prior", prior_TE, raw_TE.shape),
        ("selection bias", bias_E, raw_TE.shape[1:]),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype is not torch.float32 or not tensor.is_contiguous():
            raise SpecError(
                f"the {name} must be contiguous {tuple(shape)} float32, not {tuple(tensor.shape)} {tensor.dtype}"
            )
        if tensor.device != raw_TE.device:
            raise SpecError(f"the {name} is on {tensor.device}, the logits on {raw_TE.device}")
