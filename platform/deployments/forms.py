"""Forms of the deployments pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from common.errors import DomainError, Invalid
from common.spec_fields import Ask, spec_field
from deployments.domains import map_words
from deployments.engine_settings import EngineSettings, settings_checked
from deployments.models import MAX_REPLICAS, Deployment
from deployments.services import KEEP, checked_name
from deployments.translation import EXPERTS_GONE, Proposal, proposal_for
from registry.models import ModelVersion, VersionState
from registry.selectors import versions_of
from routing.selectors import maps_of

DTYPES = [("bfloat16", "bf16"), ("float32", "fp32")]
WEIGHTS = [("stored", _("as they are stored")), ("int8", "int8"), ("int4", "int4")]
PRIORS = [
    ("", _("as the domain map says")),
    ("none", _("do not lean")),
    ("bias", _("lean towards the domain's experts")),
    ("mask", _("only the domain's experts")),
    ("floor", _("the domain's experts get a share at least")),
]
DEFAULTS = EngineSettings().model_dump()
SETTINGS = (
    "dtype", "weights", "kv_tokens", "max_sequences", "num_threads", "prior_mode", "prior_strength", "prior_floor",
    "resident_experts", "device_experts", "expert_affinity_steps", "ngram_tokens", "batch_invariant",
)  # fmt: skip
AS_SERVED = "as-served"
TRANSLATED = "translated"
MAY_BE_NONE = frozenset(
    {"resident_experts", "device_experts", "ngram_tokens", "prior_mode", "prior_strength", "prior_floor"}
)


def _bounded(name: str, label: Any, **more: Any) -> forms.IntegerField:
    rules = EngineSettings.model_json_schema()["properties"][name]
    bounds = next(one for one in (rules, *rules.get("anyOf", [])) if "maximum" in one)
    return forms.IntegerField(
        label=label, min_value=bounds["minimum"], max_value=bounds["maximum"], initial=DEFAULTS[name], **more
    )


class EngineForm(forms.Form):
    """What is served, and how much of the machine it may use."""

    version = forms.ModelChoiceField(ModelVersion.objects.none(), label=_("Version"), empty_label=None)
    dtype = forms.ChoiceField(label=_("Precision"), choices=DTYPES, initial=DEFAULTS["dtype"])
    weights = forms.ChoiceField(
        label=_("Served weights"),
        choices=WEIGHTS,
        initial=DEFAULTS["weights"],
        required=False,
        help_text=_(
            "int8 and int4 pack experts, attention and head of a mixture in 16 bits when an engine loads it: it needs less "
            "memory and answers faster, and its answers change as by quantising. The first start takes longer, and needs "
            "memory for both."
        ),
    )
    kv_tokens = _bounded("kv_tokens", _("Cache"), help_text=_("Tokens of all running requests together."))
    max_sequences = _bounded("max_sequences", _("Requests at once"))
    num_threads = _bounded("num_threads", _("Threads"))
    prior_mode = forms.ChoiceField(
        label=_("Named domains"),
        choices=PRIORS,
        required=False,
        help_text=_("In every layer; the domain map may tell layers apart."),
    )
    prior_strength = spec_field(
        EngineSettings, "prior_strength", Ask(_("Strength of the prior"), _("Empty: the domain map's."))
    )
    prior_floor = spec_field(
        EngineSettings, "prior_floor", Ask(_("Share of its experts, at least"), _("Empty: the domain map's."))
    )
    resident_experts = _bounded(
        "resident_experts",
        _("Experts in memory"),
        required=False,
        help_text=_("Of all layers together; empty: all. The others are read from disk when they are used."),
    )
    device_experts = _bounded(
        "device_experts",
        _("Experts on the GPU"),
        required=False,
        help_text=_(
            "Where a GPU computes; empty: all. The others are copied there from memory when they are used."
        ),
    )
    expert_affinity_steps = _bounded(
        "expert_affinity_steps",
        _("Steps that a request may be overtaken for"),
        required=False,
        help_text=_("By requests that share experts with those that run; 0: strictly in turn."),
    )
    ngram_tokens = _bounded(
        "ngram_tokens",
        _("Guessed tokens a step"),
        required=False,
        help_text=_("Of what an answer repeats; each is checked. Empty: as many as pay; 0: none."),
    )
    batch_invariant = forms.BooleanField(
        label=_("The same to the last bit in any company"),
        required=False,
        help_text=_("An answer never depends on the requests beside it; slower."),
    )
    # Shown once it is needed.
    confirm_domains = forms.BooleanField(
        label=_("Serve it without these experts"), required=False, widget=forms.HiddenInput
    )

    def __init__(self, *args: Any, team: Team, kept: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept = kept or {}
        choices = versions_of(team).filter(state=VersionState.READY)
        self.fields["version"].queryset = choices  # type: ignore[attr-defined]

    def settings(self) -> dict[str, Any]:
        """The engine's part, as it is stored: what was kept, and what is said here."""
        said = {name: self.cleaned_data[name] for name in SETTINGS if name in self.cleaned_data}
        # An empty field says something where nothing is a choice of its own.
        chosen = {
            name: None if value == "" else value
            for name, value in said.items()
            if name in MAY_BE_NONE or value not in (None, "")
        }
        return {**self.kept, **chosen}

    def clean(self) -> None:
        """Judge the settings by the chosen version with the other fields, by the rule of the service."""
        version = self.cleaned_data.get("version")
        if version is None:
            return
        try:
            settings_checked(self.settings(), version.spec)
        except Invalid as error:
            self.show_error(error)

    def show_error(self, error: DomainError) -> None:
        """Put a refusal beside the field that it speaks of, and ask for what would lift it."""
        if error.code == EXPERTS_GONE:
            self.fields["confirm_domains"].widget = forms.CheckboxInput()
        for place, message in (error.fields or {"": error.message}).items():
            name = place.removeprefix("settings.")
            self.add_error(
                name if name in self.fields else None, message if name in self.fields else error.message
            )


class DeployForm(EngineForm):
    """A new deployment."""

    name = forms.CharField(
        label=_("Name"),
        max_length=60,
        help_text=_("What clients send as “model”: lower-case letters, digits, - _ ."),
    )
    domain_map = forms.ChoiceField(
        label=_("Domain map"),
        required=False,
        help_text=_("Requests may name its domains, and the router leans towards their experts."),
    )
    replicas = forms.IntegerField(label=_("Replicas"), min_value=0, max_value=MAX_REPLICAS, initial=1)
    field_order = ["name", "version", "domain_map", "confirm_domains", "replicas"]

    def __init__(self, *args: Any, team: Team, **options: Any) -> None:
        super().__init__(*args, team=team, **options)
        self.proposal = self._proposal()
        names = {one.pk: str(one) for one in maps_of(team)}
        # Who chose it for one version and then took another means the map by that one's numbers.
        asked = self.data.get(self.add_prefix("domain_map")) == TRANSLATED
        proposed = (
            self.proposal and (self.proposal.is_translated or asked) and names.get(self.proposal.map_id)
        )
        translated = [(TRANSLATED, _("%(map)s, by this version's numbers") % {"map": proposed})]
        self.fields["domain_map"].choices = [  # type: ignore[attr-defined]
            ("", _("none: requests name no domain")),
            *(translated if proposed else []),
            *((str(pk), name) for pk, name in names.items()),
        ]

    def _proposal(self) -> Proposal | None:
        """The map that suits the version, as far as one is chosen."""
        chosen = str(self["version"].value() or "")
        version = self.fields["version"].queryset.filter(pk=chosen).first() if chosen.isdigit() else None  # type: ignore[attr-defined]
        return proposal_for(version) if version and not version.is_dense else None

    def propose_map(self) -> None:
        """Start from the map that suits the version; from none where some of its experts are gone."""
        found = self.proposal
        if found and not found.is_short:
            self.initial["domain_map"] = TRANSLATED if found.is_translated else found.map_id

    def chosen_map(self) -> dict[str, Any]:
        """What the service is asked for: a map's number and whether it is translated, or None."""
        chosen = self.cleaned_data["domain_map"]
        if chosen == TRANSLATED and self.proposal:
            return {
                "domain_map_id": self.proposal.map_id,
                "translate_domains": self.proposal.is_translated,
            }
        return {"domain_map_id": int(chosen) if chosen else None}

    def clean_name(self) -> str:
        """Judge the name with the other fields, by the rule of the service."""
        try:
            return checked_name(self.cleaned_data["name"])
        except Invalid as error:
            raise ValidationError(error.fields["name"]) from error


class UpdateForm(EngineForm):
    """A next revision."""

    note = forms.CharField(
        label=_("Why"), max_length=200, required=False, help_text=_("Kept in the history.")
    )
    domain_map = forms.ChoiceField(
        label=_("Domain map"),
        required=False,
        help_text=_("Requests may name its domains, and the router leans towards their experts."),
    )
    field_order = [
        "version", "domain_map", "confirm_domains", "prior_mode", "prior_strength", "prior_floor", "note",
    ]  # fmt: skip

    def __init__(self, *args: Any, team: Team, domains: dict[str, Any], **options: Any) -> None:
        super().__init__(*args, team=team, **options)
        self.fields["domain_map"].choices = [  # type: ignore[attr-defined]
            *([(AS_SERVED, _("as served: %(map)s") % {"map": map_words(domains)})] if domains else []),
            ("", _("none: requests name no domain")),
            *((str(one.pk), str(one)) for one in maps_of(team)),
        ]

    @classmethod
    def for_deployment(cls, deployment: Deployment, data: Any = None) -> UpdateForm:
        """Start from what is wanted now; the domains stay as they are served until somebody chooses others."""
        initial = {
            **deployment.settings,
            "version": deployment.desired_version_id,
            "domain_map": AS_SERVED if deployment.domains else "",
        }
        served = {"domains": deployment.domains, "kept": deployment.settings}
        return cls(data, team=deployment.team, initial=initial, prefix="update", **served)

    def chosen_map(self) -> int | object | None:
        """What the service is asked for: a map's number, None for no domains, KEEP for those that are served."""
        chosen = self.cleaned_data["domain_map"]
        return KEEP if chosen == AS_SERVED else int(chosen) if chosen else None


class ScaleForm(forms.Form):
    """How many replicas."""

    replicas = forms.IntegerField(label=_("Replicas"), min_value=0, max_value=MAX_REPLICAS)
