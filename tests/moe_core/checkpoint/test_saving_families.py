"""What becomes of a model of any family is saved and read back: packed, unpacked, grown; or refused with a way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moe_core
from moe_core.errors import FormatError, SpecError
from moe_core.model import Decoder
from moe_core.model.families import FAMILIES
from moe_core.model.init import random_decoder
from moe_core.operations import dequantise, grow, quantise
from moe_core.spec import ModelSpec
from moe_core.spec.operations import DequantiseSpec, GrowSpec, QuantiseSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.tiny import FAMILIES as TINY
from tests.moe_core.tiny import STD, tiny_family, tiny_mixtral

IDS = torch.arange(1, 25).view(2, 12)
MIXTURES = ("mixtral", *TINY)


def model_of(family: str) -> Decoder:
    return random_decoder(tiny_mixtral() if family == "mixtral" else tiny_family(family), 3, STD)


def test_no_family_with_experts_is_left_out() -> None:
    assert {*MIXTURES, "turnout_moe"} == {family.name for family in FAMILIES.values() if family.has_experts}


@torch.no_grad()
def comes_back(model: Decoder, directory: Path) -> Decoder:
    """The model after a way through the disk, bit for bit what it was."""
    moe_core.save(model, directory)
    back = moe_core.load(directory)
    assert back.spec == model.spec
    before, after = model.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(back(IDS), model(IDS))
    return back


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", MIXTURES)
def test_packed_experts_are_saved_and_unpacked_they_are_of_their_family_again(
    family: str, bits: int, tmp_path: Path
) -> None:
    model = model_of(family)
    spec = QuantiseSpec(quantisation=ExpertQuantSpec(bits=bits, group_size=32, symmetric=bits == 8))
    packed = comes_back(quantise(model, spec)[0], tmp_path / "packed")
    assert packed.spec.family == "turnout_moe"
    wide = dequantise(packed, DequantiseSpec())[0]
    assert wide.spec == model.spec
    with torch.no_grad():
        # The packed model adds in another order.
        assert torch.allclose(wide(IDS), packed(IDS), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(wide(IDS), model(IDS), rtol=1e-4, atol=1e-4)
    comes_back(wide, tmp_path / "wide")


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in MIXTURES if FAMILIES[family].in_transformers])
def test_transformers_loads_an_unpacked_model(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    wide = dequantise(
        quantise(model_of(family), QuantiseSpec(quantisation=ExpertQuantSpec()))[0], DequantiseSpec()
    )[0]
    moe_core.save(wide, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager"
    )
    logits = theirs(IDS).logits
    assert float((wide(IDS) - logits).norm() / logits.norm()) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("method", ["twin", "double_k"])
@pytest.mark.parametrize("family", MIXTURES)
def test_grown_models_are_saved_and_what_cannot_grow_says_so(
    family: str, method: str, tmp_path: Path
) -> None:
    model = model_of(family)
    moe = model.spec.moe
    assert moe is not None
    wanted = GrowSpec(num_experts=2 * moe.num_experts, method=method)
    if family == "deepseek_v3" and method == "double_k":
        with pytest.raises(SpecError, match="the two best of a group be one expert and its copy"):
            grow(model, wanted)
        return
    grown, _ = grow(model, wanted)
    assert float((grown(IDS) - model(IDS)).norm() / model(IDS).norm()) < 4e-6
    back = comes_back(grown, tmp_path / "m")
    # GLaM takes two experts a token, whatever else.
    says = method == "double_k" and family != "glam_moe"
    assert back.spec.family == (family if says else "turnout_moe")


@pytest.mark.parametrize("family", MIXTURES)
def test_every_family_can_be_said_in_turnouts_own_words(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    model.spec = model.spec.model_copy(update={"family": "turnout_moe"})
    comes_back(model, tmp_path / "m")


@pytest.mark.parametrize("family", MIXTURES)
def test_what_a_family_cannot_say_is_refused_with_the_way_out(family: str, tmp_path: Path) -> None:
    plain = (tiny_mixtral() if family == "mixtral" else tiny_family(family)).model_dump()
    spec = ModelSpec.parse(
        {**plain, "family": "turnout_moe", "moe": {**plain["moe"], "temperature": 2.0}}
    ).model_copy(update={"family": family})
    model = random_decoder(spec, 3, STD)
    with pytest.raises(FormatError, match=r"cannot say this model's moe; family 'turnout_moe' can: give it"):
        moe_core.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    model.spec = spec.model_copy(update={"family": "turnout_moe"})
    comes_back(model, tmp_path / "m")
