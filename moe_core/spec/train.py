"""What a tuning run does: stages, sizes, learning rates, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec.base import Fault, Spec, Weight, refuse
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.gate import Quantile, gate_faults
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.model import MoeSpec
from moe_core.spec.routing import RoutingSpec
from moe_core.spec.temperature import TemperatureSpec
from moe_core.spec.twins import Hold

Steps = Annotated[int, Field(ge=0, le=1_000_000)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
BalanceForm = Literal["running", "switch", "sequence", "global"]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]


Norm = Annotated[float, Field(gt=0.0, le=1e3)]


class TuneSpec(Spec):
    """Upcycle, specialise the experts, tune the router alone, and the deranged control beside it."""

    layout: LayoutSpec | None = None
    """The experts to lay over a dense model; null for a mixture."""
    routing: RoutingSpec
    """Which experts serve which domain, and how gates are held to that."""
    window_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens of a training window."""
    tokens_per_batch: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    """Tokens of a step."""
    specialise_steps: Steps = 16
    """Steps in which experts learn their domains."""
    route_steps: Steps = 16
    """Steps in which gates alone learn."""
    specialise_learning_rate: Rate = 3e-4
    """Of the experts."""
    route_learning_rate: Rate = 3e-2
    """Of the gates."""
    weight_decay: Weight = 0.0
    """Of experts, and of the maps of gates while these learn; what gates learn beside their maps (biases, noise, the
    correction of an overflow) is not pulled."""
    clip_norm: Norm = 1.0
    """The norm that all gradients are clipped to together."""
    route_clip_norm: Norm | None = None
    """The norm that each gate's gradients are clipped to by themselves; null: `clip_norm`."""
    explore: bool = True
    """While routers learn, gates do what they do in training: learnt noise, jitter, a random second expert, evened loads,
    the training capacity. False: they choose as when serving."""
    gate_noise: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Standard deviation of normal noise on all logits at the first step; it falls to 0 at the last one."""
    balance_bias_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How far the bias that picks experts moves against their load after each step; 0 leaves it where it is."""
    balance_form: BalanceForm = "running"
    """Whose load the balance loss goes by: that of the last batches (running), of this whole batch (global), of each lane's
    part of it (switch), or of each window by itself (sequence). Its weight is the policy's."""
    importance_weight: Weight = 0.0
    """Weight of the squared variation of the experts' summed weights."""
    gate_loss_weight: Weight = 0.1
    """Weight of losses that gates compute themselves (noisy_topk's smooth load)."""
    capacity: CapacitySpec | None = None
    """How full experts may be while routers learn; null: as the model says. It is not saved with the model, so that
    `eval_factor`, the room when serving, is refused: it belongs to a layout."""
    temperature_schedule: TemperatureSpec | None = None
    """In the place of the model's temperature, from its own step on; saved with the model at the step that was reached."""
    twin_hold: Hold | None = None
    """Of a model with twins: so much is added to the logit of the twin that a hash picks at the first step, falling evenly
    to 0 at the last; the gate alone chooses then, and in the model that is saved; it needs two `route_steps`.
    Null: as the model says."""
    lm_weight: Weight = 1.0
    """Weight of the loss on the text itself while gates learn."""
    held_out_windows: Annotated[int, Field(ge=1, le=10_000)] = 24
    """At most so many held-out windows of each domain are measured on."""
    control: bool = True
    """Tune a second model beside it whose domains are given one another's experts."""
    upcycle_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Standard deviation of the noise on new experts, relative to each matrix's own."""
    router_std: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """Standard deviation of new gates' weights."""
    seed: Seed = 0
    """Where its random numbers start."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """How numbers are held; auto: as they are stored, or in float32 where that is quicker on the machine that trains."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains; auto: the GPU where there is one."""
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Lanes of the CPU; a GPU has one."""
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=100_000)] = 4
    """Steps between checkpoints."""
    checkpoint_min_seconds: Annotated[float, Field(ge=0.0, le=86_400.0)] = 20.0
    """A checkpoint that is due by its steps still waits until so many seconds have passed since the last one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.explore and (self.gate_noise or self.capacity is not None or self.twin_hold is not None):
            refuse([(("explore",), CORE.say("only_exploring"))])
        if self.capacity is not None and self.capacity.eval_factor is not None:
            said = CORE.say("room_when_serving", factor=f"{self.capacity.eval_factor:g}")
            refuse([(("capacity", "eval_factor"), said)])
        if self.twin_hold and self.route_steps < 2:
            said = CORE.say("hold_without_steps", hold=f"{self.twin_hold:g}", steps=self.route_steps)
            refuse([(("twin_hold",), said)])
        return self

    @property
    def gate_clip_norm(self) -> float:
        """What each gate's gradient is clipped to."""
        return self.clip_norm if self.route_clip_norm is None else self.route_clip_norm

    def check_gates(self, moe: MoeSpec) -> None:
        """Raise SpecError when a mixture's gates cannot do what is asked of them."""
        faults = tuple(self._gate_faults(moe))
        if faults:
            refusal = SpecError("; ".join(sentence for _place, sentence in faults))
            refusal.faults = faults
            raise refusal

    def twin_hold_at(self, step: int) -> float | None:
        """The hold on twins at a step of the routers; None where the model's own stands."""
        if self.twin_hold is None:
            return None
        return self.twin_hold * (1.0 - step / max(1, self.route_steps - 1))

    def _bias_faults(self, moe: MoeSpec) -> Iterator[Fault]:
        has_bias = getattr(moe.gate, "selection_bias", False)
        is_solved = has_bias and self.explore and isinstance(moe.gate, Quantile)
        if is_solved or not has_bias:
            code, rate = "bias_is_solved" if is_solved else "no_bias_to_move", f"{self.balance_bias_rate:g}"
            yield ("balance_bias_rate",), CORE.say(code, rate=rate, gate=moe.gate.kind)

    def _gate_faults(self, moe: MoeSpec) -> Iterator[Fault]:
        if self.twin_hold is not None and moe.twins is None:
            yield ("twin_hold",), CORE.say("no_twins")
        if self.balance_bias_rate:
            yield from self._bias_faults(moe)
        if self.capacity is None:
            return
        for _place, sentence in gate_faults(moe.gate, self.capacity, moe.num_experts, moe.top_k):
            yield ("capacity",), sentence
        if self.capacity.overflow == "learned" and (
            moe.capacity is None or moe.capacity.overflow != "learned"
        ):
            yield ("capacity", "overflow"), CORE.say("no_learned_overflow")
