"""What a tuning run asks of routers beside the language model: one number out of the losses that a policy weighs.

Shapes: T tokens, L expert layers, E experts, N domains.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import torch
from torch import Tensor

from moe_core.routers import Routing, load_of
from moe_core.routers.losses import (
    balance_loss,
    importance_loss,
    label_loss,
    sequence_balance_loss,
    share_of_load,
    z_loss,
)
from moe_core.spec import TuneSpec
from moe_core.spec.gate import Gate
from moe_core.spec.train import BalanceForm
from moe_core.training.forward import Pass


def routing_loss(
    passed: Pass,
    spec: TuneSpec,
    labels_NE: Tensor,
    share_LE: Tensor,
    cost_E: Tensor | None,
    gate: Gate,
) -> Tensor:
    """Label, balance, importance and z losses and those of the gates themselves, each the mean over expert layers.

    `share_LE` (each row sums to one) are the shares of assignments that the "global" and "running" balance losses go by.
    Labels ask for the shares of `gate`.
    """
    policy, total = spec.routing, passed.losses_P.new_zeros(())
    for at, routing in enumerate(passed.routings.values()):
        if policy.label_weight and policy.domains:
            labels = label_loss(routing, labels_NE, passed.domain_T, passed.real_T, gate)
            total = total + policy.label_weight * labels
        if policy.balance_weight:
            total = total + policy.balance_weight * _balance(
                passed, routing, spec.balance_form, share_LE[at], cost_E
            )
        if spec.importance_weight:
            total = total + spec.importance_weight * importance_loss(routing, passed.real_T)
        if policy.z_weight:
            total = total + policy.z_weight * z_loss(routing, passed.real_T)
        for loss in routing.losses.values():
            total = total + spec.gate_loss_weight * loss
    return total / max(1, len(passed.routings))


def _balance(
    passed: Pass, routing: Routing, form: BalanceForm, share_E: Tensor, cost_E: Tensor | None
) -> Tensor:
    if form == "sequence":
        return sequence_balance_loss(routing, passed.real_T, passed.sequence_T, cost_E)
    own = form == "switch"
    return balance_loss(routing, passed.real_T, None if own else share_E, cost_E)


@torch.no_grad()
def loads_of(passed: Pass) -> Tensor:
    """(L, E) int64: how many choices of real tokens fell on each expert, before any was full."""
    return torch.stack([load_of(routing, passed.real_T) for routing in passed.routings.values()])


class Meeting:
    """Where lanes tell each other their loads in the middle of a step, so that all judge by the whole batch.

    A context manager around what a lane does before it tells: an error there lets the others go.
    """

    def __init__(self, num_lanes: int) -> None:
        self._barrier = threading.Barrier(num_lanes)
        self._loads: dict[int, Tensor] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._barrier.abort()

    @torch.no_grad()
    def share(self, lane: int, passed: Pass) -> Tensor:
        """(L, E): each expert's share of the assignments of all lanes; waits for the others."""
        self._loads[lane] = loads_of(passed)
        # Broken: another lane failed, its error ends the step, and what is computed here is thrown away.
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait()
        return share_of_load(torch.stack(list(self._loads.values())).sum(0))
