"""What the forms of all operations on experts have in common: the version, the logs, how much is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from django import forms
from django.forms import BoundField
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from common.figures import listed, sentences
from common.spec_fields import Ask, Part
from corpora.selectors import corpora_of
from jobs.chosen import ChosenField
from jobs.forms import MAX_CHOICES, version_words
from jobs.specs import default_threads
from jobs.tune_fields import DTYPE
from moe_core.errors import SpecError
from moe_core.spec import ModelSpec
from moe_core.spec.base import Spec
from moe_core.spec.demands import check_alone
from moe_core.spec.model import MoeSpec
from moe_core.spec.operate import NEED_LOGS, OperateSpec
from registry.models import ModelVersion, VersionState
from registry.selectors import versions_of

OPTIONS = Part(
    OperateSpec,
    {
        "prompts_per_domain": Ask(
            _("Prompts of each domain"),
            _("From the logs, to learn from and to measure on. Twice as many take twice as long."),
        ),
        "prompt_tokens": Ask(_("Tokens of a prompt, at most")),
        "dtype": DTYPE,
        "num_threads": Ask(_("Threads")),
    },
)
MAX_CODES = 12
SEED = Ask(_("Seed"))
LOSS = Ask(_("Refuse when a domain's loss rises by more"), _("In nats a token. Empty: whatever it costs."))
PER_GROUP = Ask(
    _("The same in every group"),
    _("For gates that choose among groups of experts; numbers are then places in each group."),
)

TOGETHER = Ask(
    _("Experts that go together"),
    _(
        "As many as share a gate row: 2 for the halves of an expert that was cut in two, with the one that is named."
    ),
)


class OperateForm(forms.Form):
    """What every operation asks: on which version, with which logs."""

    kind: ClassVar[str]
    title: ClassVar[Promise]
    # What it does, in a sentence for the page.
    words: ClassVar[Promise]
    # What to do when no version fits.
    lacking: ClassVar[Promise] = _(
        "It needs a version whose experts are alike and not packed; build one first."
    )
    # Its own fields as the specification has them: what everybody sees, and what lies behind a disclosure.
    schema: ClassVar[type[Spec]]
    asks: ClassVar[Mapping[str, Ask]] = {}
    more: ClassVar[Mapping[str, Ask]] = {}
    # Whether its page asks to look before it is done: for what takes something away.
    previews_first: ClassVar[bool] = False
    # Whether a version comes of it, which a preview could show first.
    changes: ClassVar[bool] = True
    # Templates show the class; they must not call it.
    do_not_call_in_templates: ClassVar[bool] = True

    name = forms.CharField(
        label=_("Name of the job"), max_length=120, required=False,
        help_text=_("Left empty, it is called like the model."),
    )  # fmt: skip
    model_version = forms.TypedChoiceField(label=_("Model version"), coerce=int)
    corpus = forms.TypedChoiceField(
        label=_("Logs"), coerce=int, empty_value=None, required=False,
        help_text=_("Loss is measured on their held-out rows, domain by domain."),
    )  # fmt: skip
    OPTIONS = tuple(OPTIONS.asks)
    COMMON = ("name", "model_version", "corpus", *OPTIONS)

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, **more)
        self.team = team
        self.part = Part(self.schema, {**self.asks, **self.more}, fixed={"kind": self.kind})
        written = {name: field for name, field in self.fields.items() if name not in self.COMMON}
        for name in written:
            del self.fields[name]
        self.fields |= {**written, **self.part.fields(), **OPTIONS.fields()}
        threads = self.fields["num_threads"]
        threads.initial = threads.spec_default = default_threads()  # type: ignore[attr-defined]
        versions = [
            version
            for version in versions_of(team).filter(state=VersionState.READY)[:MAX_CHOICES]
            if self.fits(version)
        ]
        self.by_number = {version.pk: version for version in versions}
        self.versions = [(version.pk, version_words(version)) for version in versions]
        self.fields["model_version"].choices = self.versions  # type: ignore[attr-defined]
        chosen = {str(version.pk): version for version in versions}.get(
            str(self.initial.get("model_version", "")), self._first(versions)
        )
        if chosen is not None:
            self.fields["model_version"].initial = chosen.pk
            self.suit(chosen)
        corpora = list(corpora_of(team).exclude(train=None)[:MAX_CHOICES])
        logs = [(corpus.pk, corpus.name) for corpus in corpora]
        # Of all logs, newest first: which ones are chosen may change on the page.
        codes = (code for one in corpora for code in sorted(one.counts.get("by_domain") or {}) if code)
        self.codes = list(dict.fromkeys(codes))
        self.fields["corpus"].required = self.kind in NEED_LOGS
        # The newest logs, for a change that is not measured may have broken anything.
        self.fields["corpus"].initial = logs[0][0] if logs else None
        self.fields["corpus"].choices = logs if self.kind in NEED_LOGS else [("", _("none")), *logs]  # type: ignore[attr-defined]

    @classmethod
    def fits(cls, version: ModelVersion) -> bool:
        """Whether the operation can begin with that version: with experts that are alike and not packed."""
        moe = version.spec.get("moe") or {}
        return not version.is_dense and not moe.get("expert_kinds") and not moe.get("quantisation")

    @classmethod
    def check_gate(cls, moe: MoeSpec) -> None:
        """Raise SpecError where the operation would refuse a version for its gate, whatever else is asked."""

    @classmethod
    def _first(cls, versions: Sequence[ModelVersion]) -> ModelVersion | None:
        """The newest version whose gate it takes as it begins; where there is none, the newest."""
        return next(filter(cls._takes, versions), versions[0] if versions else None)

    @classmethod
    def _takes(cls, version: ModelVersion) -> bool:
        moe = ModelSpec.parse(version.spec).moe
        try:
            if moe is not None:
                cls.check_gate(moe)
        except SpecError:
            return False
        return True

    def suit(self, version: ModelVersion) -> None:
        """Set what hangs on the version: numbers that no specification can have as a default."""

    def name_codes(self, name: str) -> None:
        """Say under a field which domains the logs have."""
        if self.codes:
            field, more = self.fields[name], "" if len(self.codes) <= MAX_CODES else " …"
            words = {"codes": listed(self.codes[:MAX_CODES]) + more}
            field.help_text = sentences(str(field.help_text), gettext("The logs have: %(codes)s.") % words)

    @property
    def lacks_own(self) -> bool:
        """Whether one of its own fields is empty or wrong, as far as it was sent."""
        return any(name in self.errors for name in self.fields if name not in self.COMMON)

    @property
    def own_fields(self) -> list[BoundField]:
        """The fields of this operation that everybody sees, bound."""
        return [self[name] for name in self.fields if name not in (*self.COMMON, *self.more)]

    @property
    def more_fields(self) -> list[BoundField]:
        """The rest of them."""
        return [self[name] for name in self.more]

    @property
    def options(self) -> list[BoundField]:
        """How much it looks at, and how it computes."""
        return OPTIONS.bound(self)

    def operation(self) -> dict[str, Any]:
        """The operation that the form asks for; what is left empty is the specification's default."""
        return self.part.data(self) or {}

    def spec(self, *, preview: bool = False) -> dict[str, Any]:
        """The specification of the job."""
        options = OPTIONS.data(self) or {}
        return {
            "model_version": self.cleaned_data["model_version"],
            "corpus": self.cleaned_data["corpus"],
            "operation": self.operation(),
            "options": {**options, "preview": True} if preview else options,
        }

    @classmethod
    def initial_of(cls, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The form's values for the specification of a job."""
        operation = {name: value for name, value in spec["operation"].items() if name != "kind"}
        named = {name: spec[name] for name in ("model_version", "corpus") if spec.get(name) is not None}
        return {**operation, **spec.get("options", {}), **named}


class SingleForm(OperateForm):
    """An operation on single experts, which must be free to come and go."""

    @classmethod
    def check_gate(cls, moe: MoeSpec) -> None:
        """Gates with a row for each expert and one group leave them so."""
        check_alone(moe)


class OfOneExpertForm(SingleForm):
    """An operation on one expert of each layer: the one with the least load where none is named."""

    expert = ChosenField(
        label=_("Expert"), required=False,
        help_text=_("One number, or one for each layer. Left empty: the one with the least load, by layer."),
    )  # fmt: skip

    def operation(self) -> dict[str, Any]:
        """Without a number it is left to the operation."""
        expert = self.cleaned_data["expert"]
        return {**super().operation(), **({} if expert is None else {"expert": expert})}
