"""The form of a new deployment counts all replicas, and proposes a domain map that its version can take."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.urls import reverse

from deployments.engine_settings import need_of
from deployments.models import Deployment, Node, Replica
from registry.models import ModelVersion
from routing.services import map_create
from tests.apps.deployments.test_services import MAP, online, version  # noqa: F401
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
CHOSEN = re.compile(r'<option value="(\d*)" selected')


def asked(people: Any, version: ModelVersion, **more: Any) -> dict[str, Any]:  # noqa: F811
    data = {
        "version": version.pk, "proposed_for": version.pk, "dtype": "bfloat16", "kv_tokens": 4096,
        "max_sequences": 4, "num_threads": 1, "replicas": 1,
    }  # fmt: skip
    return {**data, **more}


def fragment(people: Any, data: dict[str, Any], language: str = "en") -> str:
    client = people.client("owner")
    client.cookies["django_language"] = language
    return client.post(reverse("deployments:fit"), data).content.decode()


def test_it_looks_at_every_replica(people, version):  # noqa: F811
    need = need_of(version.spec, {"dtype": "bfloat16", "kv_tokens": 4096}).total
    online(free=3 * need)
    assert "It fits." in fragment(people, asked(people, version, replicas=3))
    told = fragment(people, asked(people, version, replicas=5))
    assert "Only 3 of 5 replicas fit now" in told and "It fits." not in told
    assert "5 个副本中只放得下 3 个" in fragment(people, asked(people, version, replicas=5), "zh-hans")
    online("node-2", free=2 * need)
    assert "It fits." in fragment(people, asked(people, version, replicas=5))


def test_room_split_over_nodes_holds_no_replica_that_needs_it_whole(people, version):  # noqa: F811
    need = need_of(version.spec, {"dtype": "bfloat16", "kv_tokens": 4096}).total
    online(free=need - 1), online("node-2", free=need - 1)
    assert "It does not fit." in fragment(people, asked(people, version))


def test_a_number_of_replicas_that_cannot_be_is_said_beside_the_fit(people, version):  # noqa: F811
    online()
    told = fragment(people, asked(people, version, replicas=500))
    assert "It fits." not in told and "less than or equal to 8" in told


def test_another_version_brings_the_map_that_it_can_take(people, tmp_path):
    mapped = map_create(caller=people.owner, name="Domains", plan=MAP)
    spec, dense = moe_spec(num_experts=8, top_k=2), make_version(people, tmp_path, name="Dense")
    tuned = make_version(people, tmp_path, name="Tuned", spec=spec, lineage={"map_id": mapped.pk})
    # From the tuned one to the dense one: no map; and back.
    told = fragment(people, asked(people, dense, proposed_for=tuned.pk, domain_map=mapped.pk))
    assert 'id="id_domain_map"' in told and CHOSEN.findall(told) == [""]
    assert f'id="proposed-for" value="{dense.pk}"' in told
    assert CHOSEN.findall(fragment(people, asked(people, tuned, proposed_for=dense.pk))) == [str(mapped.pk)]
    # What somebody chose for the same version is not touched.
    assert 'id="id_domain_map"' not in fragment(people, asked(people, tuned, domain_map=""))


def test_a_dense_version_is_offered_without_a_map_even_if_its_lineage_names_one(people, tmp_path):
    mapped = map_create(caller=people.owner, name="Domains", plan=MAP)
    dense = make_version(people, tmp_path, name="Dense", lineage={"map_id": mapped.pk})
    page = people.client("owner").get(f"/deployments/new/?version={dense.pk}").content.decode()
    assert f'<option value="{mapped.pk}" selected' not in page
    assert f'id="proposed-for" value="{dense.pk}"' in page


def test_what_a_gpu_holds_is_told_where_it_is_to_hold_a_part(people, version):  # noqa: F811
    online()
    data = asked(people, version)
    assert "On a GPU" not in fragment(people, data)
    told = fragment(people, {**data, "device_experts": 8}, "zh-hans")
    assert "另占显存（由 GPU 计算时）" in told
    made = people.client("owner").post(reverse("deployments:new"), {**data, "name": "g", "device_experts": 8})
    assert made.status_code == 302, made.context["form"].errors
    page = people.client("owner").get(made.url).content.decode()
    assert "Experts on the GPU" in page and "GPU memory, estimated" in page
    # Its engines tell what they compute on; where it is no GPU, none has a part of the experts.
    without = "without effect: no GPU computes here"
    assert without not in page
    replica = Replica.objects.create(
        deployment=Deployment.objects.get(), version=version, revision=1, node=Node.objects.get()
    )
    for device, is_missing in (("cpu", True), ("cuda", False), ("", False)):
        Replica.objects.filter(pk=replica.pk).update(stats={"running": 0, "device": device})
        page = people.client("owner").get(made.url).content.decode()
        assert (without in page, "GPU memory, estimated" in page) == (is_missing, not is_missing)
