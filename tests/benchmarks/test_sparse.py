"""The page of sparse against dense: what the bytes of a step allow, and every row with its ratio."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.sparse import TOGETHER, section, step_weights
from moe_core.spec import ModelSpec


def spec(**more: Any) -> ModelSpec:
    plain = {
        "vocab_size": 100, "hidden_size": 8, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return ModelSpec.parse(plain | more)


def test_a_batch_reads_more_and_more_of_the_experts_until_it_reads_all() -> None:
    moe = {"moe_layers": [0, 1], "num_experts": 8, "top_k": 2, "moe_intermediate_size": 16}
    dense, sparse = spec(family="llama"), spec(family="turnout_moe", moe=moe)
    shared = 100 * 8 + 2 * (2 * 2 + 2) * 4 * 8
    assert step_weights(dense, 1) == step_weights(dense, 16) == shared + 2 * 3 * 8 * 128
    assert step_weights(sparse, 1) == shared + 2 * 3 * 8 * 16 * 2
    assert step_weights(sparse, 2) == pytest.approx(shared + 2 * 3 * 8 * 16 * 3.5)
    assert step_weights(sparse, 100) == pytest.approx(step_weights(dense, 1))


def test_every_ratio_is_dense_seconds_by_those_of_the_mixture() -> None:
    def measured(seconds: float) -> dict[str, float]:
        return {"wall": seconds, "cpu": 2 * seconds, "tokens": 24}

    metrics = ("prefill 512", "decode 1", "summary")
    found = {
        "samples": {
            "dense": [{name: measured(6.0) for name in metrics}],
            "sparse": [{name: measured(2.0) for name in metrics}],
        },
        "together": {
            "dense": [{str(count): measured(3.0) for count in TOGETHER}],
            "sparse": [{str(count): measured(1.5) for count in TOGETHER}],
        },
        "bytes": {str(count): 1.25 for count in TOGETHER},
        "dense": [{"clients": 4, "requests_s": 0.5, "p95_s": 9.0}],
        "sparse": [
            {"clients": 4, "requests_s": 1.0, "p95_s": 4.0},
            {"clients": 6, "requests_s": 1.5, "p95_s": 8.0},
            {"clients": 9, "requests_s": 2.0, "p95_s": 12.0},
        ],
    }
    text = "\n".join(section(found))
    assert "| 3,000 tokens in, 200 out, seconds | 6.0 | 2.0 | 3.00, 3.00 |" in text
    assert "0.50 (p95 9.0 s, 4 clients) | 1.50 (p95 8.0 s, 6 clients) | 3.00 |" in text
    assert "| 16 | 8.0 | 16.0 | 2.00, 2.00 | 1.25 |" in text
