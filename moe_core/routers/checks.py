"""What does not fit together, said before anything is computed.

T tokens, D model width, E experts, K top_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers.call import GateCall


def check_shapes(hidden_TD: Tensor, weight_ED: Tensor, top_k: int) -> None:
    """Raise SpecError when map and hidden states do not fit, these are no floats, or there are fewer than top_k experts."""
    if hidden_TD.ndim != 2 or weight_ED.ndim != 2 or hidden_TD.shape[1] != weight_ED.shape[1]:
        raise SpecError(
            f"hidden {tuple(hidden_TD.shape)} and router weight {tuple(weight_ED.shape)} must be (T, D) and (E, D)"
        )
    if not hidden_TD.is_floating_point():
        raise SpecError(f"hidden states must be floating, not {hidden_TD.dtype}")
    if not 1 <= top_k <= weight_ED.shape[0]:
        raise SpecError(f"top_k ({top_k}) must be between 1 and the number of experts ({weight_ED.shape[0]})")


def check_call(call: GateCall, num_experts: int) -> None:
    """Raise SpecError when what is given beside the hidden states has another shape than these and the experts ask for.

    Of the forced ids only the number of rows: how many places a token has is the gate's affair. Looks at shapes alone, so
    that it waits for no device.
    """
    num_tokens = call.hidden_TD.shape[0]
    _check_shape("bias_TE", call.bias_TE, "(T, E)", (num_tokens, num_experts))
    _check_shape("noise_TE", call.noise_TE, "(T, E)", (num_tokens, num_experts))
    _check_shape("selection_bias_E", call.selection_bias_E, "(E,)", (num_experts,))
    for name in ("token_ids_T", "sequence_T", "real_T"):
        _check_shape(name, getattr(call, name), "(T,)", (num_tokens,))
    _check_dtype("real_T", call.real_T, torch.bool)
    if call.floor is not None:
        _check_shape("floor.share_T", call.floor.share_T, "(T,)", (num_tokens,))
        _check_shape("floor.mine_TE", call.floor.mine_TE, "(T, E)", (num_tokens, num_experts))
        _check_dtype("floor.mine_TE", call.floor.mine_TE, torch.bool)
    _check_dtype("forced_TK", call.forced_TK, torch.int64)
    if call.forced_TK is not None:
        places = call.forced_TK.shape[1] if call.forced_TK.ndim == 2 else call.top_k
        _check_shape("forced_TK", call.forced_TK, "(T, K)", (num_tokens, places))


def check_values(call: GateCall, num_experts: int) -> None:
    """Raise SpecError for forced ids that are no expert or twice in a row, and for a floor that is no share below one.

    Tensors on another device than the CPU are not looked at, for that would wait for it.
    """
    if call.forced_TK is not None and call.forced_TK.device.type == "cpu":
        _check_forced(call.forced_TK, num_experts)
    if call.floor is not None and call.floor.share_T.device.type == "cpu":
        share_T = call.floor.share_T
        wrong_T = ~((share_T >= 0.0) & (share_T < 1.0))
        if wrong_T.any():
            token = int(wrong_T.nonzero()[0])
            raise SpecError(
                f"floor.share_T of token {token} is {float(share_T[token]):g}; it must be at least 0 and less than 1 "
                "(mask the other experts to give a token's own everything)"
            )


def check_one_choice(call: GateCall, num_experts: int) -> None:
    """Raise SpecError for forced ids of another number than top_k, and for a token with every expert masked.

    Masks on another device than the CPU are not looked at.
    """
    bias_TE = call.bias_TE
    _check_shape("forced_TK", call.forced_TK, "(T, K)", (call.hidden_TD.shape[0], call.top_k))
    if bias_TE is not None and bias_TE.device.type == "cpu":
        masked_T = (bias_TE == float("-inf")).all(-1)
        if masked_T.any():
            raise SpecError(
                f"bias_TE masks all {num_experts} experts of token {int(masked_T.nonzero()[0])}; leave it at least one"
            )


def check_words(token_ids_T: Tensor, vocab_size: int) -> None:
    """Raise SpecError for ids that are no integers or outside of a table; ids on a GPU are not looked at."""
    if token_ids_T.dtype not in (torch.int64, torch.int32):
        raise SpecError(f"token_ids_T must be int64, not {token_ids_T.dtype}")
    if token_ids_T.device.type == "cpu":
        wrong = token_ids_T[(token_ids_T < 0) | (token_ids_T >= vocab_size)]
        if wrong.numel():
            raise SpecError(
                f"token_ids_T holds {int(wrong[0])}; the gate's table has {vocab_size} words, numbered from 0"
            )


def _check_dtype(name: str, given: Tensor | None, dtype: torch.dtype) -> None:
    if given is not None and given.dtype != dtype:
        raise SpecError(f"{name} must be {str(dtype).removeprefix('torch.')}, not {given.dtype}")


def _check_forced(forced_TK: Tensor, num_experts: int) -> None:
    wrong = forced_TK[(forced_TK < 0) | (forced_TK >= num_experts)]
    if wrong.numel():
        raise SpecError(f"forced_TK holds expert {int(wrong[0])}; there are {num_experts}, numbered from 0")
    sorted_TK = forced_TK.sort(-1).values
    twice = sorted_TK[:, 1:][sorted_TK[:, 1:] == sorted_TK[:, :-1]]
    if twice.numel():
        raise SpecError(
            f"forced_TK names expert {int(twice[0])} twice for one token; name {forced_TK.shape[1]} different ones"
        )


def _check_shape(name: str, given: Tensor | None, letters: str, shape: tuple[int, ...]) -> None:
    if given is not None and tuple(given.shape) != shape:
        raise SpecError(f"{name} {tuple(given.shape)} must be {letters} = {shape}")
