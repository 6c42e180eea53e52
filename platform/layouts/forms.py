"""The editor's form: layers as people write them, everything else as the specification of a layout bounds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django import forms
from django.forms import BoundField
from django.utils.translation import gettext_lazy as _

from common.layers import layers_text, parse_layers
from common.spec_fields import Ask, Part, forget, spec_field, was_omitted
from common.told import told
from layouts.kind_rows import MAX_ROWS, bound_rows, experts_of, fields_of_row, initial_of_rows
from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec import LayoutSpec
from registry.gate_fields import LAYOUT_CAPACITY, LAYOUT_SCHEDULE
from registry.gates import GATES
from registry.gates import PARTS as GATE_PARTS
from registry.kinds import runs_of
from registry.models import ModelVersion

ALIKE, MIXED = "alike", "mixed"
# Fields of the specification that are asked by their own name.
PLAIN = Part(
    LayoutSpec,
    {
        "norm_topk_prob": Ask(_("Weights of the chosen sum to one"), _("As in Mixtral.")),
        "temperature": Ask(
            _("Temperature of the gate"),
            _("Divides its scores: below 1 the choice is firmer, above it softer."),
        ),
        "shared_intermediate_size": Ask(
            _("Width of the shared expert"), _("Empty: as wide as the dense feed-forward.")
        ),
        "free_expert_cost": Ask(
            _("What a token on an expert without a feed-forward counts for"),
            _("When loads are evened, in fair shares of work; below 1 such experts get more tokens."),
        ),
    },
)
GROUPS = (PLAIN, LAYOUT_CAPACITY, LAYOUT_SCHEDULE, *GATE_PARTS.values())
# Where a fault of the specification stands in the form, when its name differs.
PLACES = {"moe_layers": "layers", "expert_kinds": "experts", "capacity": "capacity-overflow"}
PREFIXES = {"gate": "gate-{gate}-{1}", "capacity": "capacity-{1}", "temperature_schedule": "schedule-{1}"}


class LayoutForm(forms.Form):
    """Everything that the editor edits: every field of LayoutSpec."""

    name = forms.CharField(label=_("Name"), max_length=120)
    base_version = forms.TypedChoiceField(label=_("Dense model to start from"), coerce=int)
    layers = forms.CharField(
        label=_("Layers with experts"), max_length=4000, help_text=_("For example 0-29 or 1, 3, 5-9.")
    )
    experts = forms.ChoiceField(
        label=_("The experts of a layer are"),
        choices=[(ALIKE, _("all alike")), (MIXED, _("of several kinds"))],
        initial=ALIKE,
        required=False,
    )
    kind_rows = forms.IntegerField(widget=forms.HiddenInput, required=False, min_value=0, max_value=MAX_ROWS)
    num_shared_experts = forms.TypedChoiceField(
        label=_("Shared expert"), coerce=int, choices=[(0, _("none")), (1, _("one"))]
    )
    gate = forms.ChoiceField(
        label=_("Gate"), choices=[(kind, words.title) for kind, words in GATES.items()], required=False
    )
    note = forms.CharField(label=_("Why"), max_length=400, required=False)
    revision = forms.IntegerField(widget=forms.HiddenInput, required=False, min_value=1)

    def __init__(self, *args: Any, bases: Iterable[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        bases = list(bases)
        self.fields["base_version"].choices = [(base.pk, str(base)) for base in bases]  # type: ignore[attr-defined]
        self.num_layers = {base.pk: base.spec["num_hidden_layers"] for base in bases}
        self.fields |= {name: spec_field(LayoutSpec, name, ask) for name, ask in SIZES.items()}
        # Of several kinds, they are counted by their rows.
        self.fields["num_experts"].required = False
        for group in GROUPS:
            self.fields |= group.fields()
        for row in range(self.num_rows):
            self.fields |= fields_of_row(row)

    @property
    def num_rows(self) -> int:
        """How many kinds of experts the form has rows for."""
        said = (self.data if self.is_bound else self.initial).get("kind_rows", 0)
        return min(MAX_ROWS, int(said)) if str(said).isdigit() and len(str(said)) < 6 else 0

    @property
    def rows(self) -> list[dict[str, BoundField]]:
        """The kinds of experts, for the template."""
        return bound_rows(self, self.num_rows)

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Every gate with its words and its own fields, for the template."""
        return [
            {
                "kind": kind,
                "words": words,
                "own": GATE_PARTS[kind].bound(self, *words.asks) if words.asks else [],
                "more": GATE_PARTS[kind].bound(self, *words.more) if words.more else [],
            }
            for kind, words in GATES.items()
        ]

    @property
    def capacity_overflow(self) -> BoundField:
        """The lead of the capacity."""
        return self["capacity-overflow"]

    @property
    def schedule_kind(self) -> BoundField:
        """The lead of the temperature schedule."""
        return self["schedule-kind"]

    @property
    def capacity_rest(self) -> list[BoundField]:
        """What is asked of a capacity where there is one."""
        return LAYOUT_CAPACITY.bound(self)

    @property
    def schedule_rest(self) -> list[BoundField]:
        """What is asked of a temperature schedule where there is one."""
        return LAYOUT_SCHEDULE.bound(self)

    @property
    def deep(self) -> list[BoundField]:
        """Everything behind the editor's last disclosure."""
        plain = [self[name] for name in PLAIN.asks if name != "free_expert_cost"]
        leads = [self["capacity-overflow"], self["schedule-kind"]]
        shown = [part for part in (LAYOUT_CAPACITY, LAYOUT_SCHEDULE) if part.is_chosen(self)]
        return [*plain, *leads, *(one for part in shown for one in part.bound(self))]

    @property
    def is_mixed(self) -> bool:
        """Whether the experts are of several kinds."""
        return self["experts"].value() == MIXED

    def clean(self) -> dict[str, Any]:
        """Compare the fields with each other, so that everything that is wrong is told at once."""
        data: dict[str, Any] = super().clean() or {}
        forget(self, self._out_of_play())
        self.kinds: list[dict[str, Any]] = []
        if self.is_mixed:
            self.kinds = experts_of(self, self.num_rows)
            data["num_experts"] = len(self.kinds) or None
        elif not data.get("num_experts") and "num_experts" not in self.errors:
            self.add_error("num_experts", self.fields["num_experts"].error_messages["required"])
        self._compare(data)
        if not self.errors:
            self._check_whole()
        return data

    def _out_of_play(self) -> list[str]:
        """Fields that do not count, as the form stands: of other gates, of the other way to say the experts."""
        names = [
            name for kind, part in GATE_PARTS.items() if kind != self["gate"].value() for name in part.names()
        ]
        names += [
            name
            for part in (LAYOUT_CAPACITY, LAYOUT_SCHEDULE)
            if not part.is_chosen(self)
            for name in part.names()
        ]
        if LAYOUT_SCHEDULE.is_chosen(self):
            names.append("temperature")
        if self.is_mixed:
            return [*names, "num_experts", "moe_intermediate_size"]
        return [*names, *(name for row in range(self.num_rows) for name in fields_of_row(row))]

    def _compare(self, data: Mapping[str, Any]) -> None:
        k, num_experts = data.get("top_k"), data.get("num_experts")
        if k and num_experts and k > num_experts:
            self.add_error("top_k", told(CORE.say("top_k_over_experts", top_k=k, num_experts=num_experts)))
        layers, num_layers = data.get("layers"), self.num_layers.get(data.get("base_version") or 0)
        if layers and num_layers and layers[-1] >= num_layers:
            sentence = CORE.say("layer_outside", layer=layers[-1], num_layers=num_layers, last=num_layers - 1)
            self.add_error("layers", told(sentence))

    def _check_whole(self) -> None:
        """Let the specification judge what every field by itself allows."""
        try:
            LayoutSpec.parse(self.spec())
        except SpecError as error:
            for place, sentence in error.complaints:
                self.add_error(self.field_of(place), told(sentence))

    def field_of(self, place: tuple[int | str, ...]) -> str | None:
        """The field that a fault of the specification stands beside; None for the whole form."""
        if not place:
            return None
        name = str(place[0])
        pattern = PREFIXES.get(name)
        if pattern and len(place) > 1:
            name = pattern.format(*place, gate=self["gate"].value())
        found = name if name in self.fields else PLACES.get(str(place[0]), str(place[0]))
        return found if found in self.fields else None

    def clean_layers(self) -> list[int]:
        """Layers as numbers."""
        return parse_layers(self.cleaned_data["layers"])

    def spec(self) -> dict[str, Any]:
        """The layout as plain data for moe_core; what was not on the page is left out."""
        data = self.cleaned_data
        found: dict[str, Any] = {
            "moe_layers": data["layers"],
            "num_experts": data["num_experts"],
            "top_k": data["top_k"],
            "num_shared_experts": data["num_shared_experts"],
            "moe_intermediate_size": None if self.is_mixed else data["moe_intermediate_size"],
            **(PLAIN.data(self) or {}),
        }
        if not data["num_shared_experts"]:
            found["shared_intermediate_size"] = None
        if not was_omitted(self, "experts"):
            found["expert_kinds"] = self.kinds or None
        if data["gate"]:
            found["gate"] = GATE_PARTS[data["gate"]].data(self)
        for name, part in (("capacity", LAYOUT_CAPACITY), ("temperature_schedule", LAYOUT_SCHEDULE)):
            if not was_omitted(self, part.prefix + part.lead):
                found[name] = part.data(self)
        if found.get("temperature_schedule"):
            found["temperature"] = 1.0
        return found


SIZES = {
    "num_experts": Ask(_("Experts per layer")),
    "top_k": Ask(_("top-k, experts per token")),
    "moe_intermediate_size": Ask(_("Expert width"), _("Empty: as wide as the dense feed-forward.")),
}


def initial_of(spec: Mapping[str, Any], *, width: int, **more: Any) -> dict[str, Any]:
    """The form's values for a saved specification over a dense model whose feed-forward has that width."""
    gate = spec.get("gate") or {"kind": "softmax_topk"}
    kinds = spec.get("expert_kinds")
    rows = (
        runs_of(kinds)
        if kinds
        else proposed_rows(spec["num_experts"], spec.get("moe_intermediate_size") or width)
    )
    return {
        "layers": layers_text(spec["moe_layers"]),
        **{name: spec.get(name) for name in (*SIZES, "num_shared_experts")},
        "experts": MIXED if kinds else ALIKE,
        "kind_rows": len(rows),
        **initial_of_rows(rows),
        "gate": gate["kind"],
        **GATE_PARTS[gate["kind"]].initial(gate),
        **PLAIN.initial(spec),
        **LAYOUT_CAPACITY.initial(spec.get("capacity")),
        **LAYOUT_SCHEDULE.initial(spec.get("temperature_schedule")),
        **more,
    }


def proposed_rows(num_experts: int, width: int) -> list[dict[str, Any]]:
    """What the rows begin with while all experts are alike: half of them as they are, half of them half as wide."""
    narrow = num_experts // 2
    rows = [{"count": num_experts - narrow, "width": width}, {"count": narrow, "width": max(1, width // 2)}]
    return [{"kind": "swiglu", "activation": "silu", **row} for row in rows if row["count"]]
