"""What the pages of operations on experts call their fields, and what they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.models import ModelVersion
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


@pytest.fixture
def mixture(people: Any, tmp_path: Path) -> ModelVersion:
    return make_version(people, tmp_path, spec=moe_spec(), name="Mixture")


def test_a_merge_speaks_of_merging_and_a_removal_of_going(people: Any, mixture: ModelVersion) -> None:
    client = people.client("owner")
    client.cookies["django_language"] = "zh-hans"
    labels = {"merge": "一起合并的专家数", "remove": "一起移出的专家数"}
    for kind, label in labels.items():
        page = client.get(f"/jobs/operate/?operation={kind}").content.decode()
        assert [one for one in labels.values() if one in page] == [label]
