"""The API: submit, follow by cursor, steer; strangers find nothing."""

from __future__ import annotations

import pytest

from jobs import execution
from jobs.models import Job
from tests.apps.jobs.fixtures import IMPORT, tune_request

pytestmark = pytest.mark.django_db
BODY = {"kind": "import", "spec": IMPORT}


@pytest.fixture
def api(people, client):
    """Call the API as somebody with the given scopes."""

    def call(method: str, path: str, who: str = "owner", scopes: tuple[str, ...] = ("read", "write"), **more):
        headers = people.bearer(who, *scopes)
        return getattr(client, method)(
            f"/api/v1/jobs/{path}", content_type="application/json", headers=headers, **more
        )

    return call


def test_submitting_answers_202_with_the_place_to_follow(api) -> None:
    reply = api("post", "", data=BODY)
    assert reply.status_code == 202
    body = reply.json()
    assert reply.headers["Location"] == body["url"] == f"/api/v1/jobs/{body['id']}/"
    assert (body["state"], body["kind"], body["spec"]["name"]) == ("queued", "import", "SmolLM2")
    assert api("get", f"{body['id']}/").json()["state"] == "queued"


def test_a_tuning_job_is_submitted_by_ids(api, people, tmp_path) -> None:
    reply = api("post", "", data={"kind": "tune", "spec": tune_request(people, tmp_path)})
    assert reply.status_code == 202, reply.json()
    assert reply.json()["inputs"]["tune"]["route_steps"] == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "bake", "spec": {}}, 400),
        ({"kind": "import"}, 400),
        ({"kind": "import", "spec": []}, 422),
        ({"kind": "import", "spec": {"name": "x" * 121, "source": IMPORT["source"]}}, 422),
        ({"kind": "import", "spec": {"name": "x", "source": {"kind": "web", "url": "http://x"}}}, 422),
        ({"kind": "tune", "spec": {"model_version": 2**70, "domain_map": 1, "corpus": 1}}, 422),
    ],
)
def test_a_wrong_body_is_a_problem_with_its_fields(api, body, status) -> None:
    reply = api("post", "", data=body)
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json()["errors"]
    assert not Job.objects.exists()


def test_events_are_read_by_cursor(api, job) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    for step in range(4):
        execution.job_event(claim, "step", {"step": step})
    first = api("get", f"{job.pk}/events/", data={"limit": "3"}).json()
    assert [event["seq"] for event in first["events"]] == [1, 2, 3]
    rest = api("get", f"{job.pk}/events/", data={"after": str(first["after"])}).json()
    assert [event["seq"] for event in rest["events"]] == [4, 5, 6]
    assert rest["events"][-1]["payload"] == {"step": 3}
    end = api("get", f"{job.pk}/events/", data={"after": "6"}).json()
    assert (end["events"], end["after"], end["state"]) == ([], 6, "running")


def test_a_cursor_that_is_no_number_is_refused(api, job) -> None:
    assert api("get", f"{job.pk}/events/", data={"after": "-1"}).status_code == 422


@pytest.mark.parametrize(("steps", "state"), [(["cancel"], "cancelled"), (["pause", "resume"], "queued"),
                                              (["cancel", "retry"], "queued")])  # fmt: skip
def test_steering(api, job, steps, state) -> None:
    for step in steps:
        reply = api("post", f"{job.pk}/{step}/")
        assert reply.status_code == 202
    assert reply.json()["state"] == state


def test_a_refused_change_is_a_conflict(api, job) -> None:
    assert api("post", f"{job.pk}/resume/").status_code == 409


def test_the_report_is_the_result(api, job) -> None:
    Job.objects.filter(pk=job.pk).update(result={"tuning": {"before": {"loss": 2.0}}})
    assert api("get", f"{job.pk}/report/").json() == {"tuning": {"before": {"loss": 2.0}}}


@pytest.mark.parametrize("action", ["", "events/", "report/"])
def test_an_outsider_reads_nothing(api, job, action) -> None:
    assert api("get", f"{job.pk}/{action}", who="outsider").status_code == 404
    assert api("get", "", who="outsider").json()["results"] == []


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry", "clone"])
def test_an_outsider_and_a_reader_change_nothing(api, job, action) -> None:
    assert api("post", f"{job.pk}/{action}/", who="outsider").status_code == 404
    assert api("post", f"{job.pk}/{action}/", scopes=("read",)).status_code == 403
    assert Job.objects.count() == 1
    assert Job.objects.get().state == "queued"


def test_a_list_is_short_and_has_a_constant_number_of_queries(
    api, people, job, django_assert_max_num_queries
) -> None:
    for _ in range(5):
        Job.objects.create(team=people.owner.team, kind="import", name="x")
    with django_assert_max_num_queries(25):
        rows = api("get", "").json()["results"]
    assert len(rows) == 6
    assert "inputs" not in rows[0]


@pytest.mark.parametrize(
    ("more", "field"), [({"surprise": 1}, "surprise"), ({"name": 5}, "name"), ({"name": True}, "name")]
)
def test_a_body_is_taken_as_it_is_or_not_at_all(api, more, field) -> None:
    reply = api("post", "", data={"kind": "import", "spec": IMPORT, **more})
    assert reply.status_code == 400
    assert [error["field"] for error in reply.json()["errors"]] == [field]
    assert not Job.objects.exists()


def test_an_import_says_what_its_floats_are_kept_in(api) -> None:
    for asked, kept in ((None, "bfloat16"), ("float32", "float32")):
        spec = IMPORT if asked is None else {**IMPORT, "dtype": asked}
        reply = api("post", "", data={"kind": "import", "spec": spec})
        assert reply.json()["inputs"]["dtype"] == kept
    reply = api("post", "", data={"kind": "import", "spec": {**IMPORT, "dtype": "int8"}})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "dtype")


def test_a_list_is_narrowed_to_a_state_and_a_kind(api, people, tmp_path) -> None:
    first = api("post", "", data=BODY).json()["id"]
    tuning = api("post", "", data={"kind": "tune", "spec": tune_request(people, tmp_path)}).json()["id"]
    api("post", f"{first}/cancel/")

    def found(query: str) -> list[int]:
        return [job["id"] for job in api("get", query).json()["results"]]

    assert found("") == [tuning, first]
    assert found("?state=cancelled") == [first]
    assert found("?state=queued") == found("?kind=tune") == found("?state=queued&kind=tune") == [tuning]
    assert found("?state=cancelled&kind=tune") == []


@pytest.mark.parametrize(
    ("query", "field", "way_out"),
    [
        ("state=done", "state", "succeeded"),
        ("kind=bake", "kind", "operate"),
        ("limit=0", "limit", "from 1 to 200"),
        ("limit=ten", "limit", "from 1 to 200"),
        ("limit=-1", "limit", "from 1 to 200"),
    ],
)
def test_a_wrong_word_of_a_list_is_refused_with_the_right_ones(api, query, field, way_out) -> None:
    reply = api("get", f"?{query}")
    assert reply.status_code == 422
    (error,) = reply.json()["errors"]
    assert error["field"] == field
    assert way_out in error["message"]


def test_a_list_has_as_many_rows_as_asked_for_and_no_more_than_200(api) -> None:
    for _ in range(3):
        api("post", "", data=BODY)
    assert len(api("get", "?limit=2").json()["results"]) == 2
    assert len(api("get", "?limit=999999").json()["results"]) == 3


def test_a_page_of_events_has_one_at_least(api, job) -> None:
    reply = api("get", f"{job.pk}/events/?limit=0")
    assert reply.status_code == 422
    assert "from 1 to 500" in reply.json()["errors"][0]["message"]
