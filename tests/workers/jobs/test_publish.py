"""A preview ends with its report and without a version."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from jobs import execution
from jobs.models import Job
from jobs.services import job_submit
from registry.models import ModelVersion
from tests.apps.jobs.fixtures import make_corpus
from tests.apps.registry.fixtures import make_version, moe_spec
from workers.publish import publish
from workers.relay import Relay

pytestmark = pytest.mark.django_db(transaction=True)
REPORT = {"kind": "remove", "experts": [1, 1], "loss_before": {"copy": 2.0}, "loss_after": {"copy": 2.5}}


def test_a_preview_keeps_its_report_and_nothing_else(people, tmp_path) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(), name="Mixture")
    spec = {
        "model_version": version.pk, "corpus": make_corpus(people).pk, "operation": {"kind": "remove", "expert": 1},
        "options": {"preview": True},
    }  # fmt: skip
    job = job_submit(caller=people.owner, kind="operate", spec=spec)
    claim = execution.job_claim(job.pk, holder="a")
    assert claim is not None
    (tmp_path / "out").mkdir()
    publish(
        claim, Relay(claim, SimpleNamespace(lost=threading.Event())), {"operation": REPORT}, tmp_path / "out"
    )
    done = Job.objects.get(pk=job.pk)
    assert (done.state, done.progress, done.result_version_id) == ("succeeded", 1.0, None)
    assert done.result == {"operation": REPORT}
    assert ModelVersion.objects.count() == 1
