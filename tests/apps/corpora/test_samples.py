"""The demo's logs are real, clean and the same every time."""

from __future__ import annotations

import csv
import json

import pytest

from corpora.samples import DOMAINS, Dialogue, SampleError, build
from corpora.samples.builder import selected
from corpora.samples.dialogue import cut_at_sentence, unwrapped, without_repeats


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    build(folder)
    return folder


def _rows(folder, domain):
    if domain.file_format == "csv":
        with (folder / domain.file_name).open(encoding="utf-8", newline="") as handle:
            return [((row["user"], row["assistant"]), row["domain"]) for row in csv.DictReader(handle)]
    lines = (folder / domain.file_name).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(tuple(message["content"] for message in row["messages"]), row["domain"]) for row in rows]


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.code)
def test_each_domain_has_clean_dialogues_of_its_own(out_dir, domain):
    rows = _rows(out_dir, domain)
    assert len(rows) >= 100
    assert {code for _, code in rows} == {domain.code}
    for turns, _ in rows:
        assert len(turns) % 2 == 0
        assert all(turn == turn.strip() and turn for turn in turns)
        assert not any("\ufffd" in turn or "\x00" in turn for turn in turns)
    answers = [turns[1::2] for turns, _ in rows]
    assert len(set(answers)) == len(answers)


def test_json_lines_have_the_openai_chat_shape(out_dir):
    row = json.loads((out_dir / "support.jsonl").read_text("utf-8").splitlines()[0])
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["domain"] == "support"


def test_one_domain_is_csv_and_the_listing_names_every_file(out_dir):
    listing = json.loads((out_dir / "domains.json").read_text("utf-8"))
    assert [entry["code"] for entry in listing] == [domain.code for domain in DOMAINS]
    assert sum(entry["file"].endswith(".csv") for entry in listing) == 1
    for entry in listing:
        assert (out_dir / entry["file"]).is_file()
        assert entry["name_en"] and entry["name_zh"] and len(entry["examples"]) >= 3


def test_no_two_domains_share_an_expert():
    experts = [expert for domain in DOMAINS for expert in domain.experts]
    assert len(experts) == len(set(experts))
    assert sum(bool(domain.experts) for domain in DOMAINS) >= 4


def test_building_twice_gives_the_same_bytes(out_dir, tmp_path):
    build(tmp_path)
    for path in sorted(out_dir.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_source_without_texts_is_an_error_that_names_it():
    from dataclasses import replace

    empty = replace(DOMAINS[0], dialogues=lambda: iter(()))
    with pytest.raises(SampleError, match="zaragoza-construction-faq"):
        selected(empty)


def test_repeats_are_found_whatever_their_spacing_and_case():
    first = Dialogue(("a?", "The  answer, in full."), "x")
    again = Dialogue(("b?", "the answer in full"), "x")
    other = Dialogue(("c?", "another"), "x")
    assert list(without_repeats([first, again, other])) == [first, other]


def test_unwrapping_joins_lines_and_keeps_lists():
    assert unwrapped("one\ntwo\n\n* a\n  b\n* c") == "one two\n\n- a b\n- c"


def test_a_long_text_is_cut_after_a_whole_sentence():
    text = "This first sentence is long enough to stand alone. The second one is not wanted"
    assert cut_at_sentence(text, 70) == "This first sentence is long enough to stand alone."
