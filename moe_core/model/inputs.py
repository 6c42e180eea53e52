"""Token ids as models take them: what cannot be one is refused with a sentence before anything is computed.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from operator import index
from typing import Any

import torch
from torch import Tensor

from moe_core.errors import InputError
from moe_core.spec import ModelSpec


def check_ids(ids_BS: Any, vocab_size: int) -> None:
    """Raise InputError unless these are token ids: a tensor (B, S) of int64 or int32 from 0 to vocab_size - 1."""
    if not isinstance(ids_BS, Tensor):
        raise InputError(
            f"input_ids must be a tensor of integers (B, S), not {type(ids_BS).__name__}; give torch.tensor([[...]])"
        )
    if ids_BS.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"input_ids has dtype {ids_BS.dtype}; token ids are integers of torch.int64 or torch.int32: give ids.long()"
        )
    if ids_BS.dim() != 2:
        shape = tuple(ids_BS.shape)
        raise InputError(f"input_ids has shape {shape}; give (batch, sequence): for one text ids[None]")
    if ids_BS.numel():
        _check_range(int(ids_BS.min()), int(ids_BS.max()), vocab_size)


def check_length(num_tokens: int, spec: ModelSpec) -> None:
    """Raise InputError when a text is longer than the model has positions for."""
    most = spec.max_position_embeddings
    if num_tokens > most:
        raise InputError(
            f"{num_tokens} tokens are more than the model's {most} positions (max_position_embeddings); shorten the "
            "text, or give the model's spec a longer context, with stretched positions (rope) where it needs them"
        )


def checked_prompt(ids: Sequence[int] | Tensor, max_new_tokens: int, vocab_size: int) -> list[int]:
    """A prompt as a list of token ids. Raises InputError when it is none, or the number of new tokens is no whole one."""
    if isinstance(ids, Tensor) and ids.dim() != 1:
        raise InputError(
            f"a prompt is one text, and this has shape {tuple(ids.shape)}; give ids[0], text by text"
        )
    try:
        prompt = [_token(token) for token in ids]
    except TypeError as error:
        raise InputError(
            f"a prompt is a list of token ids, which are whole numbers, and not {repr(ids)[:40]}; encode text with the "
            "model's own tokenizer"
        ) from error
    if not prompt:
        raise InputError("the prompt has no token; give at least one, such as the model's bos_token_id")
    # True is a whole number to Python, and a mistake here.
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Integral) or max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number, 0 or more")
    _check_range(min(prompt), max(prompt), vocab_size)
    return prompt


def check_speaks(spec: ModelSpec) -> None:
    """Raise InputError when a token's experts hang on later tokens, so that no text can be said token by token."""
    if spec.moe is not None and spec.moe.gate.sees_the_batch:
        raise InputError(
            f"gate {spec.moe.gate.kind!r} chooses for all tokens of a batch at once, later ones included, so text cannot "
            "be generated token by token; call model(input_ids) on whole texts, or give the model another gate"
        )


def _token(value: Any) -> int:
    """A whole number. Raises TypeError for anything else, truths among it."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise TypeError("a truth is no token")
    return index(value)


def _check_range(lowest: int, highest: int, vocab_size: int) -> None:
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InputError(
            f"token id {wrong} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1}); "
            "encode with the model's own tokenizer"
        )
