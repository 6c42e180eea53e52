"""A benchmark refuses wrong tokens and slow code, and knows how many bytes a token needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moe_core
from benchmarks import compare
from benchmarks.contestant import gap
from moe_core.model.init import random_decoder
from moe_core.operations.quantise import quantise
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.tiny import tiny_mixtral

SIZE = compare.Size(prompt=12, decode_prompt=6, new=5, batches=(1, 2), rounds=1)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny"
    moe_core.save(
        random_decoder(tiny_mixtral(), seed=3, std=0.2, dtype=torch.bfloat16), path, dtype="bfloat16"
    )
    return path


def test_a_gap_is_the_share_of_the_spread_that_a_token_lacks() -> None:
    logits_SV = torch.tensor([[0.0, 0.0, 0.0], [1.0, 3.0, 5.0], [2.0, 0.0, 4.0], [9.0, 9.0, 9.0]])
    assert gap(logits_SV, 2, [2, 2]) == 0.0
    # The second token was 2 of the 4 below the best.
    assert gap(logits_SV, 2, [2, 0]) == 0.5


def test_what_is_not_finite_is_no_answer() -> None:
    logits_SV = torch.full((3, 4), float("nan"))
    assert not gap(logits_SV, 1, [0, 0]) <= compare.MOST_GAP


@pytest.mark.slow
def test_two_contestants_agree_and_are_measured_in_turn(tiny_dir: Path) -> None:
    ours = compare.Entry("turnout", "turnout", tiny_dir, 1)
    plain = compare.Entry("torch", "torch", tiny_dir, 1)
    try:
        found = compare.checked([plain, ours], {"turnout": plain, "torch": plain}, SIZE)
        compare.measure_rounds([plain, ours], SIZE)
        assert set(found) == {"turnout", "torch"}
        assert set(ours.seconds) == {"prefill", "decode 1", "decode 2"}
        # One round that warms up, one that counts; all tokens after the first of each answer.
        assert [taken["tokens"] for taken in ours.seconds["decode 2"]] == [8, 8]
        assert len(compare.rates(ours, "prefill", "cpu")) == 1
        limit = compare.Limits(1, 1.0, 1.0, {"bf16": 1e9}, huge_share=1.0)
        rows = compare.table([plain, ours], plain, [limit], "cpu")
        assert [row["ratio"] for row in rows if row["contestant"] == "torch"] == [1.0, 1.0, 1.0]
        assert "| turnout | decode 1 |" in compare.page(rows, [limit], found, [plain, ours], "here")
    finally:
        for entry in (ours, plain):
            entry.close()


@pytest.mark.slow
def test_a_contestant_with_other_weights_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    moe_core.save(
        random_decoder(tiny_mixtral(), seed=4, std=0.2, dtype=torch.bfloat16), other, dtype="bfloat16"
    )
    wrong, reference = (compare.Entry("x", "torch", path, 1) for path in (other, tiny_dir))
    try:
        with pytest.raises(RuntimeError, match="x: a token is .* below the reference's best"):
            compare.check(wrong, reference, 97, SIZE)
    finally:
        wrong.close()
        reference.close()


def test_bytes_of_a_token_count_what_is_read(tiny_dir: Path, tmp_path: Path) -> None:
    spec = tiny_mixtral()
    experts = 3 * 2 * 3 * 48 * 64
    model = random_decoder(spec, seed=1)
    one_expert = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) / 4
    assert one_expert * 2 == experts
    rest = sum(p.numel() for name, p in model.named_parameters() if ".experts." not in name) - 97 * 48
    assert compare.active_bytes(tiny_dir) == 2 * (rest + experts)
    packing = QuantiseSpec.parse({"kind": "quantise", "quantisation": {"bits": 4, "group_size": 32}})
    moe_core.save(quantise(model, packing)[0], tmp_path / "packed", dtype="bfloat16")
    # Four bits and a sixteenth of a float16 scale.
    assert compare.active_bytes(tmp_path / "packed") == 2 * rest + experts * 4.5 / 8
    whole = QuantiseSpec.parse(
        {**packing.model_dump(), "attention": {"bits": 8, "group_size": 64}, "head": {"bits": 8}}
    )
    moe_core.save(quantise(model, whole)[0], tmp_path / "whole", dtype="bfloat16")
    maps = sum(
        p.numel() for name, p in model.named_parameters() if ".attention." in name and "norm" not in name
    )
    head = 97 * 48
    expected = 2 * (rest - maps - head) + maps * 8.25 / 8 + head * 8.125 / 8 + experts * 4.5 / 8
    assert compare.active_bytes(tmp_path / "whole") == pytest.approx(expected)
