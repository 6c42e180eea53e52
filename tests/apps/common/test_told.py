"""What moe_core and child processes said is said anew in the reader's language, or shown as the detail that it is."""

from __future__ import annotations

import re

import pytest
from django.utils.translation import gettext, override

from common.told import HAN, PROCESS, WORDS, ended, line_told, templates, told, understood
from moe_core.sentences import CORE, RUN
from workers.runtime import how_it_ended

TEMPLATES = CORE.templates | PROCESS.templates | RUN.templates


def values_of(template: str) -> dict[str, str]:
    return {place: f"«{place}»" for place in re.findall(r"\{(\w+)\}", template)}


@pytest.mark.parametrize("code", TEMPLATES)
def test_each_sentence_of_the_core_has_words_with_its_values_in_both_languages(code: str) -> None:
    values = values_of(TEMPLATES[code])
    said = TEMPLATES[code].format(**values)
    spoken = set(re.findall(r"%\((\w+)\)s", WORDS[code]))
    assert spoken <= values.keys()
    for language in ("en", "zh-hans"):
        with override(language):
            words = told(said)
            assert words == gettext(WORDS[code]) % values
            assert bool(HAN.search(words)) == (language == "zh-hans")
            assert all(values[place] in words for place in spoken)


def test_no_words_are_left_over() -> None:
    assert set(WORDS) == set(TEMPLATES)


def test_a_sentence_within_a_sentence_is_translated_too() -> None:
    why = CORE.say("loss_not_finite", loss="nan")
    said = CORE.say("stopped_at_step", step=3, stage="tune", why=why, rate="0.02")
    with override("zh-hans"):
        assert "损失为 nan；" in told(said)


def test_what_is_not_known_is_shown_as_a_detail_in_chinese_and_as_it_is_in_english() -> None:
    assert told("the moon is full") == "the moon is full."
    assert told("") == ""
    with override("zh-hans"):
        assert told("the moon is full") == "技术细节（英文）：the moon is full."
        assert told("磁盘已满") == "磁盘已满。"


@pytest.mark.parametrize("code", [1, -9, -11, -24])
def test_how_a_child_ended_is_chinese_on_a_chinese_page(code: int) -> None:
    with override("zh-hans"):
        assert told(how_it_ended(code)).startswith("进程")


def test_a_sentence_has_one_stop() -> None:
    assert [ended(text) for text in ("a", "a.", "好", "好。", "")] == ["a.", "a.", "好。", "好。", ""]


def test_a_sentence_is_understood_with_the_sentence_within_it() -> None:
    why = CORE.say("loss_not_finite", loss="nan")
    said = understood(CORE.say("stopped_at_step", step=3, stage="route", why=why, rate="0.02"))
    assert said is not None
    assert said["code"] == "stopped_at_step"
    assert said["values"]["why"] == {"code": "loss_not_finite", "values": {"loss": "nan"}}
    assert understood("the moon is full") is None


def test_lists_within_a_sentence_have_the_comma_of_its_language() -> None:
    said = CORE.say("halves_apart", experts="1, 5", layer=0, size=2)
    assert "Experts 1, 5 of layer 0" in told(said)
    with override("zh-hans"):
        assert "专家 1、5 " in told(said)
        assert "law 3、code 4" in line_told(RUN.say("prompts_taken", file="a, b.csv", counts="law 3, code 4"))
        assert "a, b.csv" in line_told(RUN.say("prompts_taken", file="a, b.csv", counts="law 3, code 4"))


def test_what_the_reader_has_names_for_is_called_by_them() -> None:
    line = RUN.say("operation_begins", operation="grow", count=1)
    assert "“grow”" in line_told(line) and "“Widen”" in line_told(line, {"operation": {"grow": "Widen"}})
    assert "“grow”" in line_told(line, {"operation": {"add": "More"}})


def test_lines_of_a_log_are_said_in_the_readers_language_and_others_stay_as_they_are() -> None:
    line = RUN.say("resumed", stage="route", step=4)
    with override("zh-hans"):
        assert HAN.search(line_told(line))
        assert line_told("Traceback (most recent call last):") == "Traceback (most recent call last):"
        assert line_told("") == ""
        assert templates()["resumed"].count("{") == 2
        assert "%(" not in "".join(templates().values())
