"""Forms: import a model, build and tune one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accounts.models import Team
from common.errors import DomainError
from corpora.selectors import corpora_of
from jobs.builtin import CATALOGUE
from jobs.specs import default_threads
from layouts.selectors import layouts_of
from moe_core.spec import TuneSpec
from registry.models import VersionState
from registry.selectors import uploads_of, versions_of
from routing.selectors import maps_of

MAX_CHOICES = 200
SOURCES = BUILTIN, UPLOAD, FOLDER = "builtin", "upload", "folder"


class ImportForm(forms.Form):
    """Where a model comes from, and what it is to be called."""

    source = forms.ChoiceField(
        label=_("Where from"),
        choices=[
            (BUILTIN, _("Comes along")),
            (UPLOAD, _("An uploaded file")),
            (FOLDER, _("A folder of the machine")),
        ],
        initial=BUILTIN,
    )
    builtin = forms.ChoiceField(
        label=_("Model that comes along"),
        choices=[(one.name, one.title) for one in CATALOGUE.values()],
        required=False,
    )
    upload = forms.TypedChoiceField(label=_("Uploaded file"), coerce=int, empty_value=None, required=False)
    path = forms.CharField(
        label=_("Path"),
        max_length=1000,
        required=False,
        help_text=_("Below one of the folders that TURNOUT_IMPORT_ROOTS names."),
    )
    name = forms.CharField(label=_("Name in the registry"), max_length=120)
    licence = forms.CharField(label=_("Licence"), max_length=120, required=False)

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, **more)
        uploads = uploads_of(team).filter(kind="gguf")[:MAX_CHOICES]
        choices = [(upload.pk, upload.name) for upload in uploads]
        self.fields["upload"].choices = [("", _("none chosen")), *choices]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """The chosen source must be told."""
        data = super().clean() or {}
        wanted = {BUILTIN: "builtin", UPLOAD: "upload", FOLDER: "path"}.get(data.get("source", ""))
        if wanted and not data.get(wanted) and wanted not in self.errors:
            self.add_error(wanted, _("Say which one."))
        return data

    def spec(self) -> dict[str, Any]:
        """The specification that the form asks for."""
        data = self.cleaned_data
        sources = {
            BUILTIN: {"kind": BUILTIN, "name": data["builtin"]},
            UPLOAD: {"kind": UPLOAD, "id": data["upload"]},
            FOLDER: {"kind": FOLDER, "path": data["path"]},
        }
        return {"name": data["name"], "licence": data["licence"], "source": sources[data["source"]]}


def _default(name: str) -> Any:
    return TuneSpec.model_fields[name].default


class TuneForm(forms.Form):
    """The parts of a tuning run and its essentials; every default is the specification's own."""

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
    specialise_steps = forms.IntegerField(
        label=_("Steps for each expert"), min_value=0, max_value=1_000_000, initial=_default("specialise_steps"),
        help_text=_("Each mapped expert learns from the logs of its domains alone."),
    )  # fmt: skip
    route_steps = forms.IntegerField(
        label=_("Steps for the router"), min_value=0, max_value=1_000_000, initial=_default("route_steps"),
        help_text=_("Only the gates change, with balance on."),
    )  # fmt: skip
    tokens_per_batch = forms.IntegerField(
        label=_("Tokens a batch"), min_value=8, max_value=1 << 20, initial=_default("tokens_per_batch")
    )
    window_tokens = forms.IntegerField(
        label=_("Tokens a window"), min_value=8, max_value=8192, initial=_default("window_tokens")
    )
    held_out_windows = forms.IntegerField(
        label=_("Held-out windows for each domain"),
        min_value=1,
        max_value=10_000,
        initial=_default("held_out_windows"),
    )
    control = forms.BooleanField(
        label=_("Run the control with a deranged map"), required=False, initial=True,
        help_text=_("It shows whether the gain comes from the map. It takes about a quarter of the time."),
    )  # fmt: skip
    specialise_learning_rate = forms.FloatField(
        label=_("Learning rate, experts"),
        min_value=1e-9,
        max_value=1,
        initial=_default("specialise_learning_rate"),
    )
    route_learning_rate = forms.FloatField(
        label=_("Learning rate, router"), min_value=1e-9, max_value=1, initial=_default("route_learning_rate")
    )
    checkpoint_every_steps = forms.IntegerField(
        label=_("Checkpoint after steps"),
        min_value=1,
        max_value=100_000,
        initial=_default("checkpoint_every_steps"),
        help_text=format_lazy(
            _(
                "And when at least {seconds} s have passed since the last one; the end of each stage is always kept."
            ),
            seconds=f"{_default('checkpoint_min_seconds'):g}",
        ),
    )
    dtype = forms.ChoiceField(
        label=_("Precision"),
        choices=[
            ("auto", _("the quicker on this machine")),
            ("float32", "float32"),
            ("bfloat16", "bfloat16"),
        ],
    )
    num_threads = forms.IntegerField(label=_("Threads"), min_value=1, max_value=256, initial=default_threads)
    seed = forms.IntegerField(label=_("Seed"), min_value=0, max_value=2**31 - 1, initial=0)

    PARTS = ("model_version", "layout", "domain_map", "corpus")
    ESSENTIALS = ("specialise_steps", "route_steps", "tokens_per_batch", "window_tokens", "held_out_windows")
    MORE = (
        "specialise_learning_rate", "route_learning_rate", "checkpoint_every_steps", "dtype", "num_threads", "seed",
    )  # fmt: skip

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, **more)
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

    def spec(self) -> dict[str, Any]:
        """The specification that the form asks for."""
        data = self.cleaned_data
        options = {name: data[name] for name in (*self.ESSENTIALS, *self.MORE, "control")}
        return {**{name: data[name] for name in self.PARTS}, "tune": options}


def version_words(version: Any) -> str:
    """How a version is offered: with its experts, so that a mixture is told from a dense one."""
    if version.is_dense:
        return str(_("%(version)s · dense") % {"version": version})
    count = version.num_experts
    words = ngettext("%(version)s · %(count)s expert", "%(version)s · %(count)s experts", count)
    return words % {"version": version, "count": count}


SOURCE_FIELDS = {"source.name": "builtin", "source.id": "upload", "source.path": "path"}


def _field_of(path: str) -> str:
    """The form's field that a path of the specification is about: `operation.grow.num_experts` is `num_experts`."""
    if path in SOURCE_FIELDS:
        return SOURCE_FIELDS[path]
    parts = path.removeprefix("tune.").split(".")
    return parts[-1] if parts[0] == "operation" else parts[0]


def show_error(form: forms.Form, error: DomainError) -> None:
    """Put a service's complaint beside the fields that it is about."""
    named = {_field_of(path): message for path, message in error.fields.items()}
    known = {name: message for name, message in named.items() if name in form.fields}
    for name, message in known.items():
        form.add_error(name, message)
    if not known:
        form.add_error(None, error.message)
