"""The form of a new deployment tells everything that is wrong at once."""

from __future__ import annotations

import pytest

from tests.apps.registry.fixtures import make_version, store_dir  # noqa: F401

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("language", "words"), [("en", "letter or digit at both ends"), ("zh-hans", "1")])
def test_a_wrong_name_and_too_many_replicas_are_told_together(people, tmp_path, language, words) -> None:
    version = make_version(people, tmp_path)
    form = {"name": "Bad Name!", "version": version.pk, "replicas": 500, "dtype": "float32", "kv_tokens": 4096,
            "max_sequences": 8, "num_threads": 1}  # fmt: skip
    reply = people.client("owner").post("/deployments/new/", form, headers={"accept-language": language})
    errors = reply.context["form"].errors
    assert reply.status_code == 422 and set(errors) == {"name", "replicas"}, errors
    assert words in errors["name"][0]
