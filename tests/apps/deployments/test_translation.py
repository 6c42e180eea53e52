"""A domain map follows its experts through every operation, and nobody is served with numbers that mean others."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import Invalid
from deployments import services
from deployments.forms import AS_SERVED, TRANSLATED
from deployments.models import Deployment
from deployments.translation import EXPERTS_GONE, Proposal, kept_domains, proposal_for
from moe_core.spec.foresee import foreseen
from moe_core.spec.model import ModelSpec
from moe_core.spec.operations import OPERATION
from registry.models import ModelVersion
from routing.models import DomainMap
from routing.services import map_create, map_revise
from tests.apps.deployments.test_services import MAP, deploy
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
GROUPED = {"gate": {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1}}
DENSE = {"kind": "upcycle", "layout": {"moe_layers": [1, 3], "num_experts": 8, "top_k": 2}}
CLONE = {"kind": "specialise_clone", "source": 7, "domain": "support"}


@pytest.fixture
def domain_map(people: Any) -> DomainMap:
    return map_create(caller=people.owner, name="Domains", plan=MAP)


class Family:
    """A tuned version and what operations make of it, as jobs register them."""

    def __init__(self, people: Any, tmp_path: Any, domain_map: DomainMap, **layout: Any) -> None:
        self.people, self.tmp_path = people, tmp_path
        spec = moe_spec(**{"num_experts": 8, "top_k": 2, **layout})
        self.tuned = self.made("tuned", spec, None, lineage={"kind": "tune", "map_id": domain_map.pk})

    def made(self, name: str, spec: Any, parent: ModelVersion | None, **more: Any) -> ModelVersion:
        return make_version(self.people, self.tmp_path, name=name, spec=spec, parent=parent, **more)

    def child(
        self, operation: dict[str, Any], parent: ModelVersion | None = None, **report: Any
    ) -> ModelVersion:
        parent = parent or self.tuned
        spec = foreseen(ModelSpec.parse(parent.spec), OPERATION.parse(operation))
        lineage = {"kind": "operate", "operate": {"operation": operation}}
        return self.made(f"{operation['kind']} of {parent}", spec, parent, lineage=lineage, report=report)


@pytest.fixture
def family(people: Any, tmp_path: Any, domain_map: DomainMap) -> Family:
    return Family(people, tmp_path, domain_map)


def experts_of(domains: dict[str, Any]) -> tuple[list[int], list[int]]:
    return domains["domains"][0]["experts"], domains["general_experts"]


def updated(people: Any, deployment: Deployment, version: ModelVersion, **more: Any) -> Deployment:
    return services.deployment_update(
        caller=people.owner, deployment_id=deployment.pk, version_id=version.pk, **more
    )


# The map names experts 0 and 1 for support, and 7 for no domain.
FOLLOWED: list[tuple[dict[str, Any], dict[str, Any], tuple[list[int], list[int]]]] = [
    ({"kind": "quantise"}, {}, ([0, 1], [7])),
    ({"kind": "wake_expert"}, {}, ([0, 1], [7])),
    ({"kind": "add", "source": 1}, {}, ([0, 1, 8], [7])),
    ({"kind": "add", "source": 5}, {}, ([0, 1], [7])),
    (CLONE, {}, ([0, 1, 8], [7, 8])),
    ({"kind": "grow", "num_experts": 16}, {}, ([0, 1, 8, 9], [7, 15])),
    ({"kind": "grow", "num_experts": 32, "method": "split"}, {}, ([0, 1, 8, 9, 16, 17, 24, 25], [7, 15, 23, 31])),
    ({"kind": "remove", "expert": 3}, {}, ([0, 1], [6])),
    ({"kind": "remove"}, {"experts": [2, 5]}, ([0, 1], [6])),
    ({"kind": "merge", "first": 7, "second": 1}, {}, ([0, 6], [6])),
    ({"kind": "merge", "first": 0, "second": 1}, {}, ([0], [6])),
    ({"kind": "compose", "domains": ["one", "two"]}, {}, ([0, 1], [7])),
    ({"kind": "distil", "num_experts": 6}, {"groups": [[[0], [1, 2], [3], [4], [5, 6], [7]]] * 2}, ([0, 1], [5])),
]  # fmt: skip
LOST: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": "remove", "expert": 1}, {}, "E1 of support"),
    ({"kind": "remove", "expert": 7}, {}, "E7 of no domain"),
    ({"kind": "remove"}, {"experts": [0, 2]}, "E0, E1 of support"),
    ({"kind": "distil", "num_experts": 7}, {"groups": [[[0, 1], [2], [3], [4], [5], [6], [7]], [[0], [1], [2], [3], [4], [5], [6, 7]]]}, "E1 of support"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "report", "experts"), FOLLOWED, ids=str)
def test_kept_domains_follow_their_experts(people, family, domain_map, operation, report, experts):
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    child = family.child(operation, **report)
    assert experts_of(updated(people, made, child).domains) == experts
    # And back again, where the ancestor is wanted once more.
    back = experts_of(updated(people, made, family.tuned).domains)
    assert {0}.issubset(back[0]) and 7 in back[1]


@pytest.mark.parametrize(("operation", "report", "lost"), LOST, ids=str)
def test_a_mapped_expert_that_is_gone_has_to_be_confirmed(
    people, family, domain_map, operation, report, lost
):
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    child = family.child(operation, **report)
    with pytest.raises(Invalid, match=lost) as refused:
        updated(people, made, child)
    assert refused.value.code == EXPERTS_GONE
    made.refresh_from_db()
    assert made.desired_version_id == family.tuned.pk and made.revision == 1


def test_a_confirmed_domain_goes_on_without_it_but_not_without_any(people, family, domain_map):
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    once = family.child({"kind": "remove", "expert": 0})
    assert experts_of(updated(people, made, once, confirm_domains=True).domains) == ([0], [6])
    twice = family.child({"kind": "remove", "expert": 0}, once)
    with pytest.raises(Invalid, match="Of support no expert is left"):
        updated(people, made, twice, confirm_domains=True)
    assert updated(people, made, twice, domain_map_id=None).domains == {}


def test_groups_are_renumbered_by_group(people, tmp_path, domain_map):
    family = Family(people, tmp_path, domain_map, **GROUPED)
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    added = family.child({"kind": "add", "source": 1, "per_group": True})
    assert experts_of(updated(people, made, added).domains) == ([0, 1, 4], [8])
    fewer = family.child({"kind": "remove", "expert": 3, "per_group": True}, added)
    # Expert 8 was the last but one of its group, and goes.
    with pytest.raises(Invalid, match="E8 of no domain"):
        updated(people, made, fewer)
    assert experts_of(updated(people, made, fewer, confirm_domains=True).domains) == ([0, 1, 3], [])


def test_a_domain_gives_its_clone_back_and_not_what_it_was_cloned_from(people, family, domain_map):
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    clone = family.child(CLONE)
    assert experts_of(updated(people, made, clone).domains) == ([0, 1, 8], [7, 8])
    assert experts_of(updated(people, made, family.tuned).domains) == ([0, 1], [7])
    # A domain with nothing else keeps what the clone was.
    only = map_create(
        caller=people.owner,
        name="Clone",
        plan={
            "num_experts": 9,
            "domains": [{"code": "support", "name_en": "S", "name_zh": "S", "experts": [8]}],
        },
    )
    alone = deploy(people, clone, name="alone", domain_map_id=only.pk)
    assert experts_of(updated(people, alone, family.tuned).domains) == ([7], [])


def test_rules_of_layers_follow_theirs(people, tmp_path):
    rules = {str(layer): {"mode": "bias", "strength": float(layer)} for layer in (1, 2, 3)}
    domain_map = map_create(
        caller=people.owner, name="By layer", plan={**MAP, "policy": {"prior_layers": rules}}
    )
    family = Family(people, tmp_path, domain_map, moe_layers=[0, 1, 2, 3])
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    groups = [[[expert] for expert in range(8)]] * 2
    distilled = {"kind": "distil", "num_experts": 8, "num_hidden_layers": 2}
    student = family.child(distilled, groups=groups, layers=[0, 2])
    served = updated(people, made, student).domains
    # Layer 1 is the one that was layer 2.
    assert {layer: rule["strength"] for layer, rule in served["prior_layers"].items()} == {"1": 2.0}
    assert experts_of(served) == ([0, 1], [7])
    back = updated(people, made, family.tuned).domains
    assert {layer: rule["strength"] for layer, rule in back["prior_layers"].items()} == {"2": 2.0}
    assert proposal_for(student) == Proposal(domain_map.pk, is_translated=True)
    # Where the lowest layers stay, rules of the others go.
    lowest = family.child({**distilled, "seed": 1}, groups=groups, layers=[0, 1])
    other = deploy(people, family.tuned, name="low", domain_map_id=domain_map.pk)
    assert list(updated(people, other, lowest).domains["prior_layers"]) == ["1"]


def test_cousins_are_reached_over_their_ancestor(people, family, domain_map):
    grown = family.child({"kind": "grow", "num_experts": 16})
    packed = family.child({"kind": "quantise"}, family.child({"kind": "remove", "expert": 4}))
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    assert experts_of(updated(people, made, grown).domains) == ([0, 1, 8, 9], [7, 15])
    assert experts_of(updated(people, made, packed).domains) == ([0, 1], [6])


def test_versions_of_other_blood_keep_the_numbers(people, family, domain_map, tmp_path):
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    other = make_version(people, tmp_path, name="other", spec=moe_spec(num_experts=8, top_k=2))
    domains = updated(people, made, other).domains
    assert experts_of(domains) == ([0, 1], [7]) and "translated_to" not in domains
    laid = family.made("laid", moe_spec(num_experts=4), None, lineage={"operate": {"operation": DENSE}})
    with pytest.raises(Invalid, match="expert"):
        kept_domains(domains, family.tuned, laid)


def test_a_map_is_proposed_by_the_numbers_of_the_version(people, family, domain_map):
    pk = domain_map.pk
    asleep = family.child(
        {"kind": "release_twins"}, twins := family.child({"kind": "grow", "num_experts": 16})
    )
    assert (
        proposal_for(family.tuned)
        == proposal_for(family.child({"kind": "wake_expert"}))
        == Proposal(pk, False)
    )
    assert proposal_for(twins) == proposal_for(asleep) == Proposal(pk, True)
    assert proposal_for(family.child({"kind": "remove", "expert": 0})) == Proposal(pk, True, is_short=True)
    # Nothing tells which experts left.
    assert proposal_for(family.child({"kind": "distil", "num_experts": 7})) is None


def test_a_map_that_was_revised_since_is_taken_at_its_word(people, family, domain_map):
    routing = {"domains": [{"code": "support", "experts": [0, 1]}], "general_experts": [7]}
    lineage = {"kind": "tune", "map_id": domain_map.pk, "tune": {"routing": routing}}
    tuned = family.made("tuned again", ModelSpec.parse(family.tuned.spec), None, lineage=lineage)
    grown = family.child({"kind": "grow", "num_experts": 16}, tuned)
    assert proposal_for(grown) == Proposal(domain_map.pk, True)
    plan = {**MAP, "num_experts": 16, "domains": [{**MAP["domains"][0], "experts": [0, 1, 8, 9]}]}
    map_revise(caller=people.owner, map_id=domain_map.pk, expected_revision=1, plan=plan)
    assert proposal_for(grown) == Proposal(domain_map.pk, False)


def test_the_new_form_proposes_and_serves_the_translated_map(people, family, domain_map):
    grown = family.child({"kind": "grow", "num_experts": 16})
    client, url = people.client("owner"), "/deployments/new/"
    page = client.get(f"{url}?version={grown.pk}").content.decode()
    option = f'<option value="{TRANSLATED}" selected>Domains r1, by this version’s numbers</option>'
    assert option.replace("’", "&#x27;") in page
    wanted = {"name": "grown", "version": grown.pk, "replicas": 0, "dtype": "float32", "kv_tokens": 4096,
              "max_sequences": 4, "num_threads": 1, "domain_map": TRANSLATED}  # fmt: skip
    assert client.post(url, wanted).status_code == 302
    made = Deployment.objects.get(name="grown")
    assert experts_of(made.domains) == ([0, 1, 8, 9], [7, 15])
    assert "Domains r1, translated" in client.get(f"/deployments/{made.pk}/").content.decode()


def test_a_translated_map_is_meant_for_the_version_that_is_chosen_at_last(people, family, domain_map):
    """The map was chosen for the version that the form began with; the form had no time to offer it for another."""
    client, url = people.client("owner"), "/deployments/new/"
    wanted = {"name": "tuned", "version": family.tuned.pk, "replicas": 0, "dtype": "float32", "kv_tokens": 4096,
              "max_sequences": 4, "num_threads": 1, "domain_map": TRANSLATED}  # fmt: skip
    assert client.post(url, wanted).status_code == 302
    assert experts_of(Deployment.objects.get(name="tuned").domains) == ([0, 1], [7])
    nobodys = family.child({"kind": "distil", "num_experts": 7})
    assert client.post(url, {**wanted, "name": "other", "version": nobodys.pk}).status_code == 422


def test_the_pages_ask_for_the_confirmation(people, family, domain_map):
    made = deploy(people, family.tuned, domain_map_id=domain_map.pk)
    client, url = people.client("owner"), f"/deployments/{made.pk}/"
    assert 'type="checkbox" name="update-confirm_domains"' not in client.get(url).content.decode()
    wanted = {
        "update-version": family.child({"kind": "remove", "expert": 1}).pk, "update-dtype": "float32",
        "update-kv_tokens": 4096, "update-max_sequences": 4, "update-num_threads": 1,
        "update-domain_map": AS_SERVED,
    }  # fmt: skip
    refused = client.post(f"{url}update/", wanted)
    page = refused.content.decode()
    assert refused.status_code == 422 and "E1 of support" in page
    assert 'type="checkbox" name="update-confirm_domains"' in page
    assert client.post(f"{url}update/", {**wanted, "update-confirm_domains": "on"}).status_code == 302
    made.refresh_from_db()
    assert experts_of(made.domains) == ([0], [6])


def test_rest_translates_what_is_kept_and_what_is_asked_for(people, family, domain_map):
    client, url = people.client("owner"), "/api/v1/deployments/"
    added = family.child({"kind": "add", "source": 0})
    body = {"name": "added", "version": added.pk, "replicas": 0, "domain_map": domain_map.pk}
    reply = client.post(url, {**body, "translate_domains": True}, content_type="application/json")
    assert reply.status_code == 202
    revisions = client.get(f"{reply.json()['url']}revisions/").json()
    assert experts_of(revisions[0]["domains"]) == ([0, 1, 8], [7])
    fewer = family.child({"kind": "remove", "expert": 0}, added)
    place, change = reply.json()["url"], {"version": fewer.pk}
    refused = client.patch(place, change, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (422, EXPERTS_GONE)
    change["confirm_domains"] = True
    assert client.patch(place, change, content_type="application/json").status_code == 202
    revisions = client.get(f"{place}revisions/").json()
    assert experts_of(revisions[0]["domains"]) == ([0, 7], [6])


def test_a_map_of_nobody_cannot_be_translated(people, domain_map, tmp_path):
    other = make_version(people, tmp_path, name="other", spec=moe_spec(num_experts=8, top_k=2))
    with pytest.raises(Invalid, match="use the map as it is"):
        deploy(people, other, domain_map_id=domain_map.pk, translate_domains=True)
