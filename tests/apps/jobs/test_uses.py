"""Logs that an open job uses are not deleted: the refusal names the job, to people and to programs."""

from __future__ import annotations

import pytest

from common.errors import Conflict
from corpora.models import Corpus
from corpora.services import corpus_delete
from jobs.models import Job
from jobs.services import job_submit
from tests.apps.jobs.fixtures import make_corpus, tune_request
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


@pytest.fixture
def tuned(people, tmp_path) -> Job:
    return job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))


def test_a_corpus_that_an_open_job_uses_is_kept_and_the_job_is_named(people, tuned) -> None:
    corpus = Corpus.objects.get()
    with pytest.raises(Conflict, match=f"Logs is in use by job {tuned.pk}") as refused:
        corpus_delete(caller=people.owner, corpus_id=corpus.pk)
    assert refused.value.code == "in_use"
    reply = people.client("owner").delete(f"/api/v1/corpora/{corpus.pk}/")
    assert (reply.status_code, reply.json()["code"]) == (409, "in_use")
    page = people.client("owner").post(
        f"/data/{corpus.pk}/delete/", headers={"referer": f"http://testserver/data/{corpus.pk}/"}, follow=True
    )
    assert f"job {tuned.pk}" in page.content.decode()
    assert Corpus.objects.filter(pk=corpus.pk).exists()


def test_once_the_job_has_ended_the_corpus_may_go(people, tuned) -> None:
    corpus = Corpus.objects.get()
    Job.objects.filter(pk=tuned.pk).update(state="cancelled", ended_at=tuned.created_at)
    corpus_delete(caller=people.owner, corpus_id=corpus.pk)
    assert not Corpus.objects.exists()


def test_an_operation_holds_its_logs_too(people, tmp_path) -> None:
    corpus, other = make_corpus(people), make_corpus(people, who="outsider")
    version = make_version(people, tmp_path, spec=moe_spec(), name="Mixture")
    job_submit(
        caller=people.owner, kind="operate",
        spec={"model_version": version.pk, "corpus": corpus.pk, "operation": {"kind": "remove"}},
    )  # fmt: skip
    with pytest.raises(Conflict):
        corpus_delete(caller=people.owner, corpus_id=corpus.pk)
    corpus_delete(caller=people.outsider, corpus_id=other.pk)
