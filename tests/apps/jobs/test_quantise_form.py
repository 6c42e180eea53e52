"""How experts, attention and the output map are packed: each in its own way, and a clone of a job as the job was."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils.translation import override

from jobs.models import Job
from jobs.operation_recipe import operation_recipe
from jobs.quantise_form import QuantiseForm
from jobs.services import job_submit
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
URL = "/jobs/operate/?operation=quantise"
EXPERTS = {"bits": 4, "group_size": 64, "symmetric": False}
PACKINGS: list[dict[str, Any]] = [
    {"quantisation": EXPERTS, "attention": None, "head": None},
    {"quantisation": EXPERTS, "attention": {**EXPERTS, "bits": 8}, "head": None},
    {
        "quantisation": EXPERTS,
        "attention": {"bits": 8, "group_size": 32, "symmetric": True},
        "head": {"bits": 8, "group_size": 128, "symmetric": False},
    },
    {
        "quantisation": {"bits": 8, "group_size": 256, "symmetric": True},
        "attention": None,
        "head": {"bits": 8, "group_size": 768, "symmetric": True},
        "rotate": True,
    },
    {
        "quantisation": {"bits": 4, "group_size": 32, "symmetric": True, "super_group_size": 256},
        "attention": {"bits": 4, "group_size": 32, "symmetric": True, "super_group_size": 768},
        "head": {"bits": 8, "group_size": 32, "symmetric": True},
        "level": True,
    },
    {
        "quantisation": {"bits": 4, "group_size": 32, "symmetric": True, "super_group_size": 256},
        "attention": {"bits": 4, "group_size": 32, "symmetric": True},
        "head": {"bits": 4, "group_size": 32, "symmetric": True, "super_group_size": 256},
    },
]


@pytest.fixture
def mixture(people, tmp_path):
    return make_version(people, tmp_path, spec=moe_spec(), name="Mixture")


def quantise(people, mixture, packing: dict[str, Any]) -> Job:
    spec = {"model_version": mixture.pk, "operation": {"kind": "quantise", **packing}}
    return job_submit(caller=people.owner, kind="operate", spec=spec)


@pytest.mark.parametrize("packing", PACKINGS)
def test_another_try_of_a_job_asks_for_what_the_job_was_asked(people, mixture, packing) -> None:
    job = quantise(people, mixture, packing)
    client = people.client("owner")
    form = client.get(f"{URL}&job={job.pk}").context["form"]
    # As a browser sends the form that it was shown.
    shown = {name: form[name].value() for name in form.fields}
    reply = client.post(URL, {name: value for name, value in shown.items() if value is not None})
    assert reply.status_code == 302, reply.context["form"].errors
    again = Job.objects.order_by("-pk")[0]
    assert again.pk != job.pk
    assert again.inputs["operate"]["operation"] == job.inputs["operate"]["operation"]


def test_what_is_left_open_is_as_of_the_experts(people, mixture) -> None:
    typed = {
        "model_version": mixture.pk, "bits": "4", "group_size": "32", "symmetric": "on", "attention": "8", "head": "4",
        "head_group_size": "64", "head_symmetric": "False",
    }  # fmt: skip
    form = QuantiseForm(typed, team=people.owner.team)
    assert form.is_valid(), form.errors
    assert form.operation() == {
        "kind": "quantise",
        "quantisation": {"bits": 4, "group_size": 32, "symmetric": True},
        "attention": {"bits": 8, "group_size": 32, "symmetric": True},
        "head": {"bits": 4, "group_size": 64, "symmetric": False},
    }


@pytest.mark.parametrize("own", [{"head_group_size": "64"}, {"head_symmetric": "False"}])
def test_what_stays_in_16_bits_has_no_packing_of_its_own(people, mixture, own) -> None:
    typed = {
        "model_version": mixture.pk,
        "bits": "4",
        "group_size": "32",
        "symmetric": "on",
        "attention": "8",
    }
    form = QuantiseForm({**typed, **own}, team=people.owner.team)
    assert list(form.errors) == ["head"] and "Choose 8 or 4 bits" in form.errors["head"][0]


def test_the_page_of_the_job_says_what_differs(people, mixture) -> None:
    job = quantise(people, mixture, PACKINGS[2])
    told = dict(operation_recipe(job))
    assert told["Attention, weights that share a scale"] == "32"
    assert told["Attention, symmetric"] == "yes"
    assert told["Output map, weights that share a scale"] == "128"
    # As of the experts.
    assert "Output map, symmetric" not in told
    with override("zh-hans"):
        assert dict(operation_recipe(job))["注意力：对称"] == "是"
