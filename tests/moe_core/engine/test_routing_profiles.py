"""Where a request will route is told from its tokens, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine import routing_profiles
from moe_core.engine.routing_profiles import NUM_TOPICS, RoutingProfiles

EXPERTS = 40


def profile(*experts: int) -> np.ndarray:
    share_M = np.zeros(EXPERTS, np.float32)
    share_M[list(experts)] = 1.0
    return share_M


def text(topic: int, number: int = 0) -> list[int]:
    return [*range(1000 * topic, 1000 * topic + 8), 9000 + 10 * topic + number]


def expected(profiles: RoutingProfiles, token_ids: list[int], domain: int = -1) -> np.ndarray:
    return profiles.visits_of(profiles.topics_of(token_ids, domain)[None])[0]


def test_a_request_is_expected_where_requests_of_its_words_went() -> None:
    profiles = RoutingProfiles(EXPERTS, 0)
    for number in range(10):
        for topic in range(3):
            profiles.learn(text(topic, number), -1, profile(2 * topic, 2 * topic + 1))
    for topic in range(3):
        found_M = expected(profiles, text(topic, 77))
        assert found_M[2 * topic] > 0.5 > found_M.sum() - found_M[2 * topic : 2 * topic + 2].sum()


def test_words_that_nobody_used_leave_the_domains_share_and_then_everybodys() -> None:
    profiles = RoutingProfiles(EXPERTS, 2)
    for number in range(30):
        profiles.learn(text(0, number), 0, profile(0))
        profiles.learn(text(1, number), 1, profile(1))
    unknown = [7777, 7778, 7779]
    assert expected(profiles, unknown, 0)[0] > 0.9
    assert expected(profiles, unknown, 1)[1] > 0.9
    assert expected(profiles, unknown)[:2] == pytest.approx([0.5, 0.5], abs=0.05)


def test_traffic_that_is_new_gets_a_topic_although_all_were_taken() -> None:
    """The first hundred requests are all of one kind and would leave no topic to another."""
    rng = np.random.default_rng(1)
    profiles = RoutingProfiles(EXPERTS, 0)
    for number in range(100):
        noise_M = rng.random(EXPERTS).astype(np.float32) * 0.05
        profiles.learn(text(0, number), -1, profile(0, 1) * 0.9 + noise_M)
    for number in range(2):
        profiles.learn(text(1, number), -1, profile(20, 21))
    assert expected(profiles, text(1, 5))[20] > 0.5
    assert expected(profiles, text(0, 5))[0] > 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2)), min_size=1, max_size=60), st.integers(0, 6))
def test_chances_are_chances_whatever_was_learnt(learnt: list[tuple[int, int]], topic: int) -> None:
    profiles = RoutingProfiles(EXPERTS, 3)
    for number, (kind, domain) in enumerate(learnt):
        profiles.learn(text(kind, number), domain, profile(kind, kind + number % 7))
    chance_C = profiles.topics_of(text(topic), topic % 4 - 1)
    assert chance_C.shape == (NUM_TOPICS,)
    assert chance_C.sum() == pytest.approx(1.0, abs=1e-5) and (chance_C >= 0).all()
    found_M = expected(profiles, text(topic))
    assert (found_M >= 0).all() and (found_M <= 1.0 + 1e-5).all()


def test_what_is_old_weighs_less(monkeypatch) -> None:
    monkeypatch.setattr(routing_profiles, "HALVED_AFTER", 20)
    profiles = RoutingProfiles(EXPERTS, 1)
    for topic in (0, 1):
        for number in range(20):
            profiles.learn(text(topic, number), 0, profile(topic))
    # Twenty were halved twice, and twenty once.
    found_M = expected(profiles, [7777], 0)
    assert found_M[1] / found_M[0] == pytest.approx(2.0, rel=0.1)
