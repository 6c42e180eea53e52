"""A job's page says what was asked in the words of its form, and lists say which operation a job does."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.utils.translation import override

from jobs.models import Job
from jobs.operation_forms import FORMS
from jobs.operation_recipe import operation_recipe
from moe_core.spec.operate import OperateSpec
from tests.apps.jobs.test_operate_answers import ASKED

KINDS = {one["kind"]: one for one in ASKED} | {
    "upcycle": {"kind": "upcycle", "layout": {"moe_layers": [1], "num_experts": 4}, "granularity": 2}
}


def job_of(operation: dict[str, Any], **more: Any) -> Job:
    asked = OperateSpec.parse({"operation": operation, **more}).model_dump(mode="json")
    return Job(kind="operate", name="Tiny", inputs={"operate": asked})


@pytest.mark.parametrize("kind", FORMS)
def test_no_name_of_a_field_is_shown(kind: str) -> None:
    job = job_of(KINDS[kind])
    for language in ("en", "zh-hans"):
        with override(language):
            labels = [label for label, _value in operation_recipe(job)]
            assert labels and not [one for one in labels if re.fullmatch(r"[a-z]+(_[a-z]+)*", one)], labels
            if language == "zh-hans":
                assert all(re.search("[\u4e00-\u9fff]", one) for one in labels if one != "top-k"), labels


def test_values_are_told_as_the_form_tells_them() -> None:
    grown = dict(operation_recipe(job_of({"kind": "grow", "num_experts": 8, "method": "split"})))
    assert grown["Experts a layer, then"] == "8" and grown["How"] == "each expert cut in two, top-k doubles"
    merged = {"kind": "merge", "first": [0] * 12, "second": [1] * 12, "per_group": True}
    told = dict(operation_recipe(job_of(merged)))
    assert (
        told["Expert that stays"] == "0, 0, 0, 0, 0, 0, 0, 0 …" and told["The same in every group"] == "yes"
    )
    packed = {"kind": "quantise", "head": {"bits": 8}}
    told = dict(operation_recipe(job_of(packed, prompts_per_domain=4)))
    assert (told["Output map, bits"], told["Prompts of each domain"]) == ("8", "4")


def test_numbers_stand_as_in_the_form_whatever_the_database_made_of_their_order() -> None:
    job = job_of({"kind": "distil", "num_experts": 4})
    operation = job.inputs["operate"]["operation"]
    job.inputs["operate"]["operation"] = dict(
        sorted(operation.items(), key=lambda one: (len(one[0]), one[0]))
    )
    labels = [label for label, _value in operation_recipe(job)]
    assert labels[:2] == ["Experts a layer, then", "Steps"] and labels.index("Seed") > labels.index(
        "Learning rate"
    )


@pytest.mark.django_db
def test_the_list_names_the_operation(people: Any) -> None:
    job = job_of({"kind": "wake_expert"}, preview=True)
    job.team, job.created_by = people.owner.team, people.owner.user
    job.save()
    page = people.client("owner").get("/jobs/").content.decode()
    assert "Wake one" in page and ">preview<" in page
    assert Job(kind="tune").kind_words == "Build and tune"
