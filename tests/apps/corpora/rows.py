"""Rows of logs to send, and a look at what a corpus made of them."""

from __future__ import annotations

import io
import json

from corpora import services
from corpora.selectors import training_files
from registry import store


def line(user, assistant="answer", **more):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return json.dumps({"messages": messages, **more}, ensure_ascii=False).encode() + b"\n"


def logs(count, domain="support", start=0):
    return b"".join(line(f"question {number}", domain=domain) for number in range(start, start + count))


def add(people, corpus, data, name="logs.jsonl", **more):
    return services.file_add(
        caller=people.owner, corpus_id=corpus.pk, name=name, source=io.BytesIO(data), **more
    )


def side(corpus, name):
    corpus.refresh_from_db()
    return [json.loads(row) for row in store.path_of(training_files(corpus)[name]).read_bytes().splitlines()]
