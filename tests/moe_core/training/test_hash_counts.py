"""A hash gate that balances by frequency counts the training logs of its job, whatever numbers the words have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_core.checkpoint.store import load
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import SpecError
from moe_core.model.init import random_decoder
from moe_core.operations import upcycle
from moe_core.routers.start import Words
from moe_core.spec import LayoutSpec
from moe_core.spec.operations import UpcycleSpec
from moe_core.training import run_job
from moe_core.training.data import token_counts
from tests.moe_core.tiny import STD, tiny_llama
from tests.moe_core.training.world import RecordingIO, tune_spec

LAYOUT = {
    "moe_layers": [1, 3], "num_experts": 4, "top_k": 2, "gate": {"kind": "hash", "choice": "balanced"},
}  # fmt: skip


def max_vio(table_VK: Tensor, counts_V: Tensor) -> float:
    load_E = torch.zeros(4, dtype=torch.float64).index_add(
        0, table_VK.long().flatten(), counts_V.double().repeat_interleave(table_VK.shape[1])
    )
    return float(load_E.max() / load_E.mean() - 1.0)


def logs(path: Path, letters: str) -> None:
    """Words whose letters are as frequent as their place in `letters` says."""
    with path.open("w") as handle:
        for row in range(40):
            text = " ".join(letters[: 1 + (row * place) % len(letters)] for place in range(1, 6))
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
            for domain in ("sums", "words"):
                handle.write(json.dumps({"messages": messages, "domain": domain}) + "\n")


@pytest.mark.parametrize("letters", ["zyxwvutsrqponm", "aqbrcsdteufvgw"])
@pytest.mark.parametrize("job", ["tune", "operate"])
def test_a_job_counts_its_training_logs(world: Path, tmp_path: Path, job: str, letters: str) -> None:
    """Vocabulary numbers follow the alphabet here, so a table by rank is wrong for both orders."""
    logs(tmp_path / "train.jsonl", letters)
    io = RecordingIO(world, tmp_path)
    io.inputs = {
        **io.inputs,
        "train.jsonl": tmp_path / "train.jsonl",
        "held_out.jsonl": tmp_path / "train.jsonl",
    }
    spec = (
        tune_spec(layout=LAYOUT, specialise_steps=1, control=False)
        if job == "tune"
        else {"operation": {"kind": "upcycle", "layout": LAYOUT}, "dtype": "float32"}
    )
    run_job(job, spec, io)
    dense = load(world / "model")
    counts_V = token_counts(tmp_path / "train.jsonl", Tokenizer(world / "model"), dense.spec.vocab_size)
    by_rank, _ = upcycle(dense, UpcycleSpec(layout=LayoutSpec.parse(LAYOUT)))
    for made, ranked in zip(load(io.out_dir).moe_layers(), by_rank.moe_layers(), strict=True):
        even = max_vio(made.router.tensors["table"], counts_V)
        assert even < 0.12
        assert max_vio(ranked.router.tensors["table"], counts_V) > 2 * even


def test_counts_that_do_not_fit_are_refused(world: Path) -> None:
    dense = load(world / "model")
    spec = UpcycleSpec(layout=LayoutSpec.parse(LAYOUT))
    with pytest.raises(SpecError, match="token counts of 3 entries for a vocabulary of"):
        upcycle(dense, spec, counts_V=torch.ones(3))
    with pytest.raises(SpecError, match="not negative"):
        Words(counts_V=torch.tensor([1.0, -1.0]))


def test_words_that_were_never_counted_are_spread_too() -> None:
    layout = LayoutSpec.parse(LAYOUT)
    moe = layout.applied_to(tiny_llama(num_hidden_layers=4)).moe
    assert moe is not None
    counts_V = torch.zeros(400)
    counts_V[:40] = torch.arange(40, 0, -1)
    table_VK = Words(counts_V=counts_V).table(moe, 400, 0)
    unseen_E = torch.bincount(table_VK[40:].flatten(), minlength=4)
    assert float(unseen_E.max() / unseen_E.float().mean()) < 1.1
    assert max_vio(table_VK, counts_V) < 0.05


def test_drawn_tables_differ_between_layers_and_clusters_do_not() -> None:
    for choice, alike in (("random", False), ("balanced", False), ("clustered", True)):
        layout = {**LAYOUT, "moe_layers": (0, 2), "gate": {"kind": "hash", "choice": choice}}
        model = random_decoder(LayoutSpec.parse(layout).applied_to(tiny_llama()), 3, STD)
        first, second = (mlp.router.tensors["table"] for mlp in model.moe_layers())
        assert torch.equal(first, second) == alike
