"""Forms of the deployments pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from common.errors import DomainError
from deployments.engine_settings import EngineSettings
from deployments.models import MAX_REPLICAS, Deployment
from registry.models import ModelVersion, VersionState
from registry.selectors import versions_of
from routing.models import DomainMap
from routing.selectors import maps_of

DTYPES = [("bfloat16", "bf16"), ("float32", "fp32")]
PRIORS = [
    ("", _("as the domain map says")),
    ("none", _("do not lean")),
    ("bias", _("lean towards the domain's experts")),
    ("mask", _("only the domain's experts")),
]
DEFAULTS = EngineSettings().model_dump()
FIELDS = {name: EngineSettings.model_fields[name] for name in ("num_threads", "max_sequences", "kv_tokens")}


def _bounded(name: str, label: Any, **more: Any) -> forms.IntegerField:
    low, high = (
        next(getattr(rule, key) for rule in FIELDS[name].metadata if hasattr(rule, key))
        for key in ("ge", "le")
    )
    return forms.IntegerField(label=label, min_value=low, max_value=high, initial=DEFAULTS[name], **more)


class EngineForm(forms.Form):
    """What is served, and how much of the machine it may use."""

    version = forms.ModelChoiceField(ModelVersion.objects.none(), label=_("Version"), empty_label=None)
    domain_map = forms.ModelChoiceField(
        DomainMap.objects.none(),
        label=_("Domain map"),
        required=False,
        empty_label=_("none: requests name no domain"),
        help_text=_("Requests may name its domains, and the router leans towards their experts."),
    )
    dtype = forms.ChoiceField(label=_("Precision"), choices=DTYPES, initial=DEFAULTS["dtype"])
    kv_tokens = _bounded("kv_tokens", _("Cache"), help_text=_("Tokens of all running requests together."))
    max_sequences = _bounded("max_sequences", _("Requests at once"))
    num_threads = _bounded("num_threads", _("Threads"))
    prior_mode = forms.ChoiceField(label=_("Named domains"), choices=PRIORS, required=False)

    def __init__(self, *args: Any, team: Team, **options: Any) -> None:
        super().__init__(*args, **options)
        choices = versions_of(team).filter(state=VersionState.READY)
        self.fields["version"].queryset = choices  # type: ignore[attr-defined]
        self.fields["domain_map"].queryset = maps_of(team)  # type: ignore[attr-defined]

    def settings(self) -> dict[str, Any]:
        """The engine's part, as it is stored."""
        names = ("dtype", "kv_tokens", "max_sequences", "num_threads", "prior_mode")
        return {
            name: self.cleaned_data[name] for name in names if self.cleaned_data.get(name) not in (None, "")
        }

    def show_error(self, error: DomainError) -> None:
        """Put a refusal beside the field that it speaks of."""
        for name, message in (error.fields or {"": error.message}).items():
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
    replicas = forms.IntegerField(label=_("Replicas"), min_value=0, max_value=MAX_REPLICAS, initial=1)
    field_order = ["name", "version", "domain_map", "replicas"]


class UpdateForm(EngineForm):
    """A next revision."""

    note = forms.CharField(
        label=_("Why"), max_length=200, required=False, help_text=_("Kept in the history.")
    )
    field_order = ["version", "domain_map", "note"]

    @classmethod
    def for_deployment(cls, deployment: Deployment, data: Any = None) -> UpdateForm:
        """Start from what is wanted now."""
        initial = {
            **deployment.settings,
            "version": deployment.desired_version_id,
            "domain_map": deployment.domain_map_id,
        }
        return cls(data, team=deployment.team, initial=initial, prefix="update")


class ScaleForm(forms.Form):
    """How many replicas."""

    replicas = forms.IntegerField(label=_("Replicas"), min_value=0, max_value=MAX_REPLICAS)
