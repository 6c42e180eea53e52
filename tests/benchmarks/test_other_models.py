"""Other models stand on the page with the same tables, and with who could not be measured."""

from __future__ import annotations

from benchmarks import other_models
from tests.benchmarks.test_peers import _run


def test_each_model_has_its_tables_and_what_is_missing() -> None:
    run = _run(ours=1.0, peer=2.0)
    text = "\n".join(other_models.section(dict.fromkeys(other_models.OTHERS, run)))
    assert text.count("### Decoding, one sequence, tokens a second, 2 threads") == len(other_models.OTHERS)
    assert "`qwen3moe-64e`: 64 experts of 384 neurons" in text
    # 100 tokens in a second for the peer's two.
    assert "| **engine bf16** | 16 | 100.0 (100.0 to 100.0), 1 |" in text
    assert "- vllm was left out: no wheel for this machine" in text


def test_who_is_refused_is_told() -> None:
    run = _run(ours=1.0, peer=2.0)
    run["verdicts"]["engine bf16"]["refused"] = "other tokens"
    assert "- **engine bf16 is refused**: other tokens" in other_models.section({"smollm2": run})
