"""The pages: whole, in both languages, honest about the state, closed to strangers."""

from __future__ import annotations

import pytest

from jobs import execution
from jobs.models import Job
from jobs.services import job_submit
from moe_core.spec import TuneSpec
from registry.models import Upload, UploadKind
from tests.apps.jobs.fixtures import tune_request
from tests.apps.jobs.test_report import AFTER, BEFORE, CONTROL
from tests.apps.registry.gguf_files import write_gguf

pytestmark = pytest.mark.django_db


@pytest.fixture
def tune(people, tmp_path) -> Job:
    return job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))


def text(reply) -> str:
    return reply.content.decode()


def test_an_empty_list_says_what_to_do(people) -> None:
    page = text(people.client("owner").get("/jobs/"))
    assert "No job yet." in page
    assert "/jobs/import/" in page


def test_the_list_shows_states_and_moves_while_something_does(people, job) -> None:
    page = text(people.client("teammate").get("/jobs/"))
    assert "waiting for a worker" in page
    assert 'hx-trigger="every 3s"' in page
    Job.objects.filter(pk=job.pk).update(state="cancelled", ended_at=job.created_at)
    assert "hx-trigger" not in text(people.client("teammate").get("/jobs/"))


@pytest.mark.parametrize(("show", "seen"), [("", True), ("open", True), ("ended", False), ("nonsense", True)])
def test_the_list_is_filtered(people, job, show, seen) -> None:
    assert (f"/jobs/{job.pk}/" in text(people.client("owner").get(f"/jobs/?show={show}"))) == seen


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("state", ["queued", "running", "paused", "succeeded", "failed"])
def test_the_page_of_a_job_is_whole_in_every_state(people, tune, state, language) -> None:
    ended = tune.created_at if state in ("succeeded", "failed") else None
    result = (
        {"tuning": {"before": BEFORE, "after": AFTER, "control": CONTROL}} if state == "succeeded" else {}
    )
    error = "the disk of the worker broke" if state == "failed" else ""
    Job.objects.filter(pk=tune.pk).update(
        state=state,
        ended_at=ended,
        result=result,
        error=error,
        log_tail=error,
        stage="route",
        started_at=tune.created_at,
    )
    page = text(people.client("owner").get(f"/jobs/{tune.pk}/", headers={"accept-language": language}))
    for part in ("state", "actions", "verdict", "stations", "report", "recipe", "lineage", "tail"):
        assert f'data-part="{part}"' in page
    assert f'data-live-url="/ws/jobs/{tune.pk}/"' in page
    assert ("客服回复" if language == "zh-hans" else "Support replies") in page
    assert (error in page) if error else True
    assert page.count("<li") > 9


def test_buttons_fit_the_state_and_the_role(people, tune) -> None:
    page = text(people.client("owner").get(f"/jobs/{tune.pk}/"))
    assert f"/jobs/{tune.pk}/pause/" in page
    assert f"/jobs/{tune.pk}/resume/" not in page
    assert f"/jobs/{tune.pk}/pause/" not in text(people.client("teammate").get(f"/jobs/{tune.pk}/"))


def test_a_button_moves_the_job_and_says_so(people, tune) -> None:
    reply = people.client("owner").post(f"/jobs/{tune.pk}/pause/", follow=True)
    assert Job.objects.get(pk=tune.pk).state == "paused"
    assert "its state is kept" in text(reply)


def test_a_refused_button_is_a_toast_not_a_crash(people, tune) -> None:
    client = people.client("owner")
    reply = client.post(
        f"/jobs/{tune.pk}/resume/", headers={"referer": f"http://testserver/jobs/{tune.pk}/"}, follow=True
    )
    assert reply.status_code == 200
    assert "cannot become" in text(reply)


def test_an_outsider_finds_no_page_and_no_button(people, tune) -> None:
    client = people.client("outsider")
    for path in (f"/jobs/{tune.pk}/", f"/jobs/{tune.pk}/log/"):
        assert client.get(path).status_code == 404
    assert client.post(f"/jobs/{tune.pk}/cancel/").status_code == 404
    assert Job.objects.get(pk=tune.pk).state == "queued"


def test_an_action_that_does_not_exist_is_not_found(people, tune) -> None:
    assert people.client("owner").post(f"/jobs/{tune.pk}/explode/").status_code == 404


def test_the_log_is_a_file(people, job) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    execution.job_event(claim, "log", {"level": "info", "text": "<script>alert(1)</script>"})
    execution.job_fail(claim, code="x", message="y", log_tail="<script>alert(1)</script>\nthe end")
    reply = people.client("teammate").get(f"/jobs/{job.pk}/log/")
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert "attachment" in reply.headers["Content-Disposition"]
    assert text(reply).count("alert(1)") == 1
    assert "the end" in text(reply)


def test_what_a_child_said_is_shown_as_text_never_as_markup(people, job) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    execution.job_fail(claim, code="x", message="<img src=x onerror=alert(1)>", log_tail="<b>bold</b>")
    page = text(people.client("owner").get(f"/jobs/{job.pk}/"))
    assert "<img src=x" not in page
    assert "<b>bold" not in page


def test_the_import_form_starts_a_job(people) -> None:
    form = {"source": "builtin", "builtin": "smollm2-135m-instruct", "name": "Mine"}
    reply = people.client("owner").post("/jobs/import/", form)
    job = Job.objects.get()
    assert (reply.status_code, reply.headers["Location"]) == (302, f"/jobs/{job.pk}/")
    assert (job.kind, job.spec["name"]) == ("import", "Mine")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"source": "upload", "name": "x"}, "Say which one."),
        ({"source": "folder", "path": "/etc", "name": "x"}, "TURNOUT_IMPORT_ROOTS"),
        ({"source": "builtin", "builtin": "smollm2-135m-instruct"}, "required"),
    ],
)
def test_a_wrong_import_form_says_what_is_wrong(people, form, words) -> None:
    reply = people.client("owner").post("/jobs/import/", form)
    assert reply.status_code == 422
    assert words in text(reply)
    assert not Job.objects.exists()


def test_a_refused_folder_is_told_beside_the_path(people, settings, tmp_path) -> None:
    settings.IMPORT_ROOTS = [tmp_path.resolve()]
    form = {"source": "folder", "path": "/etc", "name": "x"}
    for language, words in (("en", "no such file or folder"), ("zh-hans", "导入目录下没有")):
        reply = people.client("owner").post("/jobs/import/", form, headers={"accept-language": language})
        assert words in reply.context["form"].errors["path"][0], reply.context["form"].errors


def test_an_uploaded_file_is_offered_and_imported(people) -> None:
    from registry import store

    artifact = store.put_stream([b"GGUF" + bytes(100)])
    caller = people.owner
    upload = Upload.objects.create(
        team=caller.team,
        created_by=caller.user,
        name="small.gguf",
        kind=UploadKind.GGUF,
        artifact=artifact,
        size_bytes=104,
    )
    assert "small.gguf" in text(people.client("owner").get("/jobs/import/"))
    people.client("owner").post("/jobs/import/", {"source": "upload", "upload": upload.pk, "name": "Small"})
    assert Job.objects.get().artifacts.get().artifact_id == artifact.sha256


@pytest.mark.parametrize(("language", "words"), [("en", "Join the parts"), ("zh-hans", "合并各部分")])
def test_an_uploaded_part_of_a_model_is_refused_with_the_way_to_join_it(people, tmp_path, language, words) -> None:
    from registry import store

    artifact, caller = store.put_stream([write_gguf(tmp_path / "m.gguf", number=1, count=3)]), people.owner
    upload = Upload.objects.create(
        team=caller.team, created_by=caller.user, name="m-00002-of-00003.gguf", kind=UploadKind.GGUF,
        artifact=artifact, size_bytes=artifact.size_bytes,
    )  # fmt: skip
    body = {"kind": "import", "spec": {"name": "m", "source": {"kind": "upload", "id": upload.pk}}}
    reply = people.client("owner").post(
        "/api/v1/jobs/", body, content_type="application/json", headers={"accept-language": language}
    )
    assert reply.status_code == 422
    assert words in {one["field"]: one["message"] for one in reply.json()["errors"]}["source.id"]
    assert not Job.objects.exists()


def test_the_tuning_form_offers_the_teams_parts_and_starts_a_job(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    client = people.client("owner")
    page = client.get("/jobs/tune/")
    form = page.context["form"]
    data = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    assert data["corpus"] == request["corpus"]
    data |= {name: request[name] for name in ("model_version", "layout", "domain_map", "corpus")}
    data |= {"route_steps": 3, "dtype": "float32", "control": "on", "name": ""}
    reply = client.post("/jobs/tune/", {name: value for name, value in data.items() if value is not None})
    assert reply.status_code == 302, reply.context["form"].errors
    job = Job.objects.get()
    assert job.inputs["tune"]["route_steps"] == 3
    assert job.inputs["tune"]["specialise_steps"] == TuneSpec.model_fields["specialise_steps"].default


def test_a_tuning_form_with_parts_that_do_not_fit_says_so_beside_the_field(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    client = people.client("owner")
    form = client.get("/jobs/tune/").context["form"]
    data = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    data |= {**request, "layout": "", "dtype": "float32", "name": ""}
    reply = client.post("/jobs/tune/", {name: value for name, value in data.items() if name != "tune" and value is not None})
    assert reply.status_code == 422
    assert "layout" in reply.context["form"].errors


def test_a_team_without_parts_is_told_what_is_missing(people) -> None:
    page = text(people.client("owner").get("/jobs/tune/"))
    assert "Something is still missing." in page
    assert "No logs yet" in page


def test_a_viewer_is_offered_no_forms(people) -> None:
    client = people.client("teammate")
    assert client.get("/jobs/tune/").status_code == 403
    assert client.get("/jobs/import/").status_code == 403
    assert "/jobs/tune/" not in text(client.get("/jobs/"))


def test_a_list_of_many_jobs_takes_a_constant_number_of_queries(
    people, job, django_assert_max_num_queries
) -> None:
    for _ in range(20):
        Job.objects.create(team=people.owner.team, created_by=people.owner.user, kind="import", name="x")
    client = people.client("owner")
    client.get("/jobs/")
    with django_assert_max_num_queries(30):
        client.get("/jobs/")


def test_the_end_of_a_log_is_shown_line_by_line_in_the_readers_language(people, job) -> None:
    tail = "resumed in stage route after step 4\nTraceback (most recent call last):"
    Job.objects.filter(pk=job.pk).update(state="failed", ended_at=job.created_at, error="x", log_tail=tail)
    page = text(people.client("owner").get(f"/jobs/{job.pk}/", headers={"accept-language": "zh-hans"}))
    shown = page[page.index('data-part="tail"') :]
    assert "在阶段“route”第 4 步之后恢复\nTraceback (most recent call last):" in shown


def test_a_line_of_a_log_calls_operations_and_stages_as_the_page_does(people, tune) -> None:
    tail = "operation grow begins; models: 1\nresumed in stage route after step 4"
    Job.objects.filter(pk=tune.pk).update(state="failed", ended_at=tune.created_at, error="x", log_tail=tail)
    page = text(people.client("owner").get(f"/jobs/{tune.pk}/", headers={"accept-language": "zh-hans"}))
    shown = page[page.index('data-part="tail"') :]
    assert "操作“扩展”开始" in shown and "在阶段“调优路由器”第 4 步之后恢复" in shown


def test_without_a_checkpoint_a_stopped_job_says_that_it_begins_anew(people, job) -> None:
    for state, ended in (("cancelled", job.created_at), ("paused", None)):
        Job.objects.filter(pk=job.pk).update(state=state, ended_at=ended)
        assert "begins anew" in text(people.client("owner").get(f"/jobs/{job.pk}/"))
