"""Corpora: files in, repeats out, two sides, reports; for the team alone."""

from __future__ import annotations

import io
import resource

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from accounts.models import AuditEvent
from common.errors import Conflict, Forbidden, Invalid, NotFound
from common.leases import lease_claim
from corpora import describe, services
from corpora.loops import settle_waiting
from corpora.models import Corpus, CorpusFile, FileState, Refusal
from corpora.selectors import training_files
from registry.collector import collect
from tests.apps.corpora.rows import add, line, logs, side

pytestmark = pytest.mark.django_db


def test_rows_fall_on_two_sides_by_hash_and_none_is_lost(people, corpus):
    file = add(people, corpus, logs(400))
    assert file.state == FileState.READY
    train, held_out = side(corpus, "train"), side(corpus, "held_out")
    assert len(train) + len(held_out) == 400
    assert 30 < len(held_out) < 95
    assert corpus.counts["by_domain"] == {"support": {"train": len(train), "held_out": len(held_out)}}
    assert set(train[0]) == {"messages", "domain"}


def test_a_row_never_changes_sides_when_files_are_added(people, corpus):
    add(people, corpus, logs(200))
    before = {row["messages"][0]["content"] for row in side(corpus, "held_out")}
    add(people, corpus, logs(200, start=200), name="more.jsonl")
    after = {row["messages"][0]["content"] for row in side(corpus, "held_out")}
    assert before < after
    assert not after & {row["messages"][0]["content"] for row in side(corpus, "train")}


def test_repeats_are_taken_once_also_across_files(people, corpus):
    first = add(people, corpus, logs(50) + logs(50))
    second = add(people, corpus, logs(60), name="again.jsonl")
    assert (first.taken, first.counts["duplicates"]) == (50, 50)
    assert (second.taken, second.counts["duplicates"]) == (10, 50)
    services.file_remove(caller=people.owner, corpus_id=corpus.pk, file_id=first.pk)
    second.refresh_from_db()
    assert (second.taken, second.counts["duplicates"]) == (60, 0)
    assert len(side(corpus, "train")) + len(side(corpus, "held_out")) == 60


def test_each_refused_row_is_reported_with_number_reason_and_beginning(people, corpus):
    file = add(people, corpus, line("good") + b"{broken\n\n" + line("", "x") + line("=cmd()", "ok", domain="No!"))
    assert (file.taken, file.counts["refused"]) == (1, 3)
    found = list(file.refusals.values_list("row", "code", "excerpt"))
    assert [(row, code) for row, code, _excerpt in found] == [(2, "not_json"), (4, "empty_text"), (5, "bad_domain")]
    assert found[0][2] == "{broken"
    reply = people.client("owner").get(reverse("corpora:refusals_csv", args=[corpus.pk, file.pk]))
    text = b"".join(reply.streaming_content).decode("utf-8-sig")
    assert text.count("\r\n") == 4
    assert reply["X-Content-Type-Options"] == "nosniff"


def test_a_default_domain_holds_for_rows_that_name_none_and_may_be_changed(people, corpus):
    file = add(people, corpus, line("a") + line("b", domain="copy"), default_domain="support")
    assert set(file.counts["by_domain"]) == {"support", "copy"}
    changed = services.file_edit(caller=people.owner, corpus_id=corpus.pk, file_id=file.pk, default_domain="legal")
    assert set(changed.counts["by_domain"]) == {"legal", "copy"}
    assert changed.taken == 2
    with pytest.raises(Invalid):
        add(people, corpus, line("a"), default_domain="Not a code")


def test_a_table_without_columns_is_a_failed_file_and_the_rest_stays(people, corpus):
    add(people, corpus, logs(40))
    bad = add(people, corpus, b"a,b\n1,2\n", name="x.csv")
    assert bad.state == FileState.FAILED
    assert "user" in bad.problem
    assert len(side(corpus, "train")) + len(side(corpus, "held_out")) == 40


def test_what_is_no_log_is_refused_at_the_door(people, corpus):
    for name, data in (("x.jsonl", b"PK\3\4\0\0\0\0"), ("x.json", b"{}"), ("model.gguf", b"GGUF" + b"\0" * 20)):
        with pytest.raises(Invalid):
            add(people, corpus, data, name=name)
    assert not CorpusFile.objects.exists()


def test_a_column_of_free_text_is_not_a_thousand_domains(people, corpus):
    file = add(people, corpus, b"".join(line(f"q{number}", domain=f"d{number:03d}") for number in range(100)))
    assert len(file.counts["by_domain"]) == 64
    assert file.counts["by_refusal"] == {"too_many_domains": 36}


def test_a_corpus_without_rows_cannot_be_trained_on(people, corpus):
    with pytest.raises(Conflict):
        training_files(corpus)
    with pytest.raises(NotFound):
        services.file_add(
            caller=people.outsider, corpus_id=corpus.pk, name="x.jsonl", source=io.BytesIO(logs(1))
        )
    with pytest.raises(Forbidden):
        services.file_add(
            caller=people.teammate, corpus_id=corpus.pk, name="x.jsonl", source=io.BytesIO(logs(1))
        )


def test_a_file_whose_reader_was_killed_is_read_by_the_loop(people, corpus):
    file = add(people, corpus, logs(30))
    counts = Corpus.objects.get().counts
    CorpusFile.objects.filter(pk=file.pk).update(state=FileState.VALIDATING, counts={}, train=None, held_out=None)
    Corpus.objects.update(counts={}, train=None, held_out=None)
    settle_waiting()
    assert Corpus.objects.get().counts == counts


def test_a_corpus_that_somebody_reads_is_left_alone_and_settled_later(people, corpus):
    claim = lease_claim(resource=f"corpus:{corpus.pk}", holder="somebody", ttl_s=30)
    assert claim is not None
    file = add(people, corpus, logs(10))
    assert file.state == FileState.WAITING
    settle_waiting()
    file.refresh_from_db()
    assert file.state == FileState.WAITING


def test_the_collector_keeps_what_a_corpus_needs(people, corpus):
    add(people, corpus, logs(100))
    collect(grace=__import__("datetime").timedelta(0))
    assert side(corpus, "train") and side(corpus, "held_out")


def test_memory_does_not_grow_with_the_file(people, corpus):
    big = b"".join(line("x" * 900 + str(number)) for number in range(12_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = add(people, corpus, big)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert file.taken == 12_000
    assert grown < 48 * 1024


def test_the_samples_come_through_the_same_door(people):
    made = services.corpus_from_samples(caller=people.owner)
    assert made.files.count() == 5
    assert made.counts["refused"] == 0
    assert len(made.counts["by_domain"]) == 5
    assert all(sides["held_out"] >= 10 for sides in made.counts["by_domain"].values())
    again = services.corpus_from_samples(caller=people.owner)
    assert again.name != made.name
    assert (again.train_id, again.held_out_id) == (made.train_id, made.held_out_id)


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_pages_open_for_the_team_only(people, corpus, language):
    file = add(people, corpus, logs(40) + b"{broken\n")
    pages = [
        reverse("corpora:list"),
        reverse("corpora:detail", args=[corpus.pk]),
        reverse("corpora:rows", args=[corpus.pk]) + "?side=held_out&domain=support&page=2",
        reverse("corpora:refusals", args=[corpus.pk, file.pk]),
    ]
    for page in pages:
        for who in ("owner", "teammate"):
            assert people.client(who).get(page, headers={"accept-language": language}).status_code == 200, page
        if page != pages[0]:
            assert people.client("outsider").get(page).status_code == 404
    assert b"Logs<" not in people.client("outsider").get(pages[0]).content
    upload = reverse("corpora:upload", args=[corpus.pk])
    assert people.client("teammate").post(upload, {"file": SimpleUploadedFile("l.jsonl", logs(1))}).status_code == 403
    assert people.client("outsider").post(upload, {"file": SimpleUploadedFile("l.jsonl", logs(1))}).status_code == 404


def test_a_person_uploads_sets_a_domain_and_takes_out(people):
    client = people.client("owner")
    made = client.post(reverse("corpora:list"), {"name": "Mine"})
    corpus = Corpus.objects.get()
    assert made["Location"] == reverse("corpora:detail", args=[corpus.pk])
    assert client.post(reverse("corpora:list"), {"name": "Mine"}).status_code == 422
    client.post(
        reverse("corpora:upload", args=[corpus.pk]),
        {"file": SimpleUploadedFile("l.jsonl", logs(30, domain=None)), "default_domain": "support"},
    )
    file = CorpusFile.objects.get()
    assert file.counts["by_domain"].keys() == {"support"}
    client.post(reverse("corpora:file_domain", args=[corpus.pk, file.pk]), {"default_domain": "copy"})
    assert "question 1" in client.get(reverse("corpora:detail", args=[corpus.pk])).content.decode()
    client.post(reverse("corpora:file_remove", args=[corpus.pk, file.pk]))
    assert not CorpusFile.objects.exists()
    client.post(reverse("corpora:delete", args=[corpus.pk]))
    assert not Corpus.objects.exists()
    actions = set(AuditEvent.objects.filter(team=people.owner.team).values_list("action", flat=True))
    assert {"corpus.created", "corpus.file_added", "corpus.file_edited", "corpus.file_removed", "corpus.deleted"} <= actions


def test_programs_do_the_same_over_rest(people):
    client = Client(headers=people.bearer("owner", "read", "write"))
    made = client.post("/api/v1/corpora/", {"name": "R"}, content_type="application/json").json()
    url = f"/api/v1/corpora/{made['id']}/"
    raw = client.post(
        f"{url}files/?filename=a.jsonl&default_domain=copy", logs(60, domain=None), content_type="application/x-ndjson"
    )
    assert raw.status_code == 201, raw.content
    assert raw.json()["counts"]["by_domain"].keys() == {"copy"}
    form = client.post(f"{url}files/", {"file": SimpleUploadedFile("b.csv", b"user,assistant\nx,y\n,z\n"), "default_domain": "support"})
    assert form.json()["counts"]["refused"] == 1
    upload = client.post("/api/v1/uploads/?filename=c.jsonl", logs(5, start=900), content_type="application/octet-stream")
    named = client.post(f"{url}files/", {"upload": upload.json()["id"]}, content_type="application/json")
    assert named.status_code == 201, named.content
    again = client.post(f"{url}files/", {"upload": upload.json()["id"]}, content_type="application/json")
    assert again.json()["code"] == "already_there"
    whole = client.get(url).json()
    assert whole["counts"]["train"] + whole["counts"]["held_out"] == 66
    assert len(client.get(f"{url}rows/?limit=5&domain=copy").json()) == 5
    refused = client.get(f"{url}files/{form.json()['id']}/refusals/").json()["results"]
    assert refused[0]["code"] == "empty_text"
    sent = b"".join(client.get(f"{url}download/train/").streaming_content)
    assert len(sent.splitlines()) == whole["counts"]["train"]
    assert client.get(f"{url}download/other/").status_code == 404
    stranger = Client(headers=people.bearer("outsider", "read", "write"))
    for path in (url, f"{url}rows/", f"{url}files/", f"{url}download/train/", f"{url}files/{form.json()['id']}/refusals/"):
        assert stranger.get(path).status_code == 404, path
    assert stranger.post(f"{url}files/?filename=a.jsonl", logs(1), content_type="application/x-ndjson").status_code == 404
    assert client.delete(f"{url}files/{form.json()['id']}/").status_code == 204
    assert client.delete(url).status_code == 204
    assert not Refusal.objects.exists()


def test_one_conversation_is_not_counted_as_many(people, corpus):
    add(people, corpus, logs(1))
    corpus.refresh_from_db()
    assert describe.corpus_verdict(corpus).strong.startswith("1 conversation: ")
    add(people, corpus, logs(3, start=5), name="more.jsonl")
    corpus.refresh_from_db()
    assert describe.corpus_verdict(corpus).strong.startswith("4 conversations: ")
