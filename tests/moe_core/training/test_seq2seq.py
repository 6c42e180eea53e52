"""Encoder–decoders learn: the loss and every gradient are those of transformers, and a step lowers the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import moe_core
from moe_core import EncoderDecoder
from moe_core.errors import SpecError
from moe_core.model.seq2seq.init import random_encoder_decoder
from moe_core.operations import quantise
from moe_core.spec.operations import QuantiseSpec
from moe_core.training.seq2seq import IGNORED, Batch, Learner, losses_of, shifted
from tests.moe_core.tiny import SEQ2SEQ, STD, tiny_seq2seq

GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 97, (3, 13), generator=GENERATOR)
LABELS = torch.randint(3, 97, (3, 9), generator=GENERATOR)


def tiny(family: str, **changes: Any) -> EncoderDecoder:
    return random_encoder_decoder(tiny_seq2seq(family, **changes), 5, STD)


# One expert layer a side: where there are more, transformers pools their counts before it multiplies, which lets
# opposite imbalances cancel.
ONE_LAYER = {
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "nllb-moe": {"encoder_sparse_step": 4, "decoder_sparse_step": 4},
}
# What transformers multiplies: the shares of Switch sum to one, those of NLLB's two choices to two.
CHOICES = {"switch_transformers": 1, "nllb-moe": 2}


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_the_loss_and_all_gradients_are_those_of_transformers(
    family: str, tmp_path: Any, monkeypatch: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.nllb_moe import modeling_nllb_moe

    from tests.moe_core.model.test_seq2seq_parity import right_experts

    monkeypatch.setattr(modeling_nllb_moe.NllbMoeExperts, "forward", right_experts)
    ours = tiny(family, **ONE_LAYER[family])
    assert len(list(ours.moe_layers())) == 2
    moe_core.save(ours, tmp_path / "m")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    theirs.router_z_loss_coef = theirs.router_aux_loss_coef = 0.5
    told = theirs(input_ids=IDS, labels=LABELS, output_router_logits=True)
    losses = losses_of(ours, Batch(IDS, LABELS))
    has_z = family == "switch_transformers"
    total = losses.total(0.5 * CHOICES[family], 0.5 if has_z else 0.0)
    assert float(total.detach()) == pytest.approx(float(told.loss.detach()), rel=1e-5)
    aux = float((told.encoder_aux_loss + told.decoder_aux_loss).detach())
    assert float(losses.balance.detach()) * CHOICES[family] == pytest.approx(aux, rel=1e-5)
    total.backward()
    told.loss.backward()
    compare_gradients(ours, theirs)


def compare_gradients(ours: EncoderDecoder, theirs: Any) -> None:
    """Gates and experts among them, under the names of the files."""
    from moe_core.checkpoint.seq2seq import FAMILIES
    from moe_core.model.seq2seq.names import slots_of

    parameters, found = dict(ours.named_parameters()), dict(theirs.named_parameters())
    parts = set()
    for slot in slots_of(ours.spec, FAMILIES[ours.spec.family].names):
        mine, other = parameters[slot.parameter].grad, found[slot.tensor].grad
        assert mine is not None
        assert other is not None
        mine = slot.of(mine).reshape(slot.shape)
        assert float((mine - other).norm()) <= 2e-5 * float(other.norm()) + 1e-7, slot.tensor
        if other.any():
            parts.add(slot.part)
    assert {"router", "experts", "attention", "embedding", "dense_mlp", "norms"} <= parts


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_steps_lower_the_loss_and_move_routers_and_experts(family: str) -> None:
    model = tiny(family)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    learner = Learner(model, learning_rate=3e-3, balance_weight=0.01, z_weight=0.001)
    texts = [float(learner.step(Batch(IDS, LABELS)).text) for _ in range(8)]
    assert texts[-1] < 0.9 * texts[0]
    still = {name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])}
    assert not still
    assert any(".router." in name for name in before)


def test_losses_of_routing_pull_where_they_should() -> None:
    model = tiny("switch_transformers")
    learner = Learner(model, learning_rate=0.0, router_learning_rate=3e-3, balance_weight=100.0, z_weight=0.0)
    first = learner.step(Batch(IDS, LABELS))
    for _ in range(20):
        last = learner.step(Batch(IDS, LABELS))
    assert float(last.balance) < float(first.balance) - 0.05
    learner = Learner(tiny("switch_transformers"), learning_rate=3e-3, balance_weight=0.0, z_weight=100.0)
    first = learner.step(Batch(IDS, LABELS))
    for _ in range(20):
        last = learner.step(Batch(IDS, LABELS))
    assert float(last.z) < 0.7 * float(first.z)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_padding_and_what_follows_the_end_change_no_loss(family: str) -> None:
    model = tiny(family)
    real = torch.ones_like(IDS, dtype=torch.bool)
    real[1, 8:] = False
    labels = LABELS.clone()
    labels[1, 5:] = IGNORED

    def numbers(ids: Tensor, said: Tensor) -> list[float]:
        losses = losses_of(model, Batch(ids, said, real))
        return [float(losses.text), float(losses.balance), float(losses.z)]

    with torch.no_grad():
        one = numbers(IDS, labels)
        other = numbers(IDS.masked_fill(~real, 50), labels)
        assert one == pytest.approx(other, rel=1e-5)
        assert numbers(IDS.roll(1, 1), labels) != pytest.approx(one, rel=1e-5)


def test_the_decoder_reads_the_labels_one_step_late() -> None:
    spec = tiny_seq2seq("nllb-moe")
    labels = torch.tensor([[5, 6, 7, IGNORED, IGNORED]])
    start, pad = spec.decoder_start_token_id, spec.pad_token_id
    assert shifted(labels, spec).tolist() == [[start, 5, 6, 7, pad]]


def test_what_cannot_learn_is_refused() -> None:
    model = tiny("switch_transformers")
    packed, _ = quantise(model, QuantiseSpec())
    with pytest.raises(SpecError, match="packed in 4 bits and cannot learn"):
        Learner(packed)
    with pytest.raises(SpecError, match="at least one must not be -100"):
        losses_of(model, Batch(IDS, torch.full_like(LABELS, IGNORED)))
    with pytest.raises(SpecError, match=r"labels \(2, 9\) must be \(B, T\)"):
        losses_of(model, Batch(IDS, LABELS[:2]))
