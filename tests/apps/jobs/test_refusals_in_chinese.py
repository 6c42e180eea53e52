"""A job's or layout's specification that is wrong is refused in the reader's language, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from common.told import WORDS
from moe_core.spec.complaints import SENTENCES
from tests.apps.jobs.fixtures import make_corpus
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
DETAIL = "Technical detail", "技术细节"
OPERATIONS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"kind": "grow"}, "operation.num_experts", "This is missing; give it a value.", "缺少此项；请填写一个值。"),
    ({"kind": "remove", "expert": -1}, "operation.expert", "This must be at least 0.", "此项不得小于 0。"),
    ({"kind": "add", "nun": 1}, "operation.nun", "There is no such field.", "没有这个字段。"),
    ({"kind": "grow", "num_experts": "8"}, "operation.num_experts", "This must be a whole number.", "此项必须是整数。"),
    ({"kind": "grow", "num_experts": 8, "method": "x"}, "operation.method", "This must be one of these: 'twin', 'double_k', 'split'.", "此项必须是以下之一：'twin'、'double_k'、'split'。"),
    ({"kind": "specialise_clone", "domain": "A"}, "operation.domain", "This must match the pattern ^[a-z][a-z0-9_-]{0,62}$.", "此项必须符合模式 ^[a-z][a-z0-9_-]{0,62}$。"),
    ({"kind": "compose", "domains": ["a"]}, "operation.domains", "This must have at least 2 entries.", "此项至少要有 2 个条目。"),
    ({"kind": "distil", "num_experts": 2, "learning_rate": 0}, "operation.learning_rate", "This must be above 0.", "此项必须大于 0。"),
]  # fmt: skip


def asked(people: Any, url: str, body: dict[str, Any], language: str) -> dict[str, str]:
    reply = people.client("owner").post(
        url, body, content_type="application/json", headers={"accept-language": language}
    )
    assert reply.status_code == 422, reply.content
    assert not any(word in reply.content.decode() for word in ("Input should", *DETAIL))
    return {one["field"]: one["message"] for one in reply.json()["errors"]}


@pytest.mark.parametrize(("operation", "field", "english", "chinese"), OPERATIONS)
def test_an_operation(
    people: Any, tmp_path: Any, operation: Any, field: str, english: str, chinese: str
) -> None:
    version, corpus = make_version(people, tmp_path, spec=moe_spec(num_experts=4)), make_corpus(people)
    spec = {"model_version": version.pk, "corpus": corpus.pk, "operation": operation}
    for language, sentence in (("en", english), ("zh-hans", chinese)):
        body = {"kind": "operate", "spec": spec}
        assert asked(people, "/api/v1/jobs/", body, language)[field] == sentence


def test_a_layout(people: Any, tmp_path: Any) -> None:
    version = make_version(people, tmp_path)
    spec = {"moe_layers": [0], "num_experts": 2000, "gate": {"kind": "softmax_topk", "foo": 1}}
    body = {"name": "Eight", "base_version": version.pk, "spec": spec}
    errors = asked(people, "/api/v1/layouts/", body, "zh-hans")
    assert errors == {
        "spec.num_experts": "此项不得大于 1024。",
        "spec.gate.foo": "没有这个字段。",
    }


def test_an_unknown_kind_and_a_job_without_a_body(people: Any, tmp_path: Any) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(num_experts=4))
    spec: Any = {"model_version": version.pk, "operation": {"kind": "melt"}}
    said = asked(people, "/api/v1/jobs/", {"kind": "operate", "spec": spec}, "zh-hans")
    assert "melt" in said["operation"] and "quantise" in said["operation"]
    said = asked(people, "/api/v1/jobs/", {"kind": "tune", "spec": {"model_version": "1"}}, "zh-hans")
    assert said["model_version"] == "此项必须是整数。" and said["corpus"] == "缺少此项；请填写一个值。"


def test_every_common_complaint_has_its_words() -> None:
    assert {code for code, _places in SENTENCES.values()} <= set(WORDS)
