"""A model without a chat format is tuned, operated on and counted for with logs in plain paragraphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import moe_core
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.sentences import RUN
from moe_core.training import run_job
from moe_core.training.data import read_conversations, token_counts, windows_of
from tests.moe_core.training.world import DOMAINS, RecordingIO, make_world, tune_spec


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("plain"), chats=False)


def said(io: RecordingIO, code: str) -> list[dict[str, Any]]:
    return [event for event in io.of("log") if event["text"] == RUN.templates[code]]


def test_losses_are_of_answers_and_their_ends_alone(plain: Path) -> None:
    tokenizer = Tokenizer(plain / "model")
    talks = list(read_conversations(plain / "held_out.jsonl"))[:2]
    windows = windows_of(talks, tokenizer, list(DOMAINS), 400)
    first = windows.ids_NS[0][windows.real_NS[0]].tolist()
    question, answer = "User: 1 + 2 = 3 0?\n\n", "Assistant: 1 + 2 = 3, 1 + 2 = 3 0.<|im_end|>"
    assert tokenizer.decode(first, control_tokens=True) == question + answer
    learnt = windows.ids_NS[1, 1:][windows.target_NS[1, :-1]].tolist()
    assert tokenizer.decode(learnt, control_tokens=True) == " a quiet lane, a quiet lane 0.<|im_end|>"


def test_a_tuning_job_learns_and_tells_how_the_logs_were_read(plain: Path, tmp_path: Path) -> None:
    io = RecordingIO(plain, tmp_path)
    result = run_job("tune", tune_spec(), io)
    assert moe_core.load(io.out_dir, dtype="float32").spec.model_dump(mode="json") == result["spec"]
    assert len(said(io, "plain_logs")) == 1


def test_an_operation_measures_by_domain_and_tells_it_too(plain: Path, tmp_path: Path) -> None:
    io = RecordingIO(plain, tmp_path)
    layout = {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2}
    spec = {"operation": {"kind": "upcycle", "layout": layout}, "dtype": "float32", "prompt_tokens": 24}
    report = run_job("operate", spec, io)["operation"]
    assert set(report["loss_after"]) == set(DOMAINS)
    assert len(said(io, "plain_logs")) == 1


def test_a_model_that_chats_is_told_nothing_of_the_kind(world: Path, tmp_path: Path) -> None:
    io = RecordingIO(world, tmp_path)
    layout = {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2}
    run_job("operate", {"operation": {"kind": "upcycle", "layout": layout}, "dtype": "float32"}, io)
    assert not said(io, "plain_logs")


def test_tokens_are_counted_as_the_model_reads_them(plain: Path) -> None:
    tokenizer = Tokenizer(plain / "model")
    counts_V = token_counts(plain / "train.jsonl", tokenizer, tokenizer.vocab_size)
    rows_of_logs = 24 * len(DOMAINS)
    assert counts_V[tokenizer.eos_ids[0]] == rows_of_logs
    assert counts_V[tokenizer.encode("U")[0]] == rows_of_logs
