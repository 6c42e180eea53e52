"""How hard a map pulls, as a form: the weights of the losses, the prior of a request's domain, layers that do otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from itertools import groupby
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.forms import BoundField
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common.figures import listed
from common.layers import layers_text, parse_layers
from common.spec_fields import Ask, Part, was_omitted
from common.told import told
from moe_core.errors import SpecError
from moe_core.spec.routing import LayerPrior
from routing.plan import PolicyPlan

MODES: dict[str, Any] = {
    "bias": gettext_lazy("leans towards its experts"),
    "mask": gettext_lazy("only its own and the general experts"),
    "floor": gettext_lazy("its experts get a share at least"),
    "none": gettext_lazy("none, the router decides alone"),
}
POLICY = Part(
    PolicyPlan,
    {
        "label_weight": Ask(gettext_lazy("Weight of the labels"), gettext_lazy("while the router is tuned")),
        "balance_weight": Ask(gettext_lazy("Weight of the balance"), gettext_lazy("keeps every expert busy")),
        "prior_mode": Ask(gettext_lazy("Domain prior of a request"), words=MODES),
        "prior_strength": Ask(gettext_lazy("Strength of the prior")),
        "prior_floor": Ask(gettext_lazy("Share of its experts, at least")),
        "z_weight": Ask(
            gettext_lazy("Weight of the z-loss"), gettext_lazy("keeps the router's scores small; 0 for none")
        ),
    },
)
# One rule a line: layers, a mode, and its strength or its share.
RULE = re.compile(r"(?P<layers>[\d,，、;\s–-]+?)\s+(?P<mode>[a-z]+)(?:\s+(?P<value>\d*\.?\d+))?")
VALUES = {"bias": "strength", "floor": "floor"}
MAX_RULES = 64


class PolicyForm(forms.Form):
    """Everything that a policy can say; each default is the specification's own."""

    layer_rules = forms.CharField(
        label=gettext_lazy("Layers that do otherwise"), required=False, max_length=4000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono", "placeholder": "0-3 none\n20-29 bias 2\n8 floor 0.6"}),
        help_text=gettext_lazy("One line each: layers, then none, mask, bias with its strength, or floor with its share."),
    )  # fmt: skip

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.fields = {**POLICY.fields(), **self.fields}

    @property
    def shown(self) -> list[BoundField]:
        """What everybody sees."""
        return POLICY.bound(self, "label_weight", "balance_weight")

    @property
    def mode(self) -> BoundField:
        """What a request's domain does."""
        return self["prior_mode"]

    @property
    def prior(self) -> list[BoundField]:
        """The prior's numbers, each for its mode."""
        return POLICY.bound(self, "prior_strength", "prior_floor")

    @property
    def more(self) -> list[BoundField]:
        """What hardly anybody changes."""
        return [self["z_weight"], self["layer_rules"]]

    def clean_layer_rules(self) -> dict[int, dict[str, Any]]:
        """Rules as a prior for each layer; raises ValidationError naming the line that cannot be read."""
        lines = [line.strip() for line in self.cleaned_data["layer_rules"].splitlines() if line.strip()]
        if len(lines) > MAX_RULES:
            raise ValidationError(_("At most %(count)s lines.") % {"count": MAX_RULES})
        found: dict[int, dict[str, Any]] = {}
        for line in lines:
            layers, prior = _rule(line)
            if both := sorted(set(layers) & set(found)):
                raise ValidationError(_("Layer %(layer)s has two rules.") % {"layer": both[0]})
            found |= dict.fromkeys(layers, prior)
        return found

    def policy(self) -> dict[str, Any]:
        """The policy as plain data: as it was sent, or as it was read."""
        if not self.is_bound:
            return dict(self.initial.get("policy", {}))
        self.is_valid()
        rules = (
            {}
            if was_omitted(self, "layer_rules")
            else {"prior_layers": self.cleaned_data.get("layer_rules", {})}
        )
        return {**(POLICY.data(self) or {}), **rules}

    @classmethod
    def of(cls, policy: Mapping[str, Any]) -> PolicyForm:
        """The form of a saved policy."""
        whole = PolicyPlan.model_validate(policy).model_dump(mode="json")
        rules = rules_text(whole["prior_layers"])
        return cls(initial={**POLICY.initial(whole), "layer_rules": rules, "policy": whole})


def _rule(line: str) -> tuple[list[int], dict[str, Any]]:
    found = RULE.fullmatch(line)
    if not found or found["mode"] not in MODES:
        words = {"line": line[:60], "modes": listed(MODES)}
        raise ValidationError(_("“%(line)s” is no rule: write layers and one of %(modes)s.") % words)
    mode, value = found["mode"], found["value"]
    if value and mode not in VALUES:
        raise ValidationError(_("“%(line)s”: %(mode)s takes no number.") % {"line": line[:60], "mode": mode})
    prior: dict[str, Any] = {"mode": mode, **({VALUES[mode]: float(value)} if value else {})}
    try:
        return parse_layers(found["layers"]), LayerPrior.parse(prior).model_dump(mode="json")
    except SpecError as error:
        raise ValidationError(f"“{line[:60]}”: {told(str(error))}") from error


def _digits(value: float) -> str:
    """The shortest text without an exponent that reads back equal: 2.0 → "2", 1e-07 → "0.0000001"."""
    text = f"{Decimal(repr(float(value))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rules_text(priors: Mapping[Any, Mapping[str, Any]]) -> str:
    """A prior for each layer as rules, one line for each kind of prior."""

    def said(prior: Mapping[str, Any]) -> str:
        name = VALUES.get(prior["mode"])
        return f"{prior['mode']} {_digits(prior[name])}" if name else str(prior["mode"])

    rules = sorted((said(prior), int(layer)) for layer, prior in priors.items())
    grouped = [
        (words, [layer for _words, layer in run]) for words, run in groupby(rules, key=lambda rule: rule[0])
    ]
    return "\n".join(
        f"{layers_text(layers)} {words}" for words, layers in sorted(grouped, key=lambda one: one[1])
    )
