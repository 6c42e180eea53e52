"""A job that stopped in a stage says so by the stage's title: on pages in the reader's language, to programs in English."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.utils import timezone
from django.utils.translation import override

from jobs.choices import JobKind
from jobs.models import Job
from jobs.reasons import error_in_english, error_told
from jobs.services import job_submit
from jobs.stages import STAGES, titles_of
from moe_core.sentences import CORE
from tests.apps.jobs.fixtures import tune_request
from tests.people import People


def stopped(stage: str) -> str:
    """What the training says when a step went wrong."""
    why = CORE.say("loss_of_expert_not_finite", expert=3, loss="nan")
    return CORE.say("stopped_at_step", step=7, stage=stage, why=why, rate="0.0003")


@pytest.fixture
def failed(people: People, tmp_path: Path) -> Job:
    """A tuning run that stopped while its experts were specialised."""
    job = job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))
    Job.objects.filter(pk=job.pk).update(
        state="failed", stage="specialise", error=stopped("specialise"),
        error_code="non_finite_loss", ended_at=timezone.now(),
    )  # fmt: skip
    return Job.objects.get(pk=job.pk)


@pytest.mark.parametrize("stage", [stage.key for stage in STAGES[JobKind.TUNE]])
@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_every_stage_is_said_by_its_title_in_the_readers_language(stage: str, language: str) -> None:
    with override(language):
        said, title = error_told(JobKind.TUNE, stopped(stage)), str(titles_of(JobKind.TUNE)[stage])
        assert f"“{title}”" in said
        assert f"stage {stage}" not in said


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_programs_get_english_with_the_title_whatever_language_is_asked_for(language: str) -> None:
    with override(language):
        said = error_in_english(JobKind.TUNE, stopped("specialise"))
    assert said == (
        "stopped at step 7 of stage “Specialise experts”: the loss of expert 3 is nan; no weight of that step was kept. "
        "Lower the learning rate (0.0003) or look for damaged logs"
    )


@pytest.mark.parametrize("text", ["", "no space left", stopped("a stage of another version")])
def test_what_names_no_stage_of_ours_is_left_as_it_was_said(text: str) -> None:
    assert error_in_english(JobKind.TUNE, text) == text


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("language", "title"),
    [("en", "of stage “Specialise experts”"), ("zh-hans", "在阶段“专家专精”的第 7 步停止")],
)
def test_job_lists_and_the_overview_say_the_title(
    people: People, failed: Job, language: str, title: str
) -> None:
    client = people.client("owner")
    for path in ("/jobs/", f"/jobs/{failed.pk}/", "/"):
        page = client.get(path, headers={"accept-language": language}).content.decode()
        assert title in page, path


@pytest.mark.django_db
def test_the_api_says_the_title_in_english_and_keeps_the_key_as_the_stage(
    people: People, failed: Job
) -> None:
    client = people.client("owner")
    for path in ("/api/v1/jobs/", f"/api/v1/jobs/{failed.pk}/"):
        answer = client.get(path, headers={"accept-language": "zh-hans"}).json()
        one = answer["results"][0] if "results" in answer else answer
        assert one["stage"] == "specialise"
        assert one["error"].startswith("stopped at step 7 of stage “Specialise experts”: ")
