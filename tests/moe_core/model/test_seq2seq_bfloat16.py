"""Encoder–decoders in bfloat16 against transformers in bfloat16: each side chooses its experts for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import moe_core
from moe_core import EncoderDecoder
from moe_core.model.context import RoutingContext

pytest.importorskip("transformers")

from tests.moe_core.bfloat16_table import divergence, log_probs
from tests.moe_core.model.test_seq2seq_parity import (
    CASES,
    IDS,
    TARGET,
    _experts_put_right,  # noqa: F401
    reference,
)

MOST = 1e-3


@torch.no_grad()
def told(model: EncoderDecoder) -> tuple[Tensor, list[Tensor]]:
    """Log probabilities (T, V) of the target, and the experts of every token in every layer."""
    seen: list[Tensor] = []
    context = RoutingContext(observe=lambda layer, routing: seen.append(routing.expert_ids_TK))
    return log_probs(model(IDS, TARGET, routing=context)), seen


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_diverge_by_less_than_a_thousandth_of_a_nat_where_no_token_goes_elsewhere(
    case: str, tmp_path: Path
) -> None:
    theirs = reference(case).bfloat16()
    theirs.save_pretrained(tmp_path)
    ours, exact = moe_core.load(tmp_path, "bfloat16"), moe_core.load(tmp_path)
    assert isinstance(ours, EncoderDecoder) and isinstance(exact, EncoderDecoder)
    p = log_probs(theirs(input_ids=IDS, decoder_input_ids=TARGET).logits)
    (q, chosen), (truth, right) = told(ours), told(exact)
    moved = sum(int((mine != its).any(-1).sum()) for mine, its in zip(chosen, right, strict=True))
    tokens = sum(ids_TK.shape[0] for ids_TK in chosen)
    assert moved < 0.05 * tokens
    # A token on another expert is another token: it may cost as much again.
    assert divergence(p, q) < (MOST if not moved else 2 * MOST)
    assert divergence(truth, q) < (MOST if not moved else 2 * MOST)
    assert float((p.argmax(-1) == q.argmax(-1)).float().mean()) > 0.85
    for parameter in ours.decoder.layers[-1].parameters():
        parameter.mul_(2.0)
    assert divergence(p, log_probs(ours(IDS, TARGET))) > 2 * MOST, (case, moved)
