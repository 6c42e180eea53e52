"""Teach each mapped expert its domains: every token of their logs goes to that expert alone.

One expert learns after the other, so that only one holds gradients and moments: memory and checkpoints stay small.
Nothing else changes: routers, general experts, attention. Shapes: T tokens, D model width, F expert width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from moe_core.errors import NonFiniteLoss
from moe_core.model.layers import MoeMlp
from moe_core.spec import RoutingSpec, TuneSpec
from moe_core.training.data import Dealer
from moe_core.training.forward import Pass, Share, forward
from moe_core.training.lanes import Lanes, summed
from moe_core.training.metrics import Tally
from moe_core.training.optimiser import MasterAdamW, learning_rate_at
from moe_core.training.recipes.learner import StepFigures
from moe_core.training.trunk import CutDecoder, TrunkCache

CURRENT = "learner"


def expert_tensors(layers: Sequence[MoeMlp], expert: int) -> dict[str, Tensor]:
    """One expert's weights in every expert layer, as views into the model."""
    views: dict[str, Tensor] = {}
    for mlp in layers:
        views[f"{mlp.layer}.gate_up"] = mlp.experts.gate_up_E2FD.detach()[expert]
        views[f"{mlp.layer}.down"] = mlp.experts.down_EDF.detach()[expert]
    return views


class LoneExpert:
    """Working copies of one expert's weights, with gradients of their own; every token goes to it with weight one."""

    def __init__(self, layers: Sequence[MoeMlp], expert: int) -> None:
        self.views = expert_tensors(layers, expert)
        self.weights = {name: view.clone().requires_grad_() for name, view in self.views.items()}

    def feed_forward(self, mlp: MoeMlp, x_TD: Tensor) -> Tensor:
        """The expert's output, and the shared expert's where there is one."""
        gate_TF, up_TF = linear(x_TD, self.weights[f"{mlp.layer}.gate_up"]).chunk(2, dim=-1)
        out_TD = linear(silu(gate_TF) * up_TF, self.weights[f"{mlp.layer}.down"])
        return out_TD if mlp.shared_expert is None else out_TD + mlp.shared_expert(x_TD)

    def write_back(self) -> None:
        """Put what was learnt into the model."""
        for name, weight in self.weights.items():
            self.views[name].copy_(weight.detach())


class Specialise:
    """The recipe: `specialise_steps` for each mapped expert, in expert order."""

    stage = "specialise"

    def __init__(
        self, lanes: Lanes, cut: CutDecoder, cache: TrunkCache, routing: RoutingSpec, spec: TuneSpec
    ) -> None:
        self.lanes, self.cut, self.cache, self.routing, self.spec = lanes, cut, cache, routing, spec
        self.layers = list(cut.model.moe_layers())
        self.experts = sorted({expert for domain in routing.domains for expert in domain.experts})
        self.num_steps = spec.specialise_steps * len(self.experts)
        self.peak_learning_rate = spec.specialise_learning_rate
        self.batch_windows = max(1, spec.tokens_per_batch // spec.window_tokens)
        self._dealers = {expert: self._dealer(expert) for expert in self.experts} if self.num_steps else {}
        self._finished = 0
        self._lone: LoneExpert | None = None
        self._optimiser: MasterAdamW | None = None

    def step(self, step: int) -> StepFigures:
        """One batch of the expert whose turn it is."""
        turn, own_step = divmod(step, self.spec.specialise_steps)
        expert = self.experts[turn]
        if self._lone is None or self._optimiser is None:
            self._lone, self._optimiser = self._begin(expert)
        lone = self._lone
        places = self._dealers[expert].deal(own_step * self.batch_windows, self.batch_windows)
        whole = Share.of(self.cache.windows, places)
        self.lanes.each(self.cache.fill, self.cache.missing(places))
        done = self.lanes.each(lambda part: self._lane(lone, part, whole), self.lanes.split(places))
        passes = [passed for passed, _ in done]
        loss = sum(float(passed.losses_P.sum()) for passed in passes) / whole.num_targets
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss of expert {expert} is {loss}")
        rate = learning_rate_at(own_step, self.spec.specialise_steps, self.spec.specialise_learning_rate)
        gradients = summed([gradients for _, gradients in done])
        norm = self._optimiser.step(gradients, rate, self.spec.clip_norm, clip_each=False)
        if own_step + 1 == self.spec.specialise_steps:
            self._end()
        return StepFigures(loss, passes, rate, norm)

    def _lane(self, lone: LoneExpert, places: Sequence[int], whole: Share) -> tuple[Pass, tuple[Tensor, ...]]:
        passed = forward(self.cut, self.cache, places, lone.feed_forward)
        objective = passed.losses_P.sum() / whole.num_targets
        return passed.without_graph(), torch.autograd.grad(objective, list(lone.weights.values()))

    def count_forced(self, tally: Tally, step: int) -> None:
        """Every token of the batch went to the expert whose turn it was."""
        tally.load_NLE[:, :, self.experts[step // self.spec.specialise_steps]] += tally.tokens_N[:, None]

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Finished experts in the model's dtype, and the state of the one that is learning."""
        kept = {
            _group_of(expert): expert_tensors(self.layers, expert)
            for expert in self.experts[: self._finished]
        }
        if self._optimiser is not None:
            kept[CURRENT] = self._optimiser.tensors()
        return kept

    def frozen_groups(self) -> frozenset[str]:
        """Experts that have had their turn."""
        return frozenset(_group_of(expert) for expert in self.experts[: self._finished])

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Finished experts into the model; the learning one with its moments."""
        for expert in self.experts:
            if _group_of(expert) in groups:
                for name, view in expert_tensors(self.layers, expert).items():
                    view.copy_(groups[_group_of(expert)][name])
                self._finished += 1
        if CURRENT in groups and self._finished < len(self.experts):
            self._lone, self._optimiser = self._begin(self.experts[self._finished])
            self._optimiser.restore(groups[CURRENT])

    def _begin(self, expert: int) -> tuple[LoneExpert, MasterAdamW]:
        lone = LoneExpert(self.layers, expert)
        return lone, MasterAdamW(lone.weights, weight_decay=self.spec.weight_decay)

    def _end(self) -> None:
        assert self._lone is not None
        self._lone.write_back()
        self._lone = self._optimiser = None
        self._finished += 1

    def _dealer(self, expert: int) -> Dealer:
        mine = [row for row, domain in enumerate(self.routing.domains) if expert in domain.experts]
        places = sorted(place for row in mine for place in self.cache.windows.of_domain(row))
        name = ", ".join(self.routing.codes[row] for row in mine)
        return Dealer(places, self.spec.seed, f"expert {expert} ({name})")


def _group_of(expert: int) -> str:
    return f"expert-{expert}"
