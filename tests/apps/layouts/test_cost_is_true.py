"""What the page promises is what the built model measures: parameters, active ones, bytes, FLOPs."""

from __future__ import annotations

import pytest
import torch
from django.utils.translation import gettext, override
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.figures import joined
from layouts.costing import preview
from layouts.describe import answer_of
from layouts.models import Layout
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.checkpoint.store import save
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from tests.apps.registry.fixtures import make_version

pytestmark = pytest.mark.django_db
LAYOUTS = [
    {"moe_layers": [0, 1, 2, 3], "num_experts": 8, "top_k": 2},
    {"moe_layers": [1, 3], "num_experts": 4, "top_k": 1, "num_shared_experts": 1},
    {"moe_layers": [2], "num_experts": 16, "top_k": 4, "moe_intermediate_size": 24},
]


@pytest.mark.parametrize("spec", LAYOUTS, ids=["mixtral", "shared", "narrow"])
def test_the_page_promises_what_the_model_holds(people, tmp_path, spec):
    base = make_version(people, tmp_path)
    promised = preview(base, spec)["mixture"]
    built = Decoder(Layout(base_version=base, spec=spec).model_spec())
    held = {id(weight): weight.numel() for weight in built.parameters()}
    assert promised["total"] == sum(held.values())
    dense = Decoder(ModelSpec.parse(base.spec))
    assert preview(base, spec)["dense"]["total"] == sum(weight.numel() for weight in dense.parameters())


@pytest.mark.parametrize("spec", LAYOUTS, ids=["mixtral", "shared", "narrow"])
def test_the_page_promises_the_work_that_one_token_makes(people, tmp_path, spec):
    base = make_version(people, tmp_path)
    built = Decoder(Layout(base_version=base, spec=spec).model_spec()).float().eval()
    # The fused attention of the CPU is not counted; the plain one is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        built(torch.tensor([[5]]))
    # One token looks back at itself alone.
    promised = preview(base, spec, context_tokens=1)["mixture"]["flops_per_token"]
    assert counter.get_total_flops() == promised


@pytest.mark.parametrize("spec", LAYOUTS, ids=["mixtral", "shared", "narrow"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_page_promises_the_bytes_that_a_saved_version_has(people, tmp_path, spec, precision, dtype):
    base = make_version(people, tmp_path)
    model = random_decoder(Layout(base_version=base, spec=spec).model_spec(), seed=0, dtype=dtype)
    saved = save(model, tmp_path / "saved")
    assert preview(base, spec)["mixture"]["bytes"][precision] == inspect_dir(saved)["bytes_total"]


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_page_of_a_version_tells_the_same_work_as_its_layout(people, tmp_path, language):
    base = make_version(people, tmp_path)
    layout = Layout(base_version=base, spec=LAYOUTS[0])
    built = make_version(people, tmp_path, name="Moe", spec=layout.model_spec())
    client = people.client("owner")
    client.cookies["django_language"] = language
    with override(language):
        compute = next(line for line in answer_of(base, LAYOUTS[0]).lines if line.key == "flops")
        words = gettext("Compute is for one token that looks back at %(tokens)s others.") % {
            "tokens": "1,024"
        }
    for version, figure in ((base, compute.dense), (built, compute.mixture)):
        page = client.get(f"/versions/{version.pk}/").content.decode()
        assert f"<dd>{joined(figure)}</dd>" in page and words in page
