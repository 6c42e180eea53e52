"""What the page on performance says that a token and a step read follows from the shapes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bounds import active_weights
from moe_core.spec import ModelSpec

# Of the models that the page has these figures of; those in 8 bits have had wider groups since.
GROUPS = {8: 64, 4: 32}
PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/performance.md"
# smol-moe-8x: SmolLM2-135M with 8 experts in each layer, two of them chosen.
SHAPES = {
    "family": "mixtral", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "moe": {"moe_layers": list(range(30)), "num_experts": 8, "top_k": 2, "moe_intermediate_size": 1536},
}  # fmt: skip


def test_bytes_on_the_page_are_those_of_the_shapes() -> None:
    """All experts of a step and those of a token; scales of 16 bits for a group; attention packed with the experts."""
    spec = ModelSpec.parse(SHAPES)
    parts = active_weights(spec)
    eight, four = (bits + 16 / GROUPS[bits] for bits in (8, 4))
    token: list[float] = []
    step: list[float] = []
    for own, head in ((16.0, 16.0), (eight, eight), (four, eight)):
        for times, found in ((1, token), (4, step)):
            packed = (times * parts["experts"] + parts["attention"]) * own
            found.append((packed + parts["head"] * head) / 8e6)
    cached = 16 * 192 * spec.num_hidden_layers * 2 * spec.num_key_value_heads * spec.head_dim * 2 / 1e6
    text = PAGE.read_text()
    assert "| one sequence: bytes, MB | b | " + " | ".join(f"{one:.0f}" for one in token) + " |" in text
    assert ": {:,.0f}, {:.0f} and {:.0f} MB; the embedding table is".format(*step) in text
    assert f"= {cached:.0f} MB more" in text
    told = " | ".join(f"{one + cached:,.0f}" for one in step)
    assert f"| 16 at once: bytes of a step, keys and values too, MB | s | {told} |" in text
