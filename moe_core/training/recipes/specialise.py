"""Teach the experts: first one general expert on the logs of everybody, then each mapped expert on its domains.

Every token of a turn goes to the expert whose turn it is. The general turn ends by giving its weights to all experts:
the general ones stay alike (so that balance between them costs nothing), the mapped ones go on from there. One expert
learns after the other, so that only one holds gradients and moments: memory and checkpoints stay small. Nothing else
changes: routers, attention, embeddings. Shapes: T tokens, D model width, F expert width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from moe_core.errors import NonFiniteLoss
from moe_core.experts import MixedExperts
from moe_core.model.layers import MoeMlp
from moe_core.operations.learning import learning_rate_at
from moe_core.spec import RoutingSpec, TuneSpec
from moe_core.training.data import Dealer
from moe_core.training.forward import Pass, Share, forward
from moe_core.training.lanes import Lanes, summed
from moe_core.training.optimiser import MasterAdamW
from moe_core.training.recipes.learner import StepFigures
from moe_core.training.tally import Tally
from moe_core.training.trunk import CutDecoder, TrunkCache

CURRENT = "learner"


@dataclass(frozen=True, slots=True)
class Turn:
    """Who learns, from which rows of the domain map (None: from every window), and who gets what was learnt."""

    learner: int
    rows: tuple[int, ...] | None
    heirs: tuple[int, ...]

    @property
    def group(self) -> str:
        """The name of the learnt weights in a checkpoint."""
        return f"expert-{self.learner}" if self.rows is not None else "expert-general"


def turns_of(
    routing: RoutingSpec, num_experts: int, *, alike: bool, unlearning: frozenset[int] = frozenset()
) -> list[Turn]:
    """A turn for each mapped expert in expert order; before them the general turn, while all experts are alike.

    In a mixture that has learnt before, the general turn would overwrite what its experts know; it is left out. So are
    the turns of experts without weights (`unlearning`): identity and zero have nothing to learn.
    """
    turns = []
    if alike and routing.general_experts:
        turns.append(Turn(routing.general_experts[0], None, tuple(range(num_experts))))
    for expert in sorted({expert for domain in routing.domains for expert in domain.experts} - unlearning):
        rows = tuple(row for row, domain in enumerate(routing.domains) if expert in domain.experts)
        turns.append(Turn(expert, rows, (expert,)))
    return turns


def expert_tensors(layers: Sequence[MoeMlp], expert: int) -> dict[str, Tensor]:
    """One expert's weights in every expert layer, as views into the model."""
    views: dict[str, Tensor] = {}
    for mlp in layers:
        if isinstance(mlp.experts, MixedExperts):
            views[f"{mlp.layer}.packed"] = mlp.experts.part(expert).detach()
            continue
        views[f"{mlp.layer}.gate_up"] = mlp.experts.gate_up_E2FD.detach()[expert]
        views[f"{mlp.layer}.down"] = mlp.experts.down_EDF.detach()[expert]
        if mlp.experts.gate_up_bias_E2F is not None and mlp.experts.down_bias_ED is not None:
            views[f"{mlp.layer}.gate_up_bias"] = mlp.experts.gate_up_bias_E2F.detach()[expert]
            views[f"{mlp.layer}.down_bias"] = mlp.experts.down_bias_ED.detach()[expert]
    return views


class LoneExpert:
    """Working copies of one expert's weights, with gradients of their own; every token goes to it with weight one."""

    def __init__(self, layers: Sequence[MoeMlp], expert: int) -> None:
        views = expert_tensors(layers, expert)
        self.expert = expert
        self.weights = {name: view.clone().requires_grad_() for name, view in views.items()}

    def feed_forward(self, mlp: MoeMlp, x_TD: Tensor) -> Tensor:
        """The expert's output, and the shared expert's where there is one."""
        if isinstance(mlp.experts, MixedExperts):
            out_TD = mlp.experts.run(self.expert, x_TD, self.weights[f"{mlp.layer}.packed"])
            return mlp.with_shared(x_TD, out_TD)
        both_T2F = self._mapped(x_TD, f"{mlp.layer}.gate_up")
        inner_TF = mlp.experts.gating(*both_T2F.chunk(2, dim=-1))
        return mlp.with_shared(x_TD, self._mapped(inner_TF, f"{mlp.layer}.down"))

    def _mapped(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[name], self.weights.get(f"{name}_bias"))


class Specialise:
    """The recipe: `specialise_steps` for each turn."""

    stage = "specialise"

    def __init__(
        self, lanes: Lanes, cut: CutDecoder, cache: TrunkCache, routing: RoutingSpec, spec: TuneSpec
    ) -> None:
        self.lanes, self.cut, self.cache, self.routing, self.spec = lanes, cut, cache, routing, spec
        self.layers = list(cut.model.moe_layers())
        moe = cut.model.spec.moe
        assert moe is not None
        kinds = moe.expert_kinds or ()
        self.turns = turns_of(
            routing,
            moe.num_experts,
            alike=spec.layout is not None and not kinds,
            unlearning=frozenset(at for at, kind in enumerate(kinds) if not kind.matrices(1)),
        )
        self.num_steps = spec.specialise_steps * len(self.turns)
        self.peak_learning_rate = spec.specialise_learning_rate
        self.batch_windows = max(1, spec.tokens_per_batch // spec.window_tokens)
        self._dealers = [self._dealer(turn) for turn in self.turns] if self.num_steps else []
        self._finished = 0
        self._lone: LoneExpert | None = None
        self._optimiser: MasterAdamW | None = None

    def step(self, step: int) -> StepFigures:
        """One batch of the expert whose turn it is."""
        number, own_step = divmod(step, self.spec.specialise_steps)
        turn = self.turns[number]
        if self._lone is None or self._optimiser is None:
            self._lone, self._optimiser = self._begin(turn)
        lone = self._lone
        places = self._dealers[number].deal(own_step * self.batch_windows, self.batch_windows)
        whole = Share.of(self.cache.windows, places)
        self.lanes.each(self.cache.fill, self.cache.missing(places))
        done = self.lanes.each(lambda part: self._lane(lone, part, whole), self.lanes.split(places))
        passes = [passed for passed, _ in done]
        loss = sum(float(passed.losses_P.sum()) for passed in passes) / whole.num_targets
        if not math.isfinite(loss):
            raise NonFiniteLoss.of("loss_of_expert_not_finite", expert=turn.learner, loss=loss)
        rate = learning_rate_at(own_step, self.spec.specialise_steps, self.spec.specialise_learning_rate)
        gradients = summed([gradients for _, gradients in done])
        norm = self._optimiser.step(gradients, rate, self.spec.clip_norm, clip_each=False)
        if own_step + 1 == self.spec.specialise_steps:
            self._end(turn)
        return StepFigures(loss, passes, rate, norm)

    def _lane(self, lone: LoneExpert, places: Sequence[int], whole: Share) -> tuple[Pass, tuple[Tensor, ...]]:
        passed = forward(self.cut, self.cache, places, lone.feed_forward)
        objective = passed.losses_P.sum() / whole.num_targets
        return passed.without_graph(), torch.autograd.grad(objective, list(lone.weights.values()))

    def count_forced(self, tally: Tally, step: int) -> None:
        """Every token of the batch went to the expert whose turn it was."""
        learner = self.turns[step // self.spec.specialise_steps].learner
        tally.load_NLE[:, :, learner] += tally.tokens_N[:, None]

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Finished experts in the model's dtype, and the state of the one that is learning."""
        done = self.turns[: self._finished]
        kept = {turn.group: expert_tensors(self.layers, turn.learner) for turn in done}
        if self._optimiser is not None:
            kept[CURRENT] = self._optimiser.tensors()
        return kept

    def frozen_groups(self) -> frozenset[str]:
        """Experts that have had their turn."""
        return frozenset(turn.group for turn in self.turns[: self._finished])

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Finished experts into the model, in the order of their turns; the learning one with its moments."""
        for turn in self.turns:
            if turn.group in groups:
                self._bequeath(turn, groups[turn.group])
                self._finished += 1
        if CURRENT in groups and self._finished < len(self.turns):
            self._lone, self._optimiser = self._begin(self.turns[self._finished])
            self._optimiser.restore(groups[CURRENT])

    def _bequeath(self, turn: Turn, learnt: Mapping[str, Tensor]) -> None:
        for heir in turn.heirs:
            for name, view in expert_tensors(self.layers, heir).items():
                view.copy_(learnt[name])

    def _begin(self, turn: Turn) -> tuple[LoneExpert, MasterAdamW]:
        lone = LoneExpert(self.layers, turn.learner)
        return lone, MasterAdamW(lone.weights, weight_decay=self.spec.weight_decay)

    def _end(self, turn: Turn) -> None:
        assert self._lone is not None
        self._bequeath(turn, {name: weight.detach() for name, weight in self._lone.weights.items()})
        self._lone = self._optimiser = None
        self._finished += 1

    def _dealer(self, turn: Turn) -> Dealer:
        windows = self.cache.windows
        if turn.rows is None:
            return Dealer(range(len(windows)), self.spec.seed, "the general experts")
        places = sorted(place for row in turn.rows for place in windows.of_domain(row))
        name = ", ".join(self.routing.codes[row] for row in turn.rows)
        return Dealer(places, self.spec.seed, f"expert {turn.learner} ({name})")
