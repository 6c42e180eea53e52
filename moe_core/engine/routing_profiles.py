"""What a request will route to, told from its own tokens before any of them is computed.

Requests that have ended are sorted into a few topics by where their tokens went (sequential k-means of their profiles: the
share of a request's tokens that visited each expert). For each topic it is known how many of its requests held which
token. A request that waits belongs to the topics by naive Bayes, its domain's topics or everybody's being the prior, and
is expected to route as these do. Tokens of one text say the same thing many times over: their evidence grows with the root
of their number.

Shapes: C topics, M = expert layers · experts, N domains (row 0: none), B buckets of token ids, U different buckets.
Source: MacQueen 1967 (sequential k-means); McCallum and Nigam 1998, "A Comparison of Event Models for Naive Bayes"
(the multivariate Bernoulli's presence of words); Weinberger et al. 2009 (hashed features).
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NUM_TOPICS, NUM_BUCKETS = 16, 8192
# Knuth's multiplier: the golden ratio of 2 to the 32nd; the product's middle bits are the bucket.
MULTIPLIER, SHIFT = 2_654_435_761, 8
# Of a long text its end is looked at.
MOST_TOKENS = 1024
# How far tokens are believed, and the requests' worth of all topics' that a topic and a domain are given.
BELIEF, PRIOR_REQUESTS, PRIOR_OF_DOMAIN = 4.0, 20.0, 2.0
# A topic's profile follows its newest so many requests; counts are halved after so many of all.
FOLLOWED, HALVED_AFTER = 50, 8192


class RoutingProfiles:
    """Topics learnt from the requests of an engine, in memory that does not grow."""

    def __init__(self, num_visits: int, num_domains: int) -> None:
        """`num_visits`: M; `num_domains`: N - 1."""
        self.num_learnt = 0
        self._profiles_CM = np.zeros((NUM_TOPICS, num_visits), np.float32)
        self._requests_C = np.zeros(NUM_TOPICS, np.float32)
        self._requests_NC = np.zeros((num_domains + 1, NUM_TOPICS), np.float32)
        self._requests_BC = np.zeros((NUM_BUCKETS, NUM_TOPICS), np.float32)

    def learn(self, token_ids: Sequences[int], domain: int, profile_M: Floats) -> None:
        """Note a request that ended: its tokens, its domain (-1: none), and the share of its tokens at each expert."""
        topic = self._topic_for(profile_M)
        self._requests_C[topic] += 1
        step = 1.0 / min(self._requests_C[topic], FOLLOWED)
        self._profiles_CM[topic] += step * (profile_M - self._profiles_CM[topic])
        self._requests_NC[domain + 1, topic] += 1
        self._requests_BC[_buckets(token_ids), topic] += 1
        self.num_learnt += 1
        if self.num_learnt % HALVED_AFTER == 0:
            for counts in (self._requests_C, self._requests_NC, self._requests_BC):
                counts *= 0.5

    def topics_of(self, token_ids: Sequences[int], domain: int) -> Floats:
        """The chance of each topic, (C,), for a request of these tokens and this domain; something must be learnt."""
        total = self._requests_C.sum()
        share_C = self._requests_C / total
        own_C = self._requests_NC[domain + 1] if domain >= 0 else np.zeros_like(share_C)
        prior_C = (own_C + PRIOR_OF_DOMAIN * share_C) / (own_C.sum() + PRIOR_OF_DOMAIN)
        held_UC = self._requests_BC[_buckets(token_ids)]
        # What nobody ever held says nothing.
        held_UC = held_UC[held_UC.any(1)]
        held_U1 = held_UC.sum(1, keepdims=True) / total
        likely_UC = (held_UC + PRIOR_REQUESTS * held_U1) / (self._requests_C + PRIOR_REQUESTS)
        evidence_C = BELIEF / np.sqrt(max(len(held_UC), 1)) * np.log(likely_UC / held_U1).sum(0)
        # A topic that nobody has belonged to yet is nobody's.
        score_C = np.where(share_C > 0, evidence_C + np.log(np.maximum(prior_C, 1e-30)), -np.inf)
        chance_C = np.exp(score_C - score_C.max())
        return (chance_C / chance_C.sum()).astype(np.float32)

    def visits_of(self, topics_SC: Floats) -> Floats:
        """(S, M): the chance that a token of each of S requests visits each expert, from their topics."""
        return topics_SC @ self._profiles_CM

    def _topic_for(self, profile_M: Floats) -> int:
        """The nearest topic; a new one where the request is farther off than the two nearest topics are apart."""
        empty = np.flatnonzero(self._requests_C == 0)
        if len(empty):
            return int(empty[0])
        distance_C = np.square(self._profiles_CM - profile_M).sum(1)
        apart_CC = _distances(self._profiles_CM)
        kept, merged = (int(one) for one in np.unravel_index(apart_CC.argmin(), apart_CC.shape))
        if distance_C.min() <= apart_CC[kept, merged]:
            return int(distance_C.argmin())
        self._merge(kept, merged)
        return merged

    def _merge(self, kept: int, merged: int) -> None:
        """Make one topic of two; the second is empty afterwards."""
        both = self._requests_C[[kept, merged]]
        self._profiles_CM[kept] = both @ self._profiles_CM[[kept, merged]] / both.sum()
        for counts in (self._requests_C, self._requests_NC, self._requests_BC):
            counts[..., kept] += counts[..., merged]
            counts[..., merged] = 0


def _distances(profiles_CM: Floats) -> Floats:
    """(C, C) squared distances, infinite between a profile and itself."""
    squares_C = np.square(profiles_CM).sum(1)
    apart_CC = squares_C[:, None] + squares_C - 2.0 * (profiles_CM @ profiles_CM.T)
    np.fill_diagonal(apart_CC, np.inf)
    return apart_CC


def _buckets(token_ids: Sequences[int]) -> NDArray[np.int64]:
    """(U,): the buckets that the newest tokens fall into, each once."""
    ids = np.asarray(token_ids[-MOST_TOKENS:], np.int64)
    return np.unique((ids * MULTIPLIER >> SHIFT) % NUM_BUCKETS)
