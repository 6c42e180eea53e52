"""The form that packs experts, and where wanted attention and the output map, each in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.forms import BoundField
from django.utils.translation import gettext_lazy as _

from common.spec_fields import Ask, facts_of
from jobs.operation_form import OperateForm
from moe_core.spec.quantisation import ExpertQuantSpec
from registry.operated import OPERATIONS

# Of what is not an expert: left in 16 bits, unless it is asked for.
TRUNK_BITS = [("", "16"), (8, "8"), (4, "4")]
TRUNK = ("attention", "head")
# What of their packing may differ from that of the experts.
OWN = ("group_size", "symmetric", "super_group_size")
# What is done to the weights before they are packed.
FIRST = ("level", "rotate")
TRUNK_OWN = tuple(f"{part}_{name}" for part in TRUNK for name in OWN)
AS_EXPERTS = ("", _("as of the experts"))


def _group_size(label: Any) -> forms.TypedChoiceField:
    sizes = [(size, str(size)) for size in facts_of(ExpertQuantSpec, "group_size")["enum"]]
    return forms.TypedChoiceField(
        label=label, coerce=int, choices=[AS_EXPERTS, *sizes], empty_value=None, required=False
    )


def _symmetric(label: Any) -> forms.TypedChoiceField:
    answers = [(True, _("yes")), (False, _("no"))]
    return forms.TypedChoiceField(
        label=label, coerce=lambda value: str(value) == "True", choices=[AS_EXPERTS, *answers], empty_value=None,
        required=False,
    )  # fmt: skip


def _super_group_size(label: Any) -> forms.TypedChoiceField:
    sizes = [(size, str(size)) for size in facts_of(ExpertQuantSpec, "super_group_size")["enum"]]
    return forms.TypedChoiceField(
        label=label, coerce=int, choices=[AS_EXPERTS, (0, _("none")), *sizes], empty_value=None, required=False
    )


def _without_misfit(packing: dict[str, Any]) -> dict[str, Any]:
    """A packing as a specification has it: no common scale where there is none, or where its codes cannot have one."""
    fields = {name: value for name, value in packing.items() if name != "super_group_size"}
    fits = ExpertQuantSpec.parse(fields).takes_super_groups
    return packing if fits and packing.get("super_group_size") else fields


def flat_packing(operation: Mapping[str, Any]) -> dict[str, Any]:
    """An operation that packs, one name a field as the form has them; None where a part is left alone, or as the experts."""
    experts = operation.get("quantisation") or {}
    flat = {name: value for name, value in operation.items() if name not in ("quantisation", *TRUNK)}
    flat |= experts
    for part in TRUNK:
        packing = operation.get(part) or {}
        flat[part] = packing.get("bits")
        own = {name: packing[name] for name in OWN if name in packing and packing[name] != experts.get(name)}
        if packing and packing != _without_misfit({**experts, **packing}):
            own["super_group_size"] = packing.get("super_group_size") or 0
        flat |= {f"{part}_{name}": own.get(name) for name in OWN}
    return flat


class QuantiseForm(OperateForm):
    """Pack the experts."""

    kind, title, schema = "quantise", OPERATIONS["quantise"], ExpertQuantSpec
    words = _("The experts' weights in 8 or 4 bits, and where wanted those of attention and the output map.")
    asks = {
        "bits": Ask(_("Experts, bits")),
        "group_size": Ask(_("Weights that share a scale")),
        "symmetric": Ask(_("Symmetric"), _("Without a zero point: smaller, a little less exact.")),
        "super_group_size": Ask(
            _("Weights with a common scale"),
            _(
                "For 4 bits in symmetric groups of 32, whose scales are then whole times a common one. Long prompts become "
                "about twice as fast; level neurons too, and answers stay as exact."
            ),
        ),
    }

    attention = forms.TypedChoiceField(
        label=_("Attention, bits"), coerce=int, choices=TRUNK_BITS, empty_value=None, required=False
    )
    head = forms.TypedChoiceField(
        label=_("Output map, bits"), coerce=int, choices=TRUNK_BITS, empty_value=None, required=False,
        help_text=_("Beside experts in 4 bits, 8 cost the least for what they save."),
    )  # fmt: skip
    level = forms.BooleanField(
        label=_("Level neurons first"), required=False, initial=False,
        help_text=_("Makes the neurons of each expert alike and sorts them; the function stays, and packing loses less."),
    )  # fmt: skip
    rotate = forms.BooleanField(
        label=_("Rotate first"), required=False, initial=False,
        help_text=_(
            "Spreads what stands out in a few columns over all of them, and keeps the function. With it 8 bits do with "
            "a scale for 256 to 768 weights, which long prompts are faster by; 4 bits lose by it. Neurons are levelled too."
        ),
    )  # fmt: skip
    attention_group_size = _group_size(_("Attention, weights that share a scale"))
    attention_symmetric = _symmetric(_("Attention, symmetric"))
    attention_super_group_size = _super_group_size(_("Attention, weights with a common scale"))
    head_group_size = _group_size(_("Output map, weights that share a scale"))
    head_symmetric = _symmetric(_("Output map, symmetric"))
    head_super_group_size = _super_group_size(_("Output map, weights with a common scale"))

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # Experts first: they are nearly all of the weights.
        self.order_fields([*self.asks, *TRUNK, *FIRST, *TRUNK_OWN])

    @property
    def own_fields(self) -> list[BoundField]:
        """The experts' packing, and the bits of the rest."""
        return [one for one in super().own_fields if one.name not in TRUNK_OWN]

    @property
    def more_fields(self) -> list[BoundField]:
        """How the rest is packed, where that is not as the experts are."""
        return [self[name] for name in TRUNK_OWN]

    def clean(self) -> dict[str, Any]:
        """What is left in 16 bits has no packing of its own."""
        data = super().clean() or self.cleaned_data
        for part in TRUNK:
            if not data.get(part) and any(data.get(f"{part}_{name}") is not None for name in OWN):
                self.add_error(
                    part, _("Choose 8 or 4 bits here, or leave how it is packed as of the experts.")
                )
        return data

    def operation(self) -> dict[str, Any]:
        """How each part is packed; what is not said of one is as of the experts."""
        experts = {name: value for name, value in super().operation().items() if name != "kind" and value is not None}
        packings = {
            part: _without_misfit({**experts, **self._own(part)}) for part in TRUNK if self.cleaned_data.get(part)
        }
        first = {name: True for name in FIRST if self.cleaned_data[name]}
        return {"kind": self.kind, "quantisation": experts, **packings, **first}

    def _own(self, part: str) -> dict[str, Any]:
        said = {
            "bits": self.cleaned_data[part],
            **{name: self.cleaned_data[f"{part}_{name}"] for name in OWN},
        }
        return {name: value for name, value in said.items() if value is not None}

    @classmethod
    def initial_of(cls, spec: Mapping[str, Any]) -> dict[str, Any]:
        """How to pack, one field each."""
        return flat_packing(super().initial_of(spec))
