"""A version's page says what its experts and its gate are, and draws experts of different width different."""

from __future__ import annotations

import pytest
from django.urls import reverse

from moe_core.spec import LayoutSpec
from registry.moe_facts import moe_facts
from tests.apps.registry.fixtures import DENSE, make_version

KINDS = [
    {"kind": "swiglu", "width": 48},
    {"kind": "mlp", "width": 24},
    {"kind": "identity"},
    {"kind": "zero"},
]
LAYOUT = {
    "moe_layers": [1, 3], "num_experts": 4, "top_k": 2, "expert_kinds": KINDS,
    "gate": {"kind": "noisy_topk", "noise_floor": 0.2}, "capacity": {"overflow": "residual", "min_tokens": 3},
    "temperature_schedule": {"kind": "linear", "start": 3, "end": 0.5, "num_steps": 10, "step": 4},
}  # fmt: skip


def test_a_mixture_is_told_in_pairs_of_words() -> None:
    facts = dict(moe_facts(LayoutSpec.parse(LAYOUT).applied_to(DENSE)))
    assert facts["Experts per layer"] == (
        "1 × SwiGLU, 48 wide, silu; 1 × MLP, 24 wide, gelu; 1 × identity; 1 × zero"
    )
    assert (facts["Gate"], facts["Noise at least"]) == ("Noisy, the k best", "0.2")
    assert facts["Temperature"] == "3 to 0.5, moves evenly; step 4 of 10"
    assert facts["When an expert is full"] == "its own state, with that expert's weight"
    assert facts["Room for so many tokens at least"] == "3"
    assert moe_facts(DENSE) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("language", "words"), [("en", "Noisy, the k best"), ("zh-hans", "带噪声，取最优 k 个")]
)
def test_the_page_of_a_version_shows_them(people, tmp_path, store_dir, language, words) -> None:
    version = make_version(people, tmp_path, spec=LayoutSpec.parse(LAYOUT).applied_to(DENSE))
    client = people.client("owner")
    client.cookies["django_language"] = language
    page = client.get(reverse("registry:version", args=[version.pk])).content.decode()
    assert page.count(words) >= 2
    for kind in ("swiglu", "mlp", "identity", "zero"):
        assert f'data-kind="{kind}"' in page
