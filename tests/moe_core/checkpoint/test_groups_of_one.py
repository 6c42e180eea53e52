"""A DeepSeek-V3 that operations leave with one expert a group: transformers cannot run it, so it is written as ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moe_core
from moe_core.errors import FormatError
from moe_core.model import Decoder
from moe_core.operations import distil, remove_expert
from moe_core.spec.operations import DistilSpec, RemoveExpertSpec
from tests.moe_core.operations.models import some_prompts

transformers = pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import CASES, model_of  # noqa: E402

IDS = torch.arange(1, 25).view(2, 12)


def deepseek(directory: Path, experts: int, groups: int) -> Decoder:
    sizes = {"n_routed_experts": experts, "n_group": groups, "topk_group": groups, "num_experts_per_tok": 1}
    model_of("DeepseekV3Config", CASES["deepseek_v3"][1] | sizes).save_pretrained(directory)
    return moe_core.load(directory)


@torch.no_grad()
@pytest.mark.parametrize(("experts", "groups", "family"), [(8, 4, "turnout_moe"), (12, 4, "deepseek_v3")])
def test_what_is_written_as_deepseek_v3_is_what_transformers_runs(
    tmp_path: Path, experts: int, groups: int, family: str
) -> None:
    whole = deepseek(tmp_path / "theirs", experts, groups)
    left, _report = remove_expert(whole, RemoveExpertSpec(expert=0, per_group=True))
    assert left.spec.family == family
    moe_core.save(left, tmp_path / "ours")
    logits = moe_core.load(tmp_path / "ours")(IDS)
    assert torch.equal(logits, left(IDS))
    if family == "deepseek_v3":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
        assert float((theirs(IDS).logits - logits).norm() / logits.norm()) < 1e-6


def test_a_student_of_one_expert_is_written_as_ours_too(tmp_path: Path) -> None:
    student, _report = distil(deepseek(tmp_path, 4, 1), DistilSpec(num_experts=1, steps=0), some_prompts())
    assert student.spec.family == "turnout_moe"


def test_the_family_says_why_and_what_else_says_the_model(tmp_path: Path) -> None:
    model = deepseek(tmp_path, 4, 2)
    moe = model.spec.moe
    assert moe is not None
    gate = moe.gate.model_copy(update={"num_groups": 4, "topk_group": 4})
    model.spec = model.spec.model_copy(update={"moe": moe.model_copy(update={"gate": gate})})
    with pytest.raises(
        FormatError, match="two best experts, and here they have one; family 'turnout_moe' can"
    ):
        moe_core.save(model, tmp_path / "saved")
