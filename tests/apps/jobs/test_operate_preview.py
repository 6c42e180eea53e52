"""A preview of an operation: a job that measures and keeps nothing, shown before anything is taken away."""

from __future__ import annotations

import pytest

from jobs.models import Job
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
