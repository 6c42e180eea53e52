"""What is shown never takes back, and never shows a stop string or a part of one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.detokenizer import Detokenizer


class Pieces:
    """Token i is the i-th piece."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self.pieces, self.tail = pieces, tail

    def step(self, token_id: int) -> str:
        return self.pieces[token_id]

    def finish(self) -> str:
        return self.tail


def shown(pieces: list[str], *stop: str, tail: str = "") -> tuple[list[str], bool]:
    text = Detokenizer(Pieces(pieces, tail), stop)
    steps = []
    for token in range(len(pieces)):
        steps.append(text.push(token))
        if text.stopped:
            return steps, True
    return [*steps, text.finish()], text.stopped


def test_text_that_could_become_a_stop_string_is_held_back() -> None:
    assert shown(["ab", "EN", "D", "x"], "END") == (["ab", "", ""], True)
    assert shown(["ab", "EN", "x", "E"], "END") == (["ab", "", "ENx", "", "E"], False)


def test_only_as_much_as_needed_is_held_back() -> None:
    assert shown(["hello E", "NN"], "END")[0] == ["hello ", "ENN", ""]


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert shown(["one two three"], "three", "two") == (["one "], True)


def test_a_stop_string_may_overlap_itself() -> None:
    assert shown(["aa", "ab"], "aab") == (["", "a"], True)


def test_what_the_least_tokens_complete_ends_nothing_and_what_a_later_one_does() -> None:
    """As in vLLM, which looks back from the first token after them by the length of a stop string."""

    def shown_after(pieces: list[str], min_tokens: int) -> tuple[list[str], bool]:
        text = Detokenizer(Pieces(pieces), ("END",), min_tokens)
        steps = [text.push(token) for token in range(len(pieces)) if not text.stopped]
        return steps, text.stopped

    assert shown_after(["END", "x", "END"], 1) == (["END", "x", ""], True)
    assert shown_after(["x", "EN", "D", "y"], 2) == (["x", "", ""], True)
    assert shown_after(["x", "EN", "D", "y"], 3) == (["x", "", "END", "y"], False)


def test_a_stop_string_of_the_least_tokens_ends_nothing_where_a_longer_one_begins_with_it() -> None:
    text = Detokenizer(Pieces(["a\n", "b", "c", "\n"]), ("\n", "\n\n"), min_tokens=1)
    assert [text.push(token) for token in range(3)] == ["a", "\nb", "c"] and not text.stopped
    assert text.push(3) == "" and text.stopped


def test_the_streams_own_rest_is_searched_too() -> None:
    assert shown(["x", "\ufffd"], "\ufffd!", tail="!") == (["x", "", ""], True)


@given(
    st.lists(st.text("abc", max_size=3), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_the_whole_is_what_stands_before_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    steps, stopped = shown(pieces, *stop)
    whole = "".join(pieces)
    # Stopping happens at the first piece that completes one; only what came until then counts.
    for length in range(len(pieces) + 1):
        seen = "".join(pieces[:length])
        places = [seen.find(one) for one in stop if one in seen]
        if places:
            assert stopped and "".join(steps) == seen[: min(places)]
            return
    assert not stopped and "".join(steps) == whole
