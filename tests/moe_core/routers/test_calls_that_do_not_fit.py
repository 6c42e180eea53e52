"""What is given beside the hidden states fits them, or is refused by name before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.routers import Floor, GateCall, decide
from moe_core.spec.gate import Hash
from tests.moe_core.routers.every_gate import KINDS, WIDTH, mixture, tensors_of
from tests.moe_core.routers.gate_cases import VOCAB, moe_of

EVERY_T = torch.arange(5)
MINE_TE = torch.tensor([[True, False, False, False]]).expand(5, 4)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"token_ids_T": EVERY_T[:3]}, r"token_ids_T \(3,\) must be \(T,\) = \(5,\)"),
    ({"sequence_T": EVERY_T[:, None]}, r"sequence_T \(5, 1\) must be \(T,\) = \(5,\)"),
    ({"real_T": torch.ones(3, dtype=torch.bool)}, r"real_T \(3,\) must be \(T,\) = \(5,\)"),
    ({"real_T": torch.ones(5, dtype=torch.int64)}, "real_T must be bool, not torch.int64"),
    ({"floor": Floor(torch.full((3,), 0.5), MINE_TE)}, r"floor.share_T \(3,\) must be \(T,\) = \(5,\)"),
    ({"floor": Floor(torch.full((5,), 0.5), MINE_TE[:, :2])}, r"floor.mine_TE \(5, 2\) must be \(T, E\) = \(5, 4\)"),
    ({"floor": Floor(torch.full((5,), 0.5), MINE_TE.float())}, "floor.mine_TE must be bool, not torch.float32"),
    ({"floor": Floor(torch.tensor([0.5, 0.5, 1.0, 0.5, 0.5]), MINE_TE)}, "share_T of token 2 is 1; .* less than 1"),
    ({"floor": Floor(torch.full((5,), -0.1), MINE_TE)}, "share_T of token 0 is -0.1; it must be at least 0"),
    ({"floor": Floor(torch.full((5,), torch.nan), MINE_TE)}, "share_T of token 0 is nan"),
    ({"forced_TK": torch.tensor([[0, 9]] * 5)}, "forced_TK holds expert 9; there are 4, numbered from 0"),
    ({"forced_TK": torch.tensor([[0, -1]] * 5)}, "forced_TK holds expert -1"),
    ({"forced_TK": torch.tensor([[1, 1]] * 5)}, "forced_TK names expert 1 twice for one token; name 2 different"),
    ({"forced_TK": torch.ones(5, 2)}, "forced_TK must be int64, not torch.float32"),
    ({"top_k": 3}, r"top_k \(3\) must be that of the mixture \([12]\)"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wrong", "said"), WRONG, ids=[f"{next(iter(wrong))} {at}" for at, (wrong, _) in enumerate(WRONG)]
)
def test_every_gate_refuses_it(kind: str, wrong: dict[str, Any], said: str) -> None:
    moe = mixture(kind, 4, 2)
    assert moe is not None
    given = {"token_ids_T": EVERY_T, "num_experts": 4, "top_k": moe.top_k, **wrong}
    with pytest.raises(SpecError, match=said):
        decide(moe, tensors_of(moe, WIDTH), GateCall(torch.randn(5, WIDTH), **given))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([0, 1, VOCAB], f"token_ids_T holds {VOCAB}; the gate's table has {VOCAB} words, numbered from 0"),
        ([0, -1, 1], "token_ids_T holds -1"),
        ([0.0, 1.0, 2.0], "token_ids_T must be int64, not torch.float32"),
        ([True, True, False], "token_ids_T must be int64, not torch.bool"),
    ],
)  # fmt: skip
def test_a_table_refuses_words_that_it_does_not_have(words: list[float], said: str) -> None:
    moe = moe_of(Hash(), 4, 2)
    call = GateCall(torch.randn(3, WIDTH), 2, token_ids_T=torch.tensor(words), num_experts=4)
    with pytest.raises(SpecError, match=said):
        decide(moe, tensors_of(moe, WIDTH), call)
