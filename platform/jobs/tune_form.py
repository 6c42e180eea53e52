"""The form of a tuning run: the parts that it puts together, and everything that TuneSpec can be told."""

from __future__ import annotations

from typing import Any

from django import forms
from django.forms import BoundField
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from common.spec_fields import forget, was_omitted
from corpora.selectors import corpora_of
from jobs.forms import MAX_CHOICES, version_words
from jobs.specs import default_threads
from jobs.tune_fields import DEEP, ESSENTIALS, FINER, PARTS, PLAIN, TEACHING
from layouts.selectors import layouts_of
from registry.models import VersionState
from registry.selectors import versions_of
from routing.selectors import maps_of


class TuneForm(forms.Form):
    """The parts of a tuning run and how it is done; every default is the specification's own."""

    name = forms.CharField(
        label=_("Name of the job"),
        max_length=120,
        required=False,
        help_text=_("Left empty, it is called like the model."),
    )
    model_version = forms.TypedChoiceField(label=_("Model version"), coerce=int)
    layout = forms.TypedChoiceField(
        label=_("Expert layout"), coerce=int, empty_value=None, required=False,
        help_text=_("A dense version needs one; a mixture has its own."),
    )  # fmt: skip
    domain_map = forms.TypedChoiceField(label=_("Domains"), coerce=int)
    corpus = forms.TypedChoiceField(label=_("Logs"), coerce=int)

    PARTS = ("model_version", "layout", "domain_map", "corpus")

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, **more)
        for part in (*PLAIN, *PARTS.values()):
            self.fields |= part.fields()
        threads = self.fields["num_threads"]
        threads.initial = threads.spec_default = default_threads()  # type: ignore[attr-defined]
        given = set(self.initial)
        versions = list(versions_of(team).filter(state=VersionState.READY)[:MAX_CHOICES])
        layouts = layouts_of(team).select_related("base_version__model")[:MAX_CHOICES]
        self.choose("model_version", [(one.pk, version_words(one)) for one in versions])
        self.choose("layout", [(one.pk, f"{one} · {one.base_version}") for one in layouts])
        self.choose("domain_map", [(one.pk, str(one)) for one in maps_of(team)[:MAX_CHOICES]])
        self.choose(
            "corpus", [(one.pk, one.name) for one in corpora_of(team).exclude(train=None)[:MAX_CHOICES]]
        )
        chosen = next(
            (one for one in versions if str(one.pk) == str(self.initial.get("model_version"))), None
        )
        if chosen is not None and not chosen.is_dense and "layout" not in given:
            # A mixture has experts already; no layout can be laid over it.
            self.initial["layout"] = ""

    def choose(self, name: str, choices: list[tuple[int, str]]) -> None:
        """Offer the team's rows; the newest is chosen unless something else is."""
        field = self.fields[name]
        field.choices = [("", _("none")), *choices] if not field.required else choices  # type: ignore[attr-defined]
        if choices and name not in self.initial:
            self.initial[name] = choices[0][0]

    @property
    def missing(self) -> list[str]:
        """The parts that the team does not have yet."""
        return [name for name in self.PARTS if name != "layout" and not self.fields[name].choices]  # type: ignore[attr-defined]

    @property
    def finer(self) -> list[BoundField]:
        """What is shown beside the essentials."""
        return FINER.bound(self)

    @property
    def teaching(self) -> list[BoundField]:
        """How gates are taught, but for room and temperature."""
        return TEACHING.bound(self)

    @property
    def deep(self) -> list[BoundField]:
        """What hardly anybody changes."""
        return DEEP.bound(self)

    @property
    def all_teaching(self) -> list[BoundField]:
        """Everything behind the disclosure of how gates are taught."""
        leads = [self[part.prefix + part.lead] for part in PARTS.values()]
        rest = [one for part in PARTS.values() if part.is_chosen(self) for one in part.bound(self)]
        return [*self.teaching, *leads, *rest]

    @property
    def led(self) -> list[tuple[BoundField, list[BoundField]]]:
        """Schedule and room: the choice whether there is one, and what is asked then."""
        parts = (PARTS["temperature_schedule"], PARTS["capacity"])
        return [(self[part.prefix + part.lead], part.bound(self)) for part in parts]

    def clean(self) -> dict[str, Any]:
        """What is asked of a schedule or a room that is not chosen does not count."""
        data = super().clean() or {}
        forget(self, [name for part in PARTS.values() if not part.is_chosen(self) for name in part.names()])
        return data

    def spec(self) -> dict[str, Any]:
        """The specification that the form asks for; what was not on the page is left to TuneSpec."""
        options: dict[str, Any] = {}
        for part in (ESSENTIALS, FINER, TEACHING, DEEP):
            options |= part.data(self) or {}
        for name, part in PARTS.items():
            if not was_omitted(self, part.prefix + part.lead):
                options[name] = part.data(self)
        return {**{name: self.cleaned_data[name] for name in self.PARTS}, "tune": options}
