"""Two processes that hold half of the experts each, over gloo: as if one process had them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tests.moe_core.integrations.expert_parallel_rank import batch_of  # noqa: E402
from tests.moe_core.model.hf_families import chosen_experts, reference  # noqa: E402

REPO = Path(__file__).parents[3]


def on_two_ranks(tmp_path: Path, model: Any, sharing: str, dispatch: str = "turnout") -> list[dict[str, Any]]:
    model.save_pretrained(tmp_path / "model")
    results = [tmp_path / f"rank-{rank}.pt" for rank in range(2)]
    told = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
    running = []
    for rank, (result, log) in enumerate(zip(results, told, strict=True)):
        paths = [str(tmp_path / "meeting"), str(tmp_path / "model")]
        command = [
            sys.executable,
            "-m",
            "tests.moe_core.integrations.expert_parallel_rank",
            str(rank),
            *paths,
        ]
        with log.open("wb") as lines:
            running.append(
                subprocess.Popen(
                    [*command, sharing, dispatch, str(result)], cwd=REPO, stdout=lines, stderr=lines
                )
            )
    codes = [process.wait(timeout=240) for process in running]
    assert codes == [0, 0], "\n".join(log.read_text(errors="replace")[-3000:] for log in told)
    return [torch.load(result, weights_only=True) for result in results]


def alone(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return logits.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str = "logits") -> None:
    assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-7, name


@pytest.mark.slow
def test_ranks_that_share_a_batch_agree_with_one_process(tmp_path: Path) -> None:
    model = reference("gpt_oss")
    ids = batch_of(0, "same")
    logits, gradients = alone(model, ids)
    ranks = on_two_ranks(tmp_path, model, "same")
    # Each token travels once to each rank that has any of its experts, not once an expert.
    pairs = [
        len({(t, e // 2) for t, es in enumerate(ids_TK.tolist()) for e in es})
        for ids_TK, _ in chosen_experts(model, ids)
    ]
    assert [sum(rows) for rows in zip(*(rank["rows"] for rank in ranks), strict=True)] == pairs
    assert sum(pairs) < len(pairs) * ids.numel() * 2
    for rank in ranks:
        assert set(rank["num_local"]) == {2}
        assert_close(rank["logits"], logits)
        assert_close(rank["silent"], logits)
        assert rank["gradients"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert_close(rank["gradients"][name], gradient, name)


@pytest.mark.slow
def test_ranks_with_batches_of_their_own_agree_with_one_process(tmp_path: Path) -> None:
    """Experts learn from the tokens of both ranks, everything else from its own rank's (no data parallelism here)."""
    model = reference("qwen3_moe")
    both = [alone(model, batch_of(rank, "own")) for rank in range(2)]
    ranks = on_two_ranks(tmp_path, model, "own")
    for rank, (logits, gradients) in zip(ranks, both, strict=True):
        assert set(rank["num_local"]) == {4}
        assert_close(rank["logits"], logits)
        assert_close(rank["silent"], logits)
        for name, gradient in gradients.items():
            wanted = both[0][1][name] + both[1][1][name] if "experts" in name else gradient
            assert_close(rank["gradients"][name], wanted, name)
