"""What an operation cannot take is refused by name, with a way out, before anything is computed with it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_core import errors, operations
from moe_core.errors import SpecError
from moe_core.operations.prompts import Prompts
from moe_core.spec import foresee
from moe_core.spec.operations import (
    ComposeSpec,
    DistilSpec,
    MergeExpertsSpec,
    QuantiseSpec,
    RemoveExpertSpec,
    SpecialiseCloneSpec,
    WakeExpertSpec,
)
from tests.moe_core.operations.models import mixture, some_prompts


@pytest.mark.parametrize(
    "prompt", ["abc", ["a", "b"], [1.5, 2.0], [True, False], torch.tensor([1, 2, 3]), b"abc", 5]
)
def test_prompts_that_are_not_token_ids_are_refused(prompt: Any) -> None:
    with pytest.raises(SpecError, match="domain 'law' .*not a list of token ids.*tokenize it first"):
        Prompts.of({"law": [prompt]})


@pytest.mark.parametrize("plain", [[[1, 2]], None, "hello", 5])
def test_prompts_without_a_domain_are_refused(plain: Any) -> None:
    with pytest.raises(SpecError, match="prompts are given by domain, as .*; name a domain"):
        Prompts.of(plain)


@pytest.mark.parametrize("plain", [5, None, torch.tensor([[1, 2]])])
def test_a_domain_without_a_list_of_prompts_is_refused(plain: Any) -> None:
    with pytest.raises(SpecError, match="domain 'law' has no list of prompts but .*; give a list of lists"):
        Prompts.of({"law": plain})


MEASURING: list[tuple[Callable[[Any], Any], bool]] = [
    (lambda prompts: operations.remove_expert(mixture(), RemoveExpertSpec(expert=1), prompts), True),
    (lambda prompts: operations.preview_removal(mixture(), RemoveExpertSpec(expert=1), prompts), False),
    (lambda prompts: operations.merge_experts(mixture(), MergeExpertsSpec(first=0, second=1), prompts), True),
    (lambda prompts: operations.quantise(mixture(), QuantiseSpec(), prompts), True),
    (lambda prompts: operations.distil(mixture(), DistilSpec(num_experts=2, steps=1), prompts), False),
    (
        lambda prompts: operations.distil(
            mixture(), DistilSpec(num_experts=2, steps=1), some_prompts(), prompts
        ),
        True,
    ),
    (lambda prompts: operations.wake_expert(mixture(), WakeExpertSpec(expert=1, steps=1), prompts), False),
    (
        lambda prompts: operations.specialise_clone(
            mixture(), SpecialiseCloneSpec(domain="law", steps=1), prompts
        ),
        False,
    ),
    (
        lambda prompts: operations.compose([mixture()] * 2, ComposeSpec(domains=("law", "code")), prompts),
        False,
    ),
]


@pytest.mark.parametrize(("act", "takes_none"), MEASURING)
def test_what_are_no_prompts_is_refused(act: Callable[[Any], Any], takes_none: bool) -> None:
    for plain in ("hello", {"law": [[1, 2]]}, [[1, 2]], *(() if takes_none else (None,))):
        with pytest.raises(SpecError, match=rf"as Prompts, not a {type(plain).__name__}; .* Prompts\.of"):
            act(plain)


LONG = Prompts.of({"law": [[5] * 300], "code": [[6] * 20]})


@pytest.mark.parametrize(
    "act",
    [
        lambda: operations.remove_expert(mixture(), RemoveExpertSpec(), LONG),
        lambda: operations.preview_removal(mixture(), RemoveExpertSpec(expert=1), LONG),
        lambda: operations.wake_expert(mixture(), WakeExpertSpec(expert=1, steps=1), LONG),
        lambda: operations.specialise_clone(mixture(), SpecialiseCloneSpec(domain="law", steps=1), LONG),
        lambda: operations.distil(mixture(), DistilSpec(num_experts=2, steps=1), LONG),
    ],
)
def test_prompts_longer_than_the_models_positions_are_refused(act: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match="300 tokens, and the model has 128 positions; cut prompts to 128"):
        act()


@pytest.mark.parametrize(("ids", "told"), [([0, 400], 400), ([0, 97], 97), ([-3, 400], -3)])
def test_the_token_that_is_outside_the_vocabulary_is_named(ids: list[int], told: int) -> None:
    with pytest.raises(SpecError, match=f"^token {told} is outside the vocabulary of 97"):
        Prompts.of({"law": [ids]}).check_fits(mixture().spec)
    Prompts.of({"law": [[0, 96]]}).check_fits(mixture().spec)


def test_padding_is_no_part_of_a_prompts_length() -> None:
    prompts = some_prompts()
    ids_NS = torch.nn.functional.pad(prompts.ids_NS, (0, 200))
    real_NS = torch.nn.functional.pad(prompts.real_NS, (0, 200))
    padded = Prompts(prompts.codes, ids_NS, real_NS, prompts.domain_N)
    padded.check_fits(mixture().spec)


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        ([5, 97], "token 97 is outside the vocabulary of 97"),
        ([5] * 129, "129 tokens, and the model has 128 positions"),
    ],
)
def test_nothing_is_composed_for_prompts_that_do_not_fit(ids: list[int], complaint: str) -> None:
    """Those of a domain that is no model's would be measured last of all."""
    prompts = Prompts.of({"law": [[5, 6, 7]] * 4, "code": [[6, 7]] * 4, "other": [ids]})
    told: list[tuple[str, int, int]] = []
    spec = ComposeSpec.parse({"domains": ("law", "code")})
    with pytest.raises(SpecError, match=complaint):
        operations.compose([mixture(), mixture()], spec, prompts, lambda *step: told.append(step))
    assert not told


TAKING: list[tuple[Callable[[Any], Any], str]] = [
    (lambda plain: operations.grow(mixture(), plain), "GrowSpec"),
    (lambda plain: operations.add_expert(mixture(), plain), "AddExpertSpec"),
    (lambda plain: operations.release_twins(mixture(), plain), "ReleaseTwinsSpec"),
    (lambda plain: operations.remove_expert(mixture(), plain), "RemoveExpertSpec"),
    (lambda plain: operations.preview_removal(mixture(), plain, some_prompts()), "RemoveExpertSpec"),
    (lambda plain: operations.merge_experts(mixture(), plain), "MergeExpertsSpec"),
    (lambda plain: operations.quantise(mixture(), plain), "QuantiseSpec"),
    (lambda plain: operations.dequantise(mixture(), plain), "DequantiseSpec"),
    (lambda plain: operations.distil(mixture(), plain, some_prompts()), "DistilSpec"),
    (lambda plain: operations.compose([mixture()], plain, some_prompts()), "ComposeSpec"),
    (lambda plain: operations.upcycle(mixture(), plain), "UpcycleSpec"),
    (lambda plain: operations.specialise_clone(mixture(), plain, some_prompts()), "SpecialiseCloneSpec"),
    (lambda plain: operations.wake_expert(mixture(), plain, some_prompts()), "WakeExpertSpec"),
]


@pytest.mark.parametrize(("act", "wanted"), TAKING)
def test_plain_data_is_not_taken_for_a_specification(act: Callable[[Any], Any], wanted: str) -> None:
    with pytest.raises(SpecError, match=f"takes a {wanted}, not a dict; .* with {wanted}.parse"):
        act({"kind": "grow", "num_experts": 8})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("layers.2.mlp.experts.down_EDF", "down of the experts of layer 2"),
        ("layers.1.attention.o_proj.weight", "o_proj of layer 1"),
        ("embed_tokens.weight", "the output map"),
    ],
)
def test_weights_that_are_not_finite_are_not_packed(name: str, told: str, value: float) -> None:
    model = mixture()
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[7] = value
    spec = QuantiseSpec.parse({"attention": {"bits": 8}, "head": {"bits": 8}})
    with pytest.raises(SpecError, match=f"{told} has 1 weights that are not finite"):
        operations.quantise(model, spec)


# What only a caller of the library can do wrong: jobs parse their specifications and tokenize their prompts.
OF_THE_LIBRARY = {
    ("parts.py", "check_spec"),
    ("parts.py", "with_experts"),
    ("metrics.py", "margins"),
    ("metrics.py", "_common_T"),
    ("prompts.py", "_check_by_domain"),
    ("prompts.py", "_check_ids"),
    ("prompts.py", "check_prompts"),
    ("quantise.py", "quantise"),
    ("compose.py", "_check"),
    ("compose.py", "_fill_experts"),
    # A kind of gate that whoever added it has not told rotation of.
    ("rotate.py", "_turn_mixture"),
}


def without_a_code(path: Path) -> set[tuple[str, str]]:
    """The functions of a file that raise an error with words of their own."""
    return {
        (path.name, function.name)
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and isinstance(vars(errors).get(node.exc.func.id), type)
        and any(isinstance(part, ast.Constant | ast.JoinedStr) for part in node.exc.args)
    }


def test_what_a_job_can_meet_has_a_code_so_that_it_is_said_in_its_readers_language() -> None:
    files = Path(operations.__file__).parent.glob("*.py")
    assert set().union(*map(without_a_code, files)) == OF_THE_LIBRARY
    spec = Path(foresee.__file__).parent
    for name in ("foresee", "demands", "fewer", "twins"):
        assert without_a_code(spec / f"{name}.py") <= {("twins.py", "_check")}
