"""Logs become windows: nothing lost, nothing doubled, losses only where an assistant speaks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import TrainingError
from moe_core.training.data import Conversation, Dealer, read_conversations, spread, windows_of


@dataclass
class Tokens:
    ids: list[int]
    learnt: list[bool]


class Letters:
    """One token a letter; what the assistant says is learnt."""

    def log_tokens(self, messages):
        ids = [ord(letter) for message in messages for letter in message["content"]]
        learnt = [message["role"] == "assistant" for message in messages for _ in message["content"]]
        return Tokens(ids, learnt)


def said(question: str, answer: str, domain: str | None) -> Conversation:
    return Conversation(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), domain
    )


def test_streams_of_each_domain_are_cut_and_only_the_last_window_is_padded() -> None:
    logs = [said("abc", "DE", "x"), said("q", "R", None), said("fg", "HI", "x")]
    windows = windows_of(logs, Letters(), ["x"], 4)
    assert windows.domain_N.tolist() == [-1, 0, 0, 0]
    text = [
        "".join(map(chr, ids[real].tolist()))
        for ids, real in zip(windows.ids_NS, windows.real_NS, strict=True)
    ]
    assert text == ["qR", "abcD", "EfgH", "I"]
    # A position has a loss when the next token of its window is the assistant's.
    assert windows.target_NS.int().tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


@given(
    st.lists(st.tuples(st.text("ab", max_size=9), st.sampled_from(["x", "y", None])), max_size=12),
    st.integers(2, 7),
)
def test_no_token_is_lost_or_doubled(rows, size) -> None:
    logs = [said(text, text.upper(), domain) for text, domain in rows]
    windows = windows_of(logs, Letters(), ["x", "y"], size)
    for domain, code in [(0, "x"), (1, "y"), (-1, None)]:
        want = "".join(text + text.upper() for text, other in rows if other == code)
        mine = windows.take(windows.of_domain(domain))
        assert "".join(map(chr, mine.ids_NS[mine.real_NS].tolist())) == want


def test_the_last_token_of_a_window_never_has_a_loss() -> None:
    windows = windows_of([said("", "x" * 100, "x")], Letters(), ["x"], 8)
    assert not windows.target_NS[:, -1].any()
    assert windows.target_NS[0].sum() == 7


def test_a_real_tokenizer_marks_the_answer_and_its_end(world: Path) -> None:
    tokenizer = Tokenizer(world / "model")
    windows = windows_of([said("hello", "yes", "x")], tokenizer, ["x"], 64)
    learnt = windows.ids_NS[0, 1:][windows.target_NS[0, :-1]]
    assert tokenizer.decode(learnt.tolist(), control_tokens=True) == "yes<|im_end|>"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "logs.jsonl:2"),
        ('{"messages": []}', "list of messages"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "role"),
        ('{"messages": [{"role": "user", "content": 5}]}', "text"),
        ('{"messages": [{"role": "user", "content": "x"}], "domain": 5}', "domain"),
    ],
)
def test_a_line_that_is_not_a_conversation_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "logs.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "x"}], "domain": None})
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(TrainingError, match=reason):
        list(read_conversations(path))


@given(st.integers(1, 30), st.integers(0, 3), st.integers(1, 20))
def test_dealing_visits_every_window_once_an_epoch(size: int, seed: int, batch: int) -> None:
    dealer = Dealer(range(100, 100 + size), seed, "x")
    dealt = [place for start in range(0, 2 * size, batch) for place in dealer.deal(start, batch)]
    assert sorted(dealt[:size]) == list(range(100, 100 + size))
    assert sorted(dealt[size : 2 * size]) == list(range(100, 100 + size))


def test_what_a_step_sees_does_not_depend_on_the_steps_before() -> None:
    first = Dealer(range(10), 7, "x")
    for start in range(0, 30, 3):
        first.deal(start, 3)
    assert first.deal(30, 3) == Dealer(range(10), 7, "x").deal(30, 3)
    assert Dealer(range(10), 8, "x").deal(0, 10) != first.deal(0, 10)


def test_a_domain_without_logs_is_an_error_with_a_way_out() -> None:
    with pytest.raises(TrainingError, match="no window for support"):
        Dealer([], 0, "support")


def test_spreading_takes_from_the_whole_range() -> None:
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread([3, 5], 4) == [3, 5]


def test_taking_windows_keeps_their_order() -> None:
    windows = windows_of([said("abcdefgh", "", "x")], Letters(), ["x"], 2)
    assert torch.equal(windows.take([2, 0]).ids_NS, windows.ids_NS[[2, 0]])
