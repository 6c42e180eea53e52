"""Tune the routers alone: every gate learns where the tokens of each domain do best, and to share the load.

The loss is the language model's, plus the label loss (the map of domains to experts), plus the balance, importance and z
losses. Experts, attention and embeddings are frozen: no gradient of theirs is computed. Shapes: N domains, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_core.errors import NonFiniteLoss
from moe_core.model.context import RoutingContext
from moe_core.operations.learning import learning_rate_at
from moe_core.routers.losses import share_of_load
from moe_core.routers.mapped import label_table
from moe_core.spec import RoutingSpec, TuneSpec
from moe_core.training.data import Dealer
from moe_core.training.forward import Pass, Share, forward, router_inputs
from moe_core.training.gates import BalanceBias, maps_of, other_tensors, seed_of
from moe_core.training.lanes import Lanes, summed
from moe_core.training.optimiser import MasterAdamW
from moe_core.training.recipes.learner import StepFigures
from moe_core.training.routing_losses import Meeting, loads_of, routing_loss
from moe_core.training.tally import Tally, costs_of
from moe_core.training.trunk import CutDecoder, TrunkCache
from moe_core.training.whitened_adamw import WhitenedAdamW
from moe_core.training.whitening import Whitening

CURRENT = "gates"
LOAD = "load"
LOAD_MEMORY = 0.5
# Batches from which the coordinates of the routers' inputs are taken.
WHITENING_BATCHES = 4


class TuneRouter:
    """The recipe: `route_steps` batches that hold as many windows of each domain."""

    def __init__(
        self,
        lanes: Lanes,
        cut: CutDecoder,
        cache: TrunkCache,
        routing: RoutingSpec,
        spec: TuneSpec,
        stage: str = "route",
    ) -> None:
        self.stage = stage
        self.lanes, self.cut, self.cache, self.routing, self.spec = lanes, cut, cache, routing, spec
        self.num_steps = spec.route_steps
        self.peak_learning_rate = spec.route_learning_rate
        moe = cut.model.spec.moe
        assert moe is not None
        self.gate = moe.gate
        self.labels_NE = label_table(routing, moe).to(cut.device)
        costs_E = costs_of(cut.model.spec)
        self.cost_E = None if costs_E is None else costs_E.to(cut.device)
        # Share of assignments of each expert, remembered over some steps: one batch alone is too small to judge by.
        shape = (len(moe.moe_layers), moe.num_experts)
        self._load_LE = torch.full(shape, 1.0 / moe.num_experts, device=cut.device)
        self.gates = maps_of(cut.model)
        # What else of a gate learns: noise, a bias of the logits, the correction of an overflow.
        self.others = other_tensors(cut.model)
        for gate in (*self.gates.values(), *self.others.values()):
            gate.requires_grad_()
        if not self.gates:
            # A table decides: experts learn under it, and there is nothing to teach here.
            self.num_steps = 0
        self._beside = MasterAdamW(self.others) if self.others else None
        self.balance = BalanceBias(cut.model, spec.balance_bias_rate, self.cost_E)
        schedule = moe.temperature_schedule
        self.first_step = None if schedule is None else schedule.step
        self._optimiser: WhitenedAdamW | None = None
        self._dealers = self._dealers_by_domain() if self.num_steps else []
        windows = max(1, spec.tokens_per_batch // spec.window_tokens)
        self.windows_each = max(1, windows // max(1, len(self._dealers)))

    def step(self, step: int) -> StepFigures:
        """One batch of all domains."""
        places = self._places(step)
        whole = Share.of(self.cache.windows, places)
        self.lanes.each(self.cache.fill, self.cache.missing(places))
        parts = list(enumerate(self.lanes.split(places)))
        meeting = Meeting(len(parts))
        done = self.lanes.each(
            lambda part: self._lane(*part, whole, self._surroundings(step, part[0]), meeting), parts
        )
        passes = [passed for passed, _ in done]
        loss = sum(float(passed.losses_P.sum()) for passed in passes) / whole.num_targets
        if not math.isfinite(loss):
            raise NonFiniteLoss.of("loss_not_finite", loss=loss)
        rate = learning_rate_at(step, self.num_steps, self.spec.route_learning_rate)
        gradients = summed([gradients for _, gradients in done])
        norm = self._learn(gradients, rate)
        self._remember_load(passes)
        self.balance.move(passes)
        return StepFigures(loss, passes, rate, norm)

    def count_forced(self, tally: Tally, step: int) -> None:
        """Nothing: the routers decided."""

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The gates with their moments, and the load so far."""
        if not self.num_steps:
            return {}
        beside = {} if self._beside is None else self._beside.tensors()
        learnt = {**self._learnt().tensors(), **beside, **self.balance.tensors()}
        return {CURRENT: {**learnt, LOAD: self._load_LE}}

    def frozen_groups(self) -> frozenset[str]:
        """None: gates learn to the last step."""
        return frozenset()

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Gates, moments and load back."""
        if CURRENT in groups:
            self._learnt().restore(groups[CURRENT])
            if self._beside is not None:
                self._beside.restore(groups[CURRENT])
            self.balance.restore(groups[CURRENT])
            self._load_LE = groups[CURRENT][LOAD].to(self.cut.device, copy=True)

    def _places(self, step: int) -> list[int]:
        """The windows of one batch: as many of each domain."""
        return [
            place
            for dealer in self._dealers
            for place in dealer.deal(step * self.windows_each, self.windows_each)
        ]

    def _learnt(self) -> WhitenedAdamW:
        """The optimiser, made on first need: the coordinates come from what the routers see before they learn."""
        if self._optimiser is None:
            inputs = self._router_inputs()
            found = {router: Whitening.of(input_TD) for router, input_TD in inputs.items()}
            # The maps of one layer see the same.
            whitenings = {name: found[_router_of(name)] for name in self.gates}
            self._optimiser = WhitenedAdamW(self.gates, whitenings, weight_decay=self.spec.weight_decay)
        return self._optimiser

    def _router_inputs(self) -> dict[str, Tensor]:
        """What each router sees of the first batches, padding left out: (T, D) by its name."""
        parts: list[dict[str, Tensor]] = self.lanes.each(
            lambda step: router_inputs(self.cut, self.cache, self._places(step)),
            range(WHITENING_BATCHES),
        )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _learn(self, gradients: Sequence[Tensor], rate: float) -> float:
        """One step of the maps and of what is beside them; nothing has changed when a gradient is not finite."""
        for name, gradient in zip((*self.gates, *self.others), gradients, strict=True):
            if not torch.isfinite(gradient).all():
                raise NonFiniteLoss.of("gradient_not_finite", name=name)
        maps, others = gradients[: len(self.gates)], gradients[len(self.gates) :]
        norm = self._learnt().step(maps, rate, self.spec.gate_clip_norm)
        if self._beside is None:
            return norm
        return math.hypot(norm, self._beside.step(others, rate, self.spec.gate_clip_norm, clip_each=True))

    def _surroundings(self, step: int, lane: int) -> RoutingContext:
        """How gates behave in one step of one lane; chance hangs on nothing else."""
        generator = torch.Generator(self.cut.device).manual_seed(
            seed_of(self.spec.seed, self.stage, step, lane)
        )
        return RoutingContext(
            training=self.spec.explore,
            rng=generator,
            step=None if self.first_step is None else self.first_step + step,
            noise=self.spec.gate_noise * (1.0 - step / max(1, self.num_steps - 1)),
            capacity=self.spec.capacity,
            twin_hold=self.spec.twin_hold_at(step),
        )

    def _lane(
        self,
        lane: int,
        places: Sequence[int],
        whole: Share,
        surroundings: RoutingContext,
        meeting: Meeting,
    ) -> tuple[Pass, tuple[Tensor, ...]]:
        with meeting:
            passed = forward(self.cut, self.cache, places, surroundings=surroundings)
            is_global = self.spec.balance_form == "global"
            share_LE = meeting.share(lane, passed) if is_global else self._load_LE
        mine = int(passed.real_T.sum()) / whole.num_tokens
        language = passed.losses_P.sum() / whole.num_targets
        routing = routing_loss(passed, self.spec, self.labels_NE, share_LE, self.cost_E, self.gate)
        objective = self.spec.lm_weight * language + mine * routing
        leaves = [*self.gates.values(), *self.others.values()]
        gradients = torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True)
        return passed.without_graph(), gradients

    def _remember_load(self, passes: Sequence[Pass]) -> None:
        """Take one batch's load into the running one: choices as gates wanted them, before any expert was full."""
        share_LE = share_of_load(torch.stack([loads_of(passed) for passed in passes]).sum(0))
        self._load_LE = LOAD_MEMORY * self._load_LE + (1.0 - LOAD_MEMORY) * share_LE

    def _dealers_by_domain(self) -> list[Dealer]:
        windows = self.cache.windows
        dealers = [
            Dealer(windows.of_domain(row), self.spec.seed, code)
            for row, code in enumerate(self.routing.codes)
        ]
        others = windows.of_domain(-1)
        return [*dealers, Dealer(others, self.spec.seed, "no domain")] if others else dealers


def _router_of(name: str) -> str:
    """The router that a map belongs to, as `router_inputs` calls it."""
    return ".".join(name.split(".")[:2])
