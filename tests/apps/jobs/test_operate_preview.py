"""A preview of an operation: a job that measures and keeps nothing, shown before anything is taken away."""

from __future__ import annotations

import pytest

from jobs.models import Job
from layouts.models import Layout
from layouts.services import layout_create
from tests.apps.jobs.fixtures import tune_request
from tests.apps.jobs.test_operate import REPORT, operate
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


@pytest.fixture
def mixture(people, tmp_path):
    return make_version(people, tmp_path, spec=moe_spec(), name="Mixture")


def test_a_preview_is_a_job_that_keeps_nothing(people, mixture, tmp_path) -> None:
    client, corpus = people.client("owner"), tune_request(people, tmp_path)["corpus"]
    sent = {"model_version": mixture.pk, "expert": "1", "act": "preview"}
    reply = client.post("/jobs/operate/?operation=remove", sent)
    assert list(reply.context["form"].errors) == ["corpus"]
    reply = client.post("/jobs/operate/?operation=remove", {**sent, "corpus": corpus})
    job = Job.objects.get()
    assert job.is_preview and job.inputs["operate"]["preview"] is True
    Job.objects.filter(pk=job.pk).update(
        state="succeeded", ended_at=job.created_at, result={"operation": REPORT}
    )
    for language, words in (
        ("en", "This was a preview: nothing was kept."),
        ("zh-hans", "这是预演：未保留任何结果。"),
    ):
        page = client.get(f"/jobs/{job.pk}/", headers={"accept-language": language}).content.decode()
        assert words in page and "+0.400" in page
        assert 'data-station="save"' not in page and 'data-station="measure"' in page
        assert f"operation=remove&amp;job={job.pk}" in page
    form = client.get(f"/jobs/operate/?operation=remove&job={job.pk}").context["form"]
    assert (form["expert"].value(), form["corpus"].value()) == (1, corpus)


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_form_shows_what_the_preview_measured_before_it_is_confirmed(
    people, mixture, tmp_path, language
) -> None:
    corpus = tune_request(people, tmp_path)["corpus"]
    job = operate(people, mixture, {"kind": "remove", "expert": 1}, corpus=corpus, options={"preview": True})
    client = people.client("owner")
    client.cookies["django_language"] = language
    address = f"/jobs/operate/?operation=remove&job={job.pk}"
    before = client.get(address).content.decode()
    # Looking comes first while nothing was looked at.
    assert before.index('value="preview"') < before.index('class="btn" type="submit">')
    assert "+0.400" not in before
    Job.objects.filter(pk=job.pk).update(
        state="succeeded", ended_at=job.created_at, result={"operation": REPORT}
    )
    page = client.get(address).content.decode()
    assert "+0.400" in page and f"/jobs/{job.pk}/" in page
    assert page.index('class="btn primary" type="submit">') < page.index('value="preview"')
    assert people.client("outsider").get(address).status_code in (302, 403, 404)


def test_doing_a_previewed_upcycling_for_good_keeps_its_layout(people, tmp_path) -> None:
    asked, client = tune_request(people, tmp_path), people.client("owner")
    layout_create(
        caller=people.owner, name="Newer", base_version_id=asked["model_version"],
        spec={"moe_layers": [1], "num_experts": 8, "top_k": 1},
    )  # fmt: skip
    sent = {name: asked[name] for name in ("model_version", "corpus", "layout")}
    client.post("/jobs/operate/?operation=upcycle", {**sent, "act": "preview"})
    address = f"/jobs/operate/?operation=upcycle&job={Job.objects.get().pk}"
    reply = client.get(address)
    assert reply.context["form"]["layout"].value() == asked["layout"]
    assert reply.context["foreseen"].lines
    changed = {"moe_layers": [1], "num_experts": 2, "top_k": 1}
    Layout.objects.filter(pk=asked["layout"]).update(spec=changed)
    reply = client.get(address)
    assert reply.context["form"]["layout"].value() == ""
    assert "No layout is now as that job had it" in reply.content.decode()
    refused = client.post(address, {**sent, "layout": ""})
    assert list(refused.context["form"].errors) == ["layout"] and Job.objects.count() == 1
