"""What an operation will make of a version, told while its form is filled in: experts, parameters, bytes, work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from common import figures
from common.told import told_faults
from jobs.operation_form import OperateForm
from moe_core.errors import SpecError
from moe_core.spec import ModelSpec, cost_of
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import OPERATION
from registry.describe import CONTEXT_TOKENS

Show = Callable[[Any], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, before and after."""

    key: str
    label: str
    before: tuple[str, str]
    after: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What will be, or why it cannot be."""

    lines: list[Line]
    problem: str = ""


def foreseen_of(form: OperateForm) -> Foreseen | None:
    """What the form's operation makes of its version; no lines while the form does not say enough, None without versions
    or where nothing is made."""
    if not form.versions or not form.changes:
        return None
    sent = form if form.is_bound else _as_it_stands(form)
    sent.is_valid()
    version = sent.by_number.get(sent.cleaned_data.get("model_version", 0))
    # A field's own complaint is told beside it when the form is sent.
    if version is None or sent.lacks_own:
        return Foreseen([])
    try:
        operation = OPERATION.validate_python(sent.operation())
        before = ModelSpec.parse(version.spec)
        return Foreseen(_lines(before, foreseen(before, operation)))
    except SpecError as error:
        return Foreseen([], _problem(sent, error))


def _problem(form: OperateForm, error: SpecError) -> str:
    """What is wrong, each sentence after the label of the field that it speaks of."""
    said = []
    for place, sentence in told_faults(error).items():
        field = form.fields.get(place.rsplit(".", 1)[-1])
        said.append(figures.named(field.label, sentence) if field else sentence)
    return figures.sentences(*said)


def _as_it_stands(form: OperateForm) -> OperateForm:
    """The form as a browser would send it now."""
    values = {name: form[name].value() for name in form.fields}
    data = {name: "" if value is None else value for name, value in values.items()}
    return type(form)(data, team=form.team, initial=form.initial)


def _lines(before: ModelSpec, after: ModelSpec) -> list[Line]:
    rows: list[tuple[str, Any, Any, Any, Show]] = []
    old, new = before.moe, after.moe
    assert new is not None
    for name, label in (
        ("num_experts", _("Experts per layer")),
        ("top_k", "top-k"),
        ("moe_intermediate_size", _("Expert width")),
    ):
        rows.append((name, label, getattr(old, name, None), getattr(new, name), _whole))
    was, will = cost_of(before), cost_of(after)
    is_packed = any(part is not None and part.quantisation is not None for part in (old, new))
    size = _("Size, bf16 where not packed") if is_packed else _("Size at bf16")
    rows += [
        ("total", _("Parameters"), was.total, will.total, figures.compact_parts),
        ("active", _("Active per token"), was.active_per_token, will.active_per_token, figures.compact_parts),
        ("bytes", size, was.bytes["bf16"], will.bytes["bf16"], figures.bytes_parts),
        ("flops", _("Compute per token"), was.flops_per_token(CONTEXT_TOKENS), will.flops_per_token(CONTEXT_TOKENS),
         figures.flops_parts),
    ]  # fmt: skip
    return [Line(key, str(label), show(one), show(other)) for key, label, one, other, show in rows]


def _whole(value: int | None) -> tuple[str, str]:
    return (figures.MISSING if value is None else figures.number(value)), ""
