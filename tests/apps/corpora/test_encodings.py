"""Encodings of logs: told by the file, guessed, or named by whoever adds it; and said in the reader's language."""

from __future__ import annotations

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse
from django.utils import translation

from common.errors import Invalid
from corpora import services
from corpora.models import Corpus, FileState
from registry import store
from tests.apps.corpora.rows import add, logs, side

pytestmark = pytest.mark.django_db


def test_csv_and_chinese_encodings_are_read(people, corpus):
    text = "问题,回答,领域\n怎么退货？,请联系客服。,support\n发票呢？,已寄出。,support\n"
    file = add(people, corpus, text.encode("gb18030"), name="日志.csv")
    assert (file.taken, file.counts["encoding"]) == (2, "gb18030")
    rows = [row for name in ("train", "held_out") if getattr(Corpus.objects.get(), f"{name}_id") for row in side(corpus, name)]
    assert {row["messages"][0]["content"] for row in rows} == {"怎么退货？", "发票呢？"}


def test_a_guessed_encoding_and_rows_without_a_domain_are_told(people, corpus):
    add(people, corpus, "问题,回答\n怎么退货？,请联系客服。\n".encode("gb18030"), name="日志.csv")
    page = people.client("owner").get(reverse("corpora:detail", args=[corpus.pk])).content.decode()
    assert "encoding guessed" in page
    assert "Few are held out for no domain;" in page


def test_a_file_of_another_encoding_or_without_rows_is_refused_and_the_rest_stays(people, corpus):
    add(people, corpus, logs(40))
    latin = add(people, corpus, "user,assistant\nWas kostet das Gerät?,20 Euro\n".encode("latin-1"), name="latin1.csv")
    empty = add(people, corpus, b"", name="empty.jsonl")
    assert (latin.state, empty.state) == (FileState.FAILED, FileState.FAILED)
    assert "UTF-8" in latin.problem
    assert "no row" in empty.problem
    assert len(side(corpus, "train")) + len(side(corpus, "held_out")) == 40


GERMAN = "user,assistant\nWie ändere ich mein Paßwort?,Über die Schaltfläche „Konto“ – dort.\n"


def test_an_encoding_that_nothing_tells_is_named_and_the_file_is_read_again(people, corpus):
    file = add(people, corpus, GERMAN.encode("cp1252"), "german.csv")
    assert (file.state, file.error_code, file.error) == (FileState.FAILED, "unknown_encoding", "")
    named = services.file_edit(caller=people.owner, corpus_id=corpus.pk, file_id=file.pk, encoding="cp1252")
    assert (named.state, named.taken, named.problem) == (FileState.READY, 1, "")
    assert (named.counts["encoding"], named.counts["is_encoding_guessed"]) == ("cp1252", False)
    texts = [row for name in ("train", "held_out") for row in _rows(corpus, name)]
    assert "Paßwort" in texts[0]["messages"][0]["content"]
    assert "„Konto“" in texts[0]["messages"][1]["content"]


def _rows(corpus, name):
    corpus.refresh_from_db()
    sha256 = getattr(corpus, f"{name}_id")
    return [json.loads(row) for row in store.path_of(sha256).read_bytes().splitlines()] if sha256 else []


def test_a_guess_gives_way_to_what_is_named(people, corpus):
    text = "user,assistant\n怎么退货？请联系客服。,您可以在订单页面申请退货。\n"
    file = add(people, corpus, text.encode("gb18030"), "guess.csv")
    assert file.counts["is_encoding_guessed"] is True
    wrong = services.file_edit(caller=people.owner, corpus_id=corpus.pk, file_id=file.pk, encoding="big5")
    assert (wrong.counts["encoding"], wrong.counts["is_encoding_guessed"]) == ("big5", False)
    back = services.file_edit(caller=people.owner, corpus_id=corpus.pk, file_id=file.pk, encoding="")
    assert (back.counts["encoding"], back.taken) == ("gb18030", 1)


def test_only_known_encodings_are_taken(people, corpus):
    for name in ("latin-17", "idna", "unicode_escape", "utf-7"):
        with pytest.raises(Invalid, match="there are: utf-8"):
            add(people, corpus, logs(3), encoding=name)
    assert not corpus.files.exists()


def test_the_api_takes_an_encoding_with_the_file_and_afterwards(people, corpus):
    client, address = people.client("owner"), f"/api/v1/corpora/{corpus.pk}/files/"
    sent = {"file": SimpleUploadedFile("german.csv", GERMAN.encode("cp1252")), "encoding": "cp1252"}
    made = client.post(address, sent)
    assert (made.status_code, made.json()["encoding"], made.json()["error"]) == (201, "cp1252", "")
    changed = client.patch(f"{address}{made.json()['id']}/", {"encoding": "koi8_r"}, content_type="application/json")
    assert changed.json()["counts"]["encoding"] == "koi8_r"
    refused = client.patch(f"{address}{made.json()['id']}/", {"encoding": "x"}, content_type="application/json")
    assert refused.status_code in (400, 422)


@pytest.mark.parametrize(
    ("data", "name", "code", "english", "chinese"),
    [
        (GERMAN.encode("cp1252"), "german.csv", "unknown_encoding", "Name its encoding", "编码"),
        (b"a" * (2 << 20), "long.csv", "no_header", "no header row", "表头"),
        (b"\n\n", "empty.jsonl", "no_rows", "holds no row", "没有"),
        (b"alpha,beta\n1,2\n", "columns.csv", "no_columns", "it has: alpha, beta", "alpha, beta"),
    ],
)
def test_why_a_file_was_refused_is_said_in_the_language_of_whoever_reads_it(
    people, corpus, data, name, code, english, chinese
):
    with translation.override("zh-hans"):
        file = add(people, corpus, data, name)
    assert file.error_code == code
    for language, words in (("en", english), ("zh-hans", chinese)):
        reply = people.client("teammate").get(
            reverse("corpora:detail", args=[corpus.pk]), headers={"accept-language": language}
        )
        assert words in reply.content.decode()
        listed = people.client("teammate").get(
            f"/api/v1/corpora/{corpus.pk}/files/", headers={"accept-language": language}
        ).json()
        assert words in listed[0]["error"]
