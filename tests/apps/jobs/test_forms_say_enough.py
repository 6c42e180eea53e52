"""Forms of jobs tell at once what they can, and ask for what is missing without a complaint."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.models import Job
from jobs.pages import lineage_of
from layouts.models import Layout
from routing.services import map_create
from tests.apps.jobs.fixtures import make_corpus
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
MAP = {
    "num_experts": 8,
    "general_experts": [7],
    "domains": [{"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [0, 1]}],
}


def page(people: Any, url: str) -> str:
    return people.client("owner").get(url).content.decode()


def test_a_clone_asks_for_its_domain_and_names_those_of_the_logs(people: Any, tmp_path: Any) -> None:
    make_version(people, tmp_path, spec=moe_spec(num_experts=8))
    corpus = make_corpus(people)
    shown = page(people, "/jobs/operate/?operation=specialise_clone")
    assert "Fill in what is empty above and mend" in shown and "missing; give it a value" not in shown
    codes = ", ".join(code for code in sorted(corpus.counts["by_domain"]) if code)
    assert codes and f"The logs have: {codes}." in shown
    filled = {"domain": "copy", "source": 0, "steps": 1}
    version = page(people, "/jobs/operate/").split('<option value="')[1].split('"')[0]
    answer = people.client("owner").post(
        "/jobs/operate/foreseen/?operation=specialise_clone", {**filled, "model_version": version}
    )
    assert 'data-foreseen="num_experts"' in answer.content.decode()


def test_laying_experts_is_foretold_as_the_page_opens(people: Any, tmp_path: Any) -> None:
    version = make_version(people, tmp_path)
    missing = "There is none yet; draw one under Layouts first."
    assert missing in page(people, "/jobs/operate/?operation=upcycle")
    spec = {"moe_layers": [1, 3], "num_experts": 8, "top_k": 2}
    Layout.objects.create(team=people.owner.team, name="Eight", base_version=version, spec=spec)
    shown = page(people, "/jobs/operate/?operation=upcycle")
    assert 'data-foreseen="num_experts"' in shown and missing not in shown


def test_the_size_of_what_is_packed_is_called_so(people: Any, tmp_path: Any) -> None:
    make_version(people, tmp_path, spec=moe_spec(num_experts=8))
    assert "Size, bf16 where not packed" in page(people, "/jobs/operate/?operation=quantise")
    assert "Size at bf16" in page(people, "/jobs/operate/?operation=grow")


def test_the_tuning_form_says_at_once_that_a_map_does_not_fit(people: Any, tmp_path: Any) -> None:
    domain_map = map_create(caller=people.owner, name="Domains", plan=MAP)
    lineage = {"kind": "tune", "map_id": domain_map.pk, "map_revision": 1}
    tuned = make_version(people, tmp_path, name="tuned", spec=moe_spec(num_experts=8), lineage=lineage)
    small = make_version(people, tmp_path, name="small", spec=moe_spec(num_experts=4))
    operation = {"kind": "merge", "first": 0, "second": 5}
    made = {"operate": {"operation": operation}}
    spec = moe_spec(num_experts=8)
    grown = {"operate": {"operation": {"kind": "grow", "num_experts": 16}}}
    twins = make_version(
        people, tmp_path, name="twins", spec=moe_spec(num_experts=16), parent=tuned, lineage=grown
    )
    same = {"operate": {"operation": {"kind": "wake_expert"}}}
    awake = make_version(people, tmp_path, name="awake", spec=spec, parent=tuned, lineage=same)
    merged = make_version(
        people, tmp_path, name="merged", spec=moe_spec(num_experts=7), parent=tuned, lineage=made
    )
    chosen = {"domain_map": domain_map.pk, "corpus": make_corpus(people).pk}

    def said(version: Any) -> str:
        asked = {**chosen, "model_version": version.pk}
        return people.client("owner").get("/jobs/tune/coverage/", asked).content.decode()

    assert "outside the layout&#x27;s 4 experts" in said(small)
    assert "outside the layout&#x27;s 7 experts" in said(merged)
    assert "numbers them otherwise or has copies" in said(twins)
    assert "numbers them" not in said(awake) and "numbers them" not in said(tuned)


def test_what_cannot_be_is_told_with_the_name_of_its_field(people: Any, tmp_path: Any) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(num_experts=8))
    sent = {"model_version": version.pk, "others": [version.pk], "domains": "copy", "gate": "ridge"}
    answer = people.client("owner").post("/jobs/operate/foreseen/?operation=compose", sent).content.decode()
    assert "Domain of each, in their order: This must have at least 2 entries." in answer
    sent = {"model_version": version.pk, "num_experts": 12, "method": "twin"}
    answer = people.client("owner").post("/jobs/operate/foreseen/?operation=grow", sent).content.decode()
    assert "Experts a layer, then: The number of experts (12) must be 8 times a power of two" in answer


def test_all_versions_that_were_composed_are_named(people: Any, tmp_path: Any) -> None:
    one, two = (
        make_version(people, tmp_path, name=name, spec=moe_spec(num_experts=4)) for name in ("One", "Two")
    )
    lineage = {
        "kind": "operate", "job_id": 3, "operation": {"kind": "compose"},
        "others": [{"id": two.pk, "label": "Two v1"}, {"id": one.pk, "label": "One v1"}],
    }  # fmt: skip
    made = make_version(
        people, tmp_path, name="One", spec=moe_spec(num_experts=12), parent=one, lineage=lineage
    )
    assert "Compose: made from v1, Two v1, v1 by job 3" in page(people, f"/versions/{made.pk}/")
    job = Job.objects.create(
        team=people.owner.team, kind="operate", name="Both", base_version=one,
        inputs={"others": lineage["others"][:1], "operate": {"operation": {"kind": "compose"}}},
    )  # fmt: skip
    assert [(node["title"], node["note"]) for node in lineage_of(job)["parents"]] == [
        ("One v1", "base"), ("Two v1", "composed with it"),
    ]  # fmt: skip


def test_the_page_foretells_what_will_be(people: Any, tmp_path: Any) -> None:
    mixture = make_version(people, tmp_path, spec=moe_spec(), name="Mixture")
    client = people.client("owner")

    def told(kind: str, **typed: str) -> dict[str, tuple[str, str]]:
        sent = {"model_version": mixture.pk, **typed}
        page = client.post(f"/jobs/operate/foreseen/?operation={kind}", sent).context["foreseen"]
        return {line.key: (line.before[0], line.after[0]) for line in page.lines}

    assert told("grow", num_experts="16")["num_experts"] == ("8", "16")
    assert told("grow", num_experts="16", method="double_k")["top_k"] == ("2", "4")
    assert told("remove")["num_experts"] == ("8", "7")
    before, after = told("remove")["total"]
    assert before != after
    refused = client.post(
        "/jobs/operate/foreseen/?operation=grow", {"model_version": mixture.pk, "num_experts": "6"}
    )
    assert "times a power of two" in refused.content.decode()
    assert 'data-foreseen="num_experts"' in client.get("/jobs/operate/?operation=grow").content.decode()
