"""Teach an encoder–decoder: the loss of a target given its source with the losses of routing, and a step down it.

Shapes: B batch, S source tokens, T target tokens, V vocabulary.
Source: Fedus et al. 2021, "Switch Transformers", section 2.2 (balance); Zoph et al. 2022, "ST-MoE", eq. 5 (z-loss);
targets are shifted as in T5, Raffel et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from moe_core.errors import NonFiniteLoss, SpecError
from moe_core.model.context import RoutingContext
from moe_core.model.seq2seq import EncoderDecoder
from moe_core.routers import Routing
from moe_core.routers.losses import balance_loss, sequence_balance_loss, z_loss
from moe_core.routers.param_groups import clip_gradients, parameter_groups
from moe_core.spec.seq2seq import Seq2SeqSpec

# In the place of a label: nothing is asked there.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Sources with their targets; int64."""

    # (B, S): what is read.
    input_ids_BS: Tensor
    # (B, T): what is to be said, its end token too; IGNORED where a target has ended.
    labels_BT: Tensor
    # (B, S) bool: False for padding; None: all are real.
    real_BS: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """One number each, unweighted. Those of routing: the mean over the layers of a side, then the sum of both sides."""

    # Mean cross-entropy of the labels, in nats.
    text: Tensor
    balance: Tensor
    z: Tensor

    def total(self, balance_weight: float, z_weight: float) -> Tensor:
        """What is learnt from."""
        return self.text + balance_weight * self.balance + z_weight * self.z


def shifted(labels_BT: Tensor, spec: Seq2SeqSpec) -> Tensor:
    """What a decoder reads when it shall say the labels: the start token, then each label but the last."""
    start_B1 = torch.full_like(labels_BT[:, :1], spec.decoder_start_token_id)
    read_BT = torch.cat([start_B1, labels_BT[:, :-1]], 1)
    return read_BT.masked_fill(read_BT == IGNORED, spec.pad_token_id)


def losses_of(
    model: EncoderDecoder, batch: Batch, *, training: bool = False, rng: torch.Generator | None = None
) -> Losses:
    """The losses of a batch; while `training` gates explore (jitter, random seconds), by chance from `rng`.

    Padding and what follows a target's end count in no loss and take no place of an expert. Raises SpecError for labels
    without a batch, or without a single one that is asked for.
    """
    labels_BT = batch.labels_BT
    asked_BT = labels_BT != IGNORED
    if labels_BT.ndim != 2 or labels_BT.shape[0] != batch.input_ids_BS.shape[0] or not asked_BT.any():
        raise SpecError(
            f"labels {tuple(labels_BT.shape)} must be (B, T) for sources {tuple(batch.input_ids_BS.shape)}, and at "
            f"least one must not be {IGNORED}"
        )
    seen: dict[int, Routing] = {}
    context = RoutingContext(training=training, rng=rng, observe=seen.__setitem__)
    read_BT = shifted(labels_BT, model.spec)
    logits_BTV = model(batch.input_ids_BS, read_BT, batch.real_BS, context, asked_BT)
    text = cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)
    real_BS = batch.real_BS
    sides = (torch.ones_like(batch.input_ids_BS, dtype=torch.bool) if real_BS is None else real_BS, asked_BT)
    return Losses(
        text, _over_sides(model, seen, sides, _balance(model.spec)), _over_sides(model, seen, sides, _z)
    )


# (one layer's decisions, which of its tokens are real (B, S)) → a loss.
LayerLoss = Callable[[Routing, Tensor], Tensor]


def _over_sides(
    model: EncoderDecoder, seen: dict[int, Routing], sides: tuple[Tensor, Tensor], loss: LayerLoss
) -> Tensor:
    boundary = model.spec.encoder.num_layers
    total = torch.zeros((), device=sides[0].device)
    for is_decoder, real_BS in enumerate(sides):
        layers = [
            loss(routing, real_BS) for at, routing in seen.items() if (at >= boundary) == bool(is_decoder)
        ]
        total = total + (torch.stack(layers).mean() if layers else 0.0)
    return total


def _balance(spec: Seq2SeqSpec) -> LayerLoss:
    """By sequence where experts are full by sequence, else over the batch."""

    def by_sequence(routing: Routing, real_BS: Tensor) -> Tensor:
        number_B1 = torch.arange(real_BS.shape[0], device=real_BS.device)[:, None]
        return sequence_balance_loss(routing, real_BS.flatten(), number_B1.expand_as(real_BS).flatten())

    def over_all(routing: Routing, real_BS: Tensor) -> Tensor:
        return balance_loss(routing, real_BS.flatten())

    return by_sequence if spec.capacity_per_sequence else over_all


def _z(routing: Routing, real_BS: Tensor) -> Tensor:
    return z_loss(routing, real_BS.flatten())


class Learner:
    """AdamW on every weight of an encoder–decoder; gates have a learning rate and a clip of their own.

    Raises SpecError for packed experts, which cannot learn.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        *,
        learning_rate: float = 1e-4,
        router_learning_rate: float | None = None,
        clip_norm: float = 1.0,
        router_clip_norm: float = 1.0,
        weight_decay: float = 0.0,
        balance_weight: float = 1e-3,
        z_weight: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if model.spec.quantisation is not None:
            raise SpecError(
                f"the experts are packed in {model.spec.quantisation.bits} bits and cannot learn; "
                "start from the model before it was quantised, and quantise last"
            )
        self.model, self.clips = model, (clip_norm, router_clip_norm)
        self.weights = (balance_weight, z_weight)
        rates = (learning_rate, learning_rate if router_learning_rate is None else router_learning_rate)
        self.optimiser = torch.optim.AdamW(parameter_groups(model, *rates), weight_decay=weight_decay)
        self.rng = torch.Generator(device=model.embed_tokens.weight.device).manual_seed(seed)

    def step(self, batch: Batch) -> Losses:
        """One step; the losses before it. Raises NonFiniteLoss, with nothing changed, when the loss is not finite."""
        self.optimiser.zero_grad(set_to_none=True)
        losses = losses_of(self.model, batch, training=True, rng=self.rng)
        total = losses.total(*self.weights)
        if not torch.isfinite(total):
            raise NonFiniteLoss(f"the loss is {float(total)}; lower the learning rate or look at the data")
        total.backward()  # type: ignore[no-untyped-call]
        clip_gradients(self.model, *self.clips)
        self.optimiser.step()
        return Losses(losses.text.detach(), losses.balance.detach(), losses.z.detach())
