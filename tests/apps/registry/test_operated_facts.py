"""What the pages tell of an operation is read from reports as operations write them, in both languages."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.template.loader import render_to_string
from django.utils.translation import override

from common import figures
from moe_core import operations
from moe_core.spec.operations import OPERATION, GrowSpec
from registry.operated import operated_report, operated_verdict
from registry.operated_facts import KINDS, operated_facts
from registry.packed import packed_errors
from tests.moe_core.operations.models import mixture, some_prompts
from tests.moe_core.operations.test_groups import grouped

NAMES = {"add": "add_expert", "remove": "remove_expert", "merge": "merge_experts"}
WITHOUT_LOGS = ("grow", "add", "release_twins", "dequantise")
ASKED: tuple[dict[str, Any], ...] = (
    {"kind": "grow", "num_experts": 8, "method": "split"},
    {"kind": "add", "source": 2},
    {"kind": "remove"},
    {"kind": "merge", "first": 0, "second": 1},
    {"kind": "specialise_clone", "domain": "law", "steps": 1},
    {"kind": "wake_expert", "steps": 1},
    {"kind": "release_twins"},
    {"kind": "quantise"},
    {"kind": "dequantise"},
    {"kind": "distil", "num_experts": 2, "steps": 1},
    {"kind": "compose", "domains": ["law", "code"]},
    {"kind": "measure"},
)


def report_of(plain: dict[str, Any], model: Any = None) -> dict[str, Any]:
    """What the operation itself reports."""
    operation, model = OPERATION.parse(plain), model or mixture()
    kind = plain["kind"]
    if kind == "compose":
        return operations.compose([mixture(1), mixture(2)], operation, some_prompts(per_domain=8))[1]
    if kind == "release_twins":
        model = operations.grow(model, GrowSpec(num_experts=8))[0]
    if kind == "dequantise":
        model = operations.quantise(model, OPERATION.parse({"kind": "quantise"}))[0]
    if kind == "measure":
        return operations.measure_model(model, some_prompts(), beside=mixture(1))
    act = getattr(operations, NAMES.get(kind, kind))
    return act(model, operation, *(() if kind in WITHOUT_LOGS else (some_prompts(),)))[1]


def facts_of(report: dict[str, Any], language: str = "en") -> dict[str, str]:
    with override(language):
        return dict(operated_facts(report))


def test_every_kind_that_needs_experts_is_told() -> None:
    assert {one["kind"] for one in ASKED} == set(KINDS)


@pytest.mark.parametrize("plain", ASKED, ids=lambda one: one["kind"])
def test_reports_are_told_in_both_languages(plain: dict[str, Any]) -> None:
    report = report_of(plain)
    assert operated_report(report) is not None
    english, chinese = facts_of(report), facts_of(report, "zh-hans")
    assert len(english) == len(chinese) >= 1 and all(english.values()) and all(chinese.values())
    plainly = {title for title in chinese if not re.search("[\u4e00-\u9fff]", title)}
    assert plainly <= {"top-k", "MaxVio"}


def test_what_they_say() -> None:
    assert facts_of(report_of(ASKED[0]))["top-k"] == "4 (2 before)"
    assert list(facts_of(report_of(ASKED[1])).items())[1:] == [("New expert", "4"), ("Twin of expert", "2")]
    assert facts_of(report_of(ASKED[3]))["Merged, by layer"] == "1 → 0 in all layers"
    per_group = {"kind": "add", "source": 1, "per_group": True}
    assert facts_of(report_of(per_group, grouped()))["New expert"] == "4 + 9"


def test_what_packing_changed_is_told_for_experts_attention_and_head() -> None:
    asked = {"kind": "quantise", "attention": {"bits": 8}, "head": {"bits": 4}}
    report = report_of(asked)
    facts = facts_of(report)
    assert facts["Relative error of the output map"] == figures.percent(report["head_error"], 2)
    errors = [layer[name] for layer in report["attention_error"] for name in ("qkv_proj", "o_proj")]
    assert facts["Relative error of attention's maps"] == figures.percent(sum(errors) / len(errors), 2)
    with override("en"):
        table = packed_errors(report)
    assert table is not None
    assert table.columns[1:] == ["Experts' down", "Attention's QKV", "Attention's output"]
    assert [title for title, _ in table.rows] == ["layer 0", "layer 1", "layer 2"]
    # The second layer has no experts.
    assert table.rows[1][1][:2] == [figures.MISSING] * 2
    last = {**report["error"][1], **report["attention_error"][2]}
    names = ("gate_up", "down", "qkv_proj", "o_proj")
    assert table.rows[2][1] == [figures.percent(last[name], 2) for name in names]


@pytest.mark.parametrize(("language", "said"), [("en", "layer 2"), ("zh-hans", "第 2 层")])
def test_the_page_has_the_table_where_something_was_packed(language: str, said: str) -> None:
    with override(language):
        asked = {"kind": "quantise", "attention": {"bits": 8}}
        page = render_to_string("registry/operated.html", {"operated": operated_report(report_of(asked))})
        other = render_to_string("registry/operated.html", {"operated": operated_report(report_of(ASKED[0]))})
    assert said in page and "figures-table" in page and page.count('<td class="num">') >= 12
    assert "figures-table" not in other


def test_where_rounding_chooses_the_experts_are_named() -> None:
    undecided = {"layers": 2, "layer": 4, "experts": [1, 5]}
    report = {"keeps_function": False, "undecided": undecided}
    assert facts_of(report) == {
        "Says the same at that moment": "no: rounding chooses between experts 1, 5 of layer 4"
    }
    assert facts_of(report, "zh-hans").popitem()[1] == "否：第 4 层的专家 1、5 之间由舍入决定"
    assert facts_of({"keeps_function": False}).popitem()[1] == "no"


def test_a_bias_that_was_raised_is_told_beside_the_load_that_it_held_off() -> None:
    woken = {"kind": "wake_expert", "woken": [3, 1], "share_before": [0.0, 0.5], "share_after": [1.0, 0.5]}
    facts = facts_of({**woken, "bias_raised": [0.25, 1.75]})
    assert list(facts) == ["Woken, by layer", "Its load over the fair share", "Its bias was raised by"]
    assert facts["Its bias was raised by"] == "1.00, at most 1.75"
    assert facts_of({**woken, "bias_raised": [0.25, 1.75]}, "zh-hans")["其偏置上调"] == "1.00，最多 1.75"
    assert "Its bias was raised by" not in facts_of({**woken, "bias_raised": []})


def test_layers_whose_gates_are_at_chance_are_named() -> None:
    layers = [{"layer": n, "token_accuracy": 0.5, "beats_chance": n == 4} for n in (0, 2, 4)]
    report = {"kind": "compose", "layers": layers}
    title = "Layers whose gates tell the domains no better than chance"
    assert facts_of(report)[title] == "0, 2"
    assert facts_of(report, "zh-hans")["门控分辨领域不优于随机的层"] == "0、2"
    assert title not in facts_of({"kind": "compose", "layers": layers[2:]})


def test_a_composed_model_is_held_against_the_best_of_its_parts() -> None:
    report = report_of(ASKED[10])
    told = operated_report(report)
    assert told is not None and told.domains
    for row in told.domains:
        assert row.before == min(losses[row.code] for losses in report["loss_of_each"].values())
        assert row.after == report["loss_after"][row.code] and row.verdict
    with override("en"):
        assert "not measured" not in operated_verdict(told).strong
    assert facts_of(report)["Loss before"] == "of the best of the versions, domain by domain"
