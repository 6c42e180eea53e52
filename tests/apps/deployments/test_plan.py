"""The plan converges from any state, asks for nothing twice, and never leaves the live revision without a replica."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given
from hypothesis import strategies as st

from deployments.plan import Create, Drain, Goal, GoDark, NodeView, Observed, Plan, Promote, ReplicaView, plan
from deployments.states import ReplicaState, Wanted

GB = 10**9
NODES = (NodeView("node-1", 64 * GB), NodeView("node-2", 64 * GB))
# What a node agent does with a replica, one look at a time; a healthy engine goes down this road.
ROAD = {
    ReplicaState.PENDING: ReplicaState.STARTING,
    ReplicaState.STARTING: ReplicaState.LOADING,
    ReplicaState.LOADING: ReplicaState.WARMING,
    ReplicaState.WARMING: ReplicaState.READY,
    ReplicaState.DRAINING: ReplicaState.STOPPED,
}

replicas = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(ReplicaState), st.sampled_from(Wanted)), max_size=6
).map(
    lambda found: tuple(
        ReplicaView(number, revision, state, wanted, "node-1")
        for number, (revision, state, wanted) in enumerate(found, start=1)
    )
)
states = st.tuples(
    st.builds(Goal, revision=st.integers(1, 3), replicas=st.integers(0, 4)),
    st.builds(
        Observed,
        live=st.one_of(st.none(), st.integers(1, 3)),
        replicas=replicas,
        nodes=st.just(NODES),
        needs_bytes=st.just(GB),
    ),
)


def applied(observed: Observed, decided: Plan) -> Observed:
    """What the reconciler writes."""
    live, rows = observed.live, list(observed.replicas)
    for action in decided.actions:
        if isinstance(action, Create):
            number = max((one.id for one in rows), default=0) + 1
            rows.append(ReplicaView(number, action.revision, ReplicaState.PENDING, Wanted.RUN, action.node))
        elif isinstance(action, Drain):
            rows = [
                dataclasses.replace(one, wanted=Wanted.DRAIN) if one.id == action.replica else one
                for one in rows
            ]
        elif isinstance(action, Promote):
            live = action.revision
        elif isinstance(action, GoDark):
            live = None
    return dataclasses.replace(observed, live=live, replicas=tuple(rows))


def looked_after(observed: Observed, choose: random.Random) -> Observed:
    """What node agents do meanwhile: some replicas take their next step."""
    rows = []
    for one in observed.replicas:
        if choose.random() < 0.6:
            drained = one.wanted == Wanted.DRAIN and one.state not in (
                ReplicaState.DRAINING, ReplicaState.STOPPED, ReplicaState.FAILED,
            )  # fmt: skip
            state = ReplicaState.DRAINING if drained else ROAD.get(one.state, one.state)
            one = dataclasses.replace(one, state=state)
        rows.append(one)
    return dataclasses.replace(observed, replicas=tuple(rows))


def serving(observed: Observed, revision: int | None) -> int:
    return sum(one.is_ready and one.is_kept and one.revision == revision for one in observed.replicas)


@given(states)
def test_what_was_planned_once_is_not_planned_again(state: tuple[Goal, Observed]) -> None:
    goal, observed = state
    once = applied(observed, plan(goal, observed))
    assert plan(goal, once).actions == ()


@given(states, st.randoms(use_true_random=False))
def test_it_converges_from_any_state_to_what_is_wanted(
    state: tuple[Goal, Observed], choose: random.Random
) -> None:
    goal, observed = state
    for _ in range(80):
        decided = plan(goal, observed)
        observed = looked_after(applied(observed, decided), choose)
    assert plan(goal, observed).actions == ()
    kept = [one for one in observed.replicas if one.is_kept]
    blocked = sum(
        one.state == ReplicaState.FAILED and one.wanted == Wanted.RUN and one.revision == goal.revision
        for one in observed.replicas
    )
    assert sum(one.revision == goal.revision for one in kept) == max(0, goal.replicas - blocked)
    if not blocked:
        assert {one.revision for one in kept} <= {goal.revision}
        assert observed.live == (goal.revision if goal.replicas else None)


@given(states, st.randoms(use_true_random=False))
def test_the_live_revision_keeps_a_ready_replica_until_the_new_one_is_ready(
    state: tuple[Goal, Observed], choose: random.Random
) -> None:
    goal, observed = state
    for _ in range(40):
        served_before = serving(observed, observed.live) > 0
        observed = applied(observed, plan(goal, observed))
        if served_before and goal.replicas:
            assert serving(observed, observed.live) > 0
        observed = looked_after(observed, choose)


@given(states)
def test_requests_are_sent_to_a_revision_only_when_a_replica_of_it_is_ready(
    state: tuple[Goal, Observed],
) -> None:
    goal, observed = state
    for action in plan(goal, observed).actions:
        if isinstance(action, Promote):
            assert serving(observed, action.revision) > 0


def test_a_failed_version_holds_its_place_while_the_old_one_serves() -> None:
    rows = (
        ReplicaView(1, 1, ReplicaState.READY, Wanted.RUN, "node-1"),
        ReplicaView(2, 2, ReplicaState.FAILED, Wanted.RUN, "node-1"),
    )
    assert plan(Goal(2, 1), Observed(1, rows, NODES, GB)) == Plan(())


def test_without_room_on_any_node_it_says_how_many_replicas_have_no_place() -> None:
    tight = (NodeView("node-1", 3 * GB),)
    decided = plan(Goal(1, 3), Observed(None, (), tight, 2 * GB))
    assert decided == Plan((Create(1, "node-1"),), unplaced=2)


def test_replicas_are_spread_over_the_nodes() -> None:
    decided = plan(Goal(1, 4), Observed(None, (), NODES, GB))
    assert sorted(action.node for action in decided.actions if isinstance(action, Create)) == [
        "node-1", "node-1", "node-2", "node-2",
    ]  # fmt: skip


def test_scaling_down_drains_what_is_not_ready_first() -> None:
    rows = (
        ReplicaView(1, 1, ReplicaState.LOADING, Wanted.RUN, "node-1"),
        ReplicaView(2, 1, ReplicaState.READY, Wanted.RUN, "node-1"),
    )
    assert plan(Goal(1, 1), Observed(1, rows, NODES, GB)).actions == (Drain(1),)


def test_stopping_goes_dark_before_it_drains() -> None:
    rows = (ReplicaView(1, 1, ReplicaState.READY, Wanted.RUN, "node-1"),)
    assert plan(Goal(1, 0), Observed(1, rows, NODES, GB)).actions == (GoDark(), Drain(1))
