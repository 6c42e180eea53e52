"""The registry over HTTP, for programs."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client, RequestFactory

from registry.models import Upload
from tests.apps.registry.fixtures import make_version

pytestmark = pytest.mark.django_db
LOGS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'


@pytest.fixture
def writer(people):
    return Client(headers=people.bearer("owner", "read", "write"))


def test_a_raw_body_is_stored_and_checked_against_the_promised_hash(writer):
    sha256 = hashlib.sha256(LOGS).hexdigest()
    reply = writer.post(
        f"/api/v1/uploads/?filename=logs.jsonl&sha256={sha256}", LOGS, content_type="application/octet-stream"
    )
    assert reply.status_code == 201, reply.content
    assert reply.json()["artifact"] == sha256
    wrong = writer.post(
        f"/api/v1/uploads/?filename=logs.jsonl&sha256={'0' * 64}", LOGS, content_type="application/octet-stream"
    )
    assert (wrong.status_code, wrong.json()["code"]) == (422, "sha256_mismatch")


def test_a_multipart_form_is_stored(writer):
    reply = writer.post("/api/v1/uploads/", {"file": SimpleUploadedFile("logs.csv", b"user,assistant\na,b\n")})
    assert reply.status_code == 201, reply.content
    assert reply.json()["kind"] == "csv"
    assert writer.get(f"/api/v1/uploads/{reply.json()['id']}/").json()["name"] == "logs.csv"
    assert writer.delete(f"/api/v1/uploads/{reply.json()['id']}/").status_code == 204
    assert not Upload.objects.exists()


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ("", LOGS, "no_file_name"),
        ("?filename=a.jsonl", b"", "no_file"),
        ("?filename=a.pt", b"PK\3\4\0\0", "refused_format"),
    ],
)
def test_a_body_that_is_no_file_of_ours_is_refused_in_words(writer, query, body, code):
    reply = writer.post(f"/api/v1/uploads/{query}", body, content_type="application/octet-stream")
    assert (reply.status_code, reply.json()["code"]) == (422, code)


@pytest.mark.django_db(transaction=True)
def test_a_lie_about_the_length_leaves_nothing(people, store_dir):
    environ = RequestFactory()._base_environ(
        PATH_INFO="/api/v1/uploads/", QUERY_STRING="filename=logs.jsonl", REQUEST_METHOD="POST", CONTENT_LENGTH="5000",
        CONTENT_TYPE="application/octet-stream", HTTP_AUTHORIZATION=people.bearer("owner", "write")["authorization"],
    )  # fmt: skip
    # As behind a server whose client went away: the stream just ends.
    reply = WSGIHandler()({**environ, "wsgi.input": io.BytesIO(LOGS)}, lambda status, headers: None)
    assert (reply.status_code, json.loads(reply.content)["code"]) == (422, "truncated")
    assert not [path for path in store_dir.rglob("*") if path.is_file()]


def test_a_file_of_a_version_comes_as_an_attachment(people, tmp_path, writer):
    version = make_version(people, tmp_path)
    reply = writer.get(f"/api/v1/versions/{version.pk}/files/config.json/")
    body = b"".join(reply.streaming_content)
    assert reply["Content-Type"] == "application/octet-stream"
    assert reply["Content-Disposition"] == 'attachment; filename="config.json"'
    assert reply["X-Content-Type-Options"] == "nosniff"
    assert reply["ETag"].strip('"') == hashlib.sha256(body).hexdigest() == version.files["config.json"]["sha256"]
    assert writer.get(f"/api/v1/versions/{version.pk}/files/manage.py/").status_code == 404
    for name in ("..", "%2e%2e%2fconfig.json", "../../manage.py"):
        assert writer.get(f"/api/v1/versions/{version.pk}/files/{name}/").status_code in (404, 400)


def test_a_version_says_everything_and_a_list_is_brief(people, tmp_path, writer):
    version = make_version(people, tmp_path)
    whole = writer.get(f"/api/v1/versions/{version.pk}/").json()
    assert whole["files"] == version.files
    assert whole["spec"]["hidden_size"] == 32
    brief = writer.get("/api/v1/versions/").json()["results"]
    assert [one["id"] for one in brief] == [version.pk]
    assert "files" not in brief[0]
    assert writer.get("/api/v1/versions/?model=999999").json()["results"] == []
    assert writer.get("/api/v1/models/").json()["results"][0]["versions"][0]["id"] == version.pk


def test_models_and_aliases_can_be_kept_by_a_program(people, tmp_path, writer):
    version = make_version(people, tmp_path)
    model = f"/api/v1/models/{version.model_id}/"
    edited = writer.patch(model, {"licence": "Apache-2.0"}, content_type="application/json")
    assert edited.json()["licence"] == "Apache-2.0"
    put = writer.put(f"{model}aliases/champion/", {"version": version.pk}, content_type="application/json")
    assert put.json()["version"] == version.pk
    assert writer.get(model).json()["aliases"][0]["name"] == "champion"
    assert writer.delete(f"{model}aliases/champion/").status_code == 204
    assert writer.post(f"/api/v1/versions/{version.pk}/verify/", content_type="application/json").json()["state"] == "ready"
    made = writer.post("/api/v1/models/", {"name": "模型"}, content_type="application/json")
    assert (made.status_code, made.json()["slug"]) == (201, "model")


def test_an_outsider_finds_nothing_and_a_viewer_changes_nothing(people, tmp_path, writer):
    version = make_version(people, tmp_path)
    writer.post("/api/v1/uploads/?filename=l.jsonl", LOGS, content_type="application/octet-stream")
    upload = Upload.objects.get()
    stranger = Client(headers=people.bearer("outsider", "read", "write"))
    for path in (
        f"/api/v1/models/{version.model_id}/",
        f"/api/v1/versions/{version.pk}/",
        f"/api/v1/versions/{version.pk}/files/config.json/",
        f"/api/v1/uploads/{upload.pk}/",
    ):
        mine = writer.get(path)
        if mine.streaming:
            assert b"".join(mine.streaming_content)  # which closes the file as well
        assert mine.status_code == 200, path
        assert stranger.get(path).status_code == 404, path
    assert stranger.post(f"/api/v1/versions/{version.pk}/verify/", content_type="application/json").status_code == 404
    assert stranger.delete(f"/api/v1/uploads/{upload.pk}/").status_code == 404
    for name in ("models", "versions", "uploads"):
        assert stranger.get(f"/api/v1/{name}/").json()["results"] == []
    viewer = people.client("teammate")
    assert viewer.get(f"/api/v1/versions/{version.pk}/").status_code == 200
    assert viewer.post(f"/api/v1/versions/{version.pk}/verify/", content_type="application/json").status_code == 403
    assert viewer.delete(f"/api/v1/uploads/{upload.pk}/").status_code == 403


def test_an_idempotency_key_does_not_make_the_server_read_a_file_twice(writer, people):
    url = "/api/v1/uploads/?filename=logs.jsonl"
    body = LOGS * 120_000  # more than Django would hold in memory
    headers = {"idempotency-key": "once"}
    first, again = (
        writer.post(url, body, content_type="application/octet-stream", headers=headers) for _ in range(2)
    )
    assert first.status_code == 201, first.content
    assert again.headers["Idempotent-Replay"] == "true"
    assert Upload.objects.count() == 1
