"""From what is desired and what is observed to what to do next: a pure function, run again and again.

    plan(goal, observed) -> actions

It never drains the last ready replica of the live revision before the new revision is ready, and it gives nothing to do
when nothing needs doing. A failed replica holds its place, so that a version that cannot load is not started for ever;
`deployment_retry` frees the place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.states import COMING, ReplicaState, Wanted


@dataclass(frozen=True, slots=True)
class Goal:
    """What is desired."""

    revision: int
    replicas: int


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What is known of one replica."""

    id: int
    revision: int
    state: ReplicaState
    wanted: Wanted
    node: str

    @property
    def is_kept(self) -> bool:
        """Whether it is meant to run and has not ended."""
        return self.wanted == Wanted.RUN and (self.is_ready or self.state in COMING)

    @property
    def is_ready(self) -> bool:
        """Whether it answers requests."""
        return self.state == ReplicaState.READY

    @property
    def holds_place(self) -> bool:
        """Whether it counts against the number wanted: it runs, it comes, or it failed."""
        return self.is_kept or (self.wanted == Wanted.RUN and self.state == ReplicaState.FAILED)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that is online, and the memory it can still give."""

    name: str
    free_bytes: int
    num_replicas: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """What there is: the live revision, replicas, online nodes, and what one more replica needs."""

    live: int | None
    replicas: tuple[ReplicaView, ...]
    nodes: tuple[NodeView, ...]
    needs_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Create:
    """Start a replica of a revision on a node."""

    revision: int
    node: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a replica finish its answers and stop."""

    replica: int


@dataclass(frozen=True, slots=True)
class Promote:
    """Send requests to this revision from now on."""

    revision: int


@dataclass(frozen=True, slots=True)
class GoDark:
    """Send requests nowhere: nothing is wanted."""


Action = Create | Drain | Promote | GoDark


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and how many replicas have no node that could take them."""

    actions: tuple[Action, ...]
    unplaced: int = 0


def plan(goal: Goal, observed: Observed) -> Plan:
    """Decide the next actions."""
    if goal.replicas == 0:
        return _stop_everything(observed)
    target = [one for one in observed.replicas if one.revision == goal.revision]
    live = _live_after(goal, observed, target)
    creates, unplaced = _creates(goal, observed, target, live)
    promote = [Promote(goal.revision)] if live == goal.revision != observed.live else []
    actions: list[Action] = [*promote, *creates, *_surplus(goal, target), *_outdated(goal, observed, live)]
    return Plan(tuple(actions), unplaced)


def _stop_everything(observed: Observed) -> Plan:
    dark = [GoDark()] if observed.live is not None else []
    return Plan((*dark, *(Drain(one.id) for one in observed.replicas if one.holds_place)))


def _live_after(goal: Goal, observed: Observed, target: list[ReplicaView]) -> int | None:
    """The revision to send requests to: the new one as soon as it can carry what was wanted."""
    num_ready = sum(one.is_ready and one.is_kept for one in target)
    old_serves = any(
        one.is_ready and one.is_kept and one.revision == observed.live for one in observed.replicas
    )
    enough = goal.replicas if old_serves else 1
    return goal.revision if num_ready >= enough else observed.live


def _creates(
    goal: Goal, observed: Observed, target: list[ReplicaView], live: int | None
) -> tuple[list[Create], int]:
    """Fill empty places of the goal, and keep one replica of the live revision while the goal is not ready."""
    missing = [goal.revision] * max(0, goal.replicas - sum(one.holds_place for one in target))
    if live not in (None, goal.revision):
        serving = [one for one in observed.replicas if one.revision == live and one.holds_place]
        if not serving and live is not None:
            missing.insert(0, live)
    nodes = list(observed.nodes)
    creates: list[Create] = []
    for revision in missing:
        node = _roomiest(nodes, observed.needs_bytes)
        if node is None:
            break
        creates.append(Create(revision, node.name))
        nodes[nodes.index(node)] = NodeView(
            node.name, node.free_bytes - observed.needs_bytes, node.num_replicas + 1
        )
    return creates, len(missing) - len(creates)


def _roomiest(nodes: Iterable[NodeView], needs_bytes: int) -> NodeView | None:
    """The node with the fewest replicas among those with room; the one with more memory when they tie."""
    fitting = [node for node in nodes if node.free_bytes >= needs_bytes]
    return min(fitting, key=lambda node: (node.num_replicas, -node.free_bytes, node.name), default=None)


def _surplus(goal: Goal, target: list[ReplicaView]) -> list[Drain]:
    """More than wanted: those that failed go first, then those that are not ready, then the newest."""
    placed = sorted(
        (one for one in target if one.holds_place), key=lambda one: (one.is_kept, one.is_ready, -one.id)
    )
    return [Drain(one.id) for one in placed[: max(0, len(placed) - goal.replicas)]]


def _outdated(goal: Goal, observed: Observed, live: int | None) -> list[Drain]:
    """Replicas of revisions that are neither wanted nor live."""
    kept = {goal.revision, live}
    return [Drain(one.id) for one in observed.replicas if one.holds_place and one.revision not in kept]
