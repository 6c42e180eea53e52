"""Weights that an engine packs when it loads them: refused where they cannot be, counted as packed, chosen by the forms."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse

from common.errors import Invalid
from deployments.engine_settings import need_of, settings_checked
from deployments.models import Deployment, Replica
from deployments.reconcile import reconcile
from deployments.selectors import deployment_get
from moe_core.spec import ModelSpec
from moe_core.spec.served import served_as
from registry.models import ModelVersion
from tests.apps.deployments.test_new_form import asked, fragment
from tests.apps.deployments.test_rest import URL, call
from tests.apps.deployments.test_services import deploy, online, version  # noqa: F401
from tests.apps.registry.fixtures import DENSE, make_version, moe_spec

pytestmark = pytest.mark.django_db
MOE = moe_spec(num_experts=8, top_k=2)
PACKED = {"bits": 8, "group_size": 64, "symmetric": True}
LATENT = {
    "mla": {"kv_lora_rank": 16, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8},
}
KINDS = [{"kind": "swiglu", "width": 16}] * 7 + [{"kind": "zero"}]


def with_moe(**changes: Any) -> ModelSpec:
    data = MOE.model_dump()
    return ModelSpec.parse({**data, "moe": {**data["moe"], **changes}, "family": "turnout_moe"})


def unpackable() -> dict[str, tuple[ModelSpec, str]]:
    kinds = with_moe(expert_kinds=KINDS, moe_intermediate_size=16)
    return {
        "dense": (DENSE, "is dense"),
        "packed": (with_moe(quantisation=PACKED), "packed in 8 bits already"),
        "kinds": (kinds, "several kinds or widths"),
    }


def attentions() -> dict[str, ModelSpec]:
    """Models whose experts and head can be packed, and whose attention cannot."""
    latent = {**MOE.model_dump(), "family": "turnout_moe", "attention": LATENT, "num_key_value_heads": 4}
    gated = {**MOE.model_dump(), "family": "turnout_moe", "attention": {"head_gate": True}}
    return {"latent": ModelSpec.parse(latent), "gated": ModelSpec.parse(gated)}


@pytest.mark.parametrize("kind", attentions())
def test_attention_that_cannot_be_packed_stays_in_sixteen_bits(people, tmp_path, kind):
    made = make_version(people, tmp_path, name=kind, spec=attentions()[kind])
    assert deploy(people, made, settings={"weights": "int4"}).settings["weights"] == "int4"
    served = served_as(attentions()[kind], "int4")
    assert served.moe is not None and served.moe.quantisation is not None
    assert (served.moe.attention_quantisation, served.moe.quantisation.bits) == (None, 4)


@pytest.mark.parametrize("state", unpackable())
def test_a_version_that_cannot_be_packed_is_refused_at_the_door_with_the_way_out(
    client, people, tmp_path, state
):
    spec, why = unpackable()[state]
    made = make_version(people, tmp_path, name=state, spec=spec)
    body = {"name": "a", "version": made.pk, "settings": {"weights": "int4"}}
    reply = call(client, "post", URL, people.bearer("owner", "read", "deploy"), body)
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    (error,) = reply.json()["errors"]
    assert error["field"] == "settings.weights"
    assert why in error["message"] and "as they are stored" in error["message"]
    assert not Deployment.objects.exists()
    assert deploy(people, made, settings={"weights": "stored"}).settings["weights"] == "stored"


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"resident_experts": 8}, {"device_experts": 8}])
def test_packed_weights_are_computed_in_bf16_with_all_experts_in_memory(other):
    with pytest.raises(Invalid) as refused:
        settings_checked({"weights": "int8", **other}, MOE.model_dump())
    assert set(refused.value.fields) == {"settings.weights"}
    assert "choose the precision bf16" in refused.value.fields["settings.weights"]


def row_bytes(length: int, bits: int, group: int) -> int:
    """Codes of one packed row, and a float16 scale for each of its groups."""
    return -(-length * bits // 8) + -(-length // group) * 2


@pytest.mark.parametrize(("weights", "bits", "group"), [("int8", 8, 64), ("int4", 4, 32)])
def test_the_memory_of_packed_weights_is_that_of_the_packed_tensors(version, weights, bits, group):  # noqa: F811
    assert MOE.moe is not None
    width, inner, heads = (
        MOE.hidden_size,
        MOE.moe.moe_intermediate_size,
        MOE.num_attention_heads * MOE.head_dim,
    )
    experts = 2 * inner * row_bytes(width, bits, group) + width * row_bytes(inner, bits, group)
    keys = MOE.num_key_value_heads * MOE.head_dim
    attention = (heads + 2 * keys) * row_bytes(width, bits, group) + width * row_bytes(heads, bits, group)
    # The head, which was the embedding, gets codes of its own, in 8 bits at least.
    head = MOE.vocab_size * row_bytes(width, 8, 64)
    number, layers = len(MOE.moe.moe_layers) * MOE.moe.num_experts, MOE.num_hidden_layers
    gone = 2 * (number * 3 * width * inner + layers * ((heads + 2 * keys) * width + width * heads))
    plain = need_of(version.spec, {"kv_tokens": 256})
    packed = need_of(version.spec, {"kv_tokens": 256, "weights": weights})
    assert packed.weights == plain.weights - gone + number * experts + layers * attention + head
    assert (packed.cache, packed.engine, plain.packing) == (plain.cache, plain.engine, 0)


def test_a_start_that_packs_reserves_the_stored_weights_beside(people, version):  # noqa: F811
    plain = need_of(version.spec, {"kv_tokens": 256})
    packed = need_of(version.spec, {"kv_tokens": 256, "weights": "int4"})
    assert packed.packing == plain.weights - plain.cache > 0
    assert packed.total == packed.held + packed.packing == packed.engine + packed.weights + plain.weights
    # A cache that is larger than the weights takes their room anyway.
    assert need_of(version.spec, {"weights": "int4"}).packing == 0
    made = deploy(people, version, settings={"kv_tokens": 256, "weights": "int4"})
    online(free=packed.total - 1)
    reconcile(made.pk)
    assert not Replica.objects.exists(), "it would be killed while it packs"
    online(free=packed.total)
    reconcile(made.pk)
    assert Replica.objects.get().deployment == made


def test_a_deployment_that_was_stored_before_its_version_was_judged_is_still_counted(version):  # noqa: F811
    spec = unpackable()["kinds"][0].model_dump(mode="json")
    assert need_of(spec, {"weights": "int8"}) == need_of(spec, {})


def form_of(version: ModelVersion, **more: Any) -> dict[str, Any]:  # noqa: F811
    return {
        "name": "shop", "version": version.pk, "replicas": 0, "dtype": "bfloat16", "kv_tokens": 2048, "max_sequences": 4,
        "num_threads": 1, "prior_mode": "", "domain_map": "", **more,
    }  # fmt: skip


def test_a_person_chooses_it_sees_it_and_takes_it_back(people, version):  # noqa: F811
    browser = people.client("owner")
    made = browser.post(reverse("deployments:new"), form_of(version, weights="int4"))
    assert made.status_code == 302, made.context["form"].errors
    pk = Deployment.objects.get().pk
    page = browser.get(reverse("deployments:detail", args=[pk])).content.decode()
    assert "<dt>Served weights</dt><dd>int4</dd>" in page
    assert '<option value="int4" selected' in page
    place = reverse("deployments:update", args=[pk])

    def change(**more: Any) -> Any:
        return browser.post(
            place, {f"update-{name}": value for name, value in form_of(version, **more).items()}
        )

    assert change(kv_tokens=4096).status_code == 302
    assert deployment_get(people.owner.team, pk).settings["weights"] == "int4", "what is not said stays"
    refused = change(dtype="float32")
    assert refused.status_code == 422 and set(refused.context["form"].errors) == {"weights"}
    assert change(dtype="float32", weights="stored").status_code == 302
    assert deployment_get(people.owner.team, pk).settings["weights"] == "stored"


@pytest.mark.parametrize(
    ("language", "help_words", "words"),
    [
        ("en", "needs memory for both", "serve its weights as they are stored"),
        ("zh-hans", "两份权重", "请按存储的权重部署"),
    ],
)
def test_a_dense_version_is_refused_beside_the_field_and_beside_the_fit(
    people, tmp_path, language, help_words, words
):
    online()
    dense = make_version(people, tmp_path, name="Dense")
    browser = people.client("owner")
    browser.cookies["django_language"] = language
    assert help_words in browser.get(reverse("deployments:new")).content.decode()
    reply = browser.post(reverse("deployments:new"), form_of(dense, weights="int8", replicas=500))
    assert reply.status_code == 422
    errors = reply.context["form"].errors
    assert set(errors) == {"weights", "replicas"} and words in errors["weights"][0]
    assert words in reply.context["problem"], "the page that is shown again says it beside the fit too"
    assert words in fragment(people, asked(people, dense, weights="int8"), language)


def test_the_fit_tells_what_packing_takes_beside(people, version):  # noqa: F811
    online()
    told = fragment(people, asked(people, version, weights="int8", kv_tokens=256))
    assert "While it is packed" in told and "It fits." in told
    assert "While it is packed" not in fragment(
        people, asked(people, version, weights="stored", kv_tokens=256)
    )
