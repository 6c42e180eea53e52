"""What a tuning job needs: a dense version, a layout, a map, logs."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from corpora.models import Corpus
from jobs.models import Job
from jobs.services import job_submit
from layouts.services import layout_create
from registry import store
from routing.services import map_create
from tests.apps.registry.fixtures import make_version

PLAN = {
    "num_experts": 4,
    "domains": [
        {"code": "support", "name_en": "Support replies", "name_zh": "客服回复", "experts": [0]},
        {"code": "copy", "name_en": "Product copy", "name_zh": "商品文案", "experts": [1]},
    ],
    "general_experts": [2, 3],
}


def rows(count: int, words: str) -> bytes:
    """Logs of two domains."""
    lines = (
        {
            "messages": [
                {"role": "user", "content": f"{words} {n}"},
                {"role": "assistant", "content": f"answer {n}"},
            ],
            "domain": ("support", "copy")[n % 2],
        }
        for n in range(count)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def make_corpus(people: Any, who: str = "owner") -> Corpus:
    """A corpus whose rows lie in the store."""
    caller = getattr(people, who)
    train, held_out = (store.put_stream(io.BytesIO(rows(n, w))) for n, w in ((40, "train"), (16, "held")))
    counts = {"by_domain": {code: {"train": 20, "held_out": 8} for code in ("copy", "support")}}
    return Corpus.objects.create(
        team=caller.team, created_by=caller.user, name="Logs", train=train, held_out=held_out, counts=counts
    )


def tune_request(people: Any, tmp_path: Any, who: str = "owner", **tune: Any) -> dict[str, Any]:
    """A complete specification, with small sizes."""
    caller, version = getattr(people, who), make_version(people, tmp_path, who=who)
    layout = layout_create(
        caller=caller, name="Four", base_version_id=version.pk,
        spec={"moe_layers": [1, 3], "num_experts": 4, "top_k": 2},
    )  # fmt: skip
    return {
        "model_version": version.pk,
        "layout": layout.pk,
        "domain_map": map_create(caller=caller, name="Map", plan=PLAN).pk,
        "corpus": make_corpus(people, who).pk,
        "tune": {
            "window_tokens": 16,
            "tokens_per_batch": 32,
            "specialise_steps": 2,
            "route_steps": 2,
            **tune,
        },
    }


IMPORT = {"name": "SmolLM2", "source": {"kind": "builtin", "name": "smollm2-135m-instruct"}}


@pytest.fixture
def job(people: Any) -> Job:
    """A queued import of the owner."""
    return job_submit(caller=people.owner, kind="import", spec=IMPORT)
