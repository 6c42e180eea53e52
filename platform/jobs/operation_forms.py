"""One form for each operation on experts; the essentials only, every default is the specification's own."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from corpora.selectors import corpora_of
from jobs.forms import MAX_CHOICES, version_words
from layouts.selectors import layouts_of
from moe_core.spec.base import Spec
from moe_core.spec.operate import LEARNING, OperateSpec
from moe_core.spec.operations import (
    AddExpertSpec,
    ComposeSpec,
    DistilSpec,
    GrowSpec,
    MergeExpertsSpec,
    RemoveExpertSpec,
    SpecialiseCloneSpec,
)
from moe_core.spec.quantisation import ExpertQuantSpec
from registry.models import ModelVersion, VersionState
from registry.operated import OPERATIONS
from registry.selectors import versions_of


def default(schema: type[Spec], name: str) -> Any:
    """What the specification takes when the form says nothing."""
    return schema.model_fields[name].default


def _expert(label: Any, **more: Any) -> forms.IntegerField:
    return forms.IntegerField(label=label, min_value=0, max_value=1023, **more)


class OperateForm(forms.Form):
    """What every operation asks: on which version, with which logs."""

    kind: ClassVar[str]
    title: ClassVar[Promise]
    # What it does, in a sentence for the page.
    words: ClassVar[Promise]
    starts_dense: ClassVar[bool | None] = False
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
    prompts_per_domain = forms.IntegerField(
        label=_("Prompts of each domain"), min_value=1, max_value=4096, required=False,
        initial=default(OperateSpec, "prompts_per_domain"),
        help_text=_("From the logs, to learn from and to measure on. Twice as many take twice as long."),
    )  # fmt: skip
    prompt_tokens = forms.IntegerField(
        label=_("Tokens of a prompt, at most"), min_value=8, max_value=4096, required=False,
        initial=default(OperateSpec, "prompt_tokens"),
    )  # fmt: skip
    OPTIONS = ("prompts_per_domain", "prompt_tokens")
    COMMON = ("name", "model_version", "corpus", *OPTIONS)

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, **more)
        versions = [
            version
            for version in versions_of(team).filter(state=VersionState.READY)[:MAX_CHOICES]
            if self.starts_dense is None or version.is_dense == self.starts_dense
        ]
        self.versions = [(version.pk, version_words(version)) for version in versions]
        self.fields["model_version"].choices = self.versions  # type: ignore[attr-defined]
        chosen = {str(version.pk): version for version in versions}.get(
            str(self.initial.get("model_version", "")), versions[0] if versions else None
        )
        if chosen is not None:
            self.suit(chosen)
        logs = [(corpus.pk, corpus.name) for corpus in corpora_of(team).exclude(train=None)[:MAX_CHOICES]]
        self.fields["corpus"].required = self.kind in LEARNING
        # The newest logs, for a change that is not measured may have broken anything.
        self.fields["corpus"].initial = logs[0][0] if logs else None
        self.fields["corpus"].choices = logs if self.kind in LEARNING else [("", _("none")), *logs]  # type: ignore[attr-defined]

    def suit(self, version: ModelVersion) -> None:
        """Set what hangs on the version: numbers that no specification can have as a default."""

    @property
    def own_fields(self) -> list[Any]:
        """The fields of this operation, bound."""
        return [self[name] for name in self.fields if name not in self.COMMON]

    def operation(self) -> dict[str, Any]:
        """The operation that the form asks for; what is left empty is the specification's default."""
        own = {name: self.cleaned_data[name] for name in self.fields if name not in self.COMMON}
        return {"kind": self.kind, **{name: value for name, value in own.items() if value not in (None, "")}}

    def spec(self) -> dict[str, Any]:
        """The specification of the job."""
        data = self.cleaned_data
        return {
            "model_version": data["model_version"],
            "corpus": data["corpus"],
            "operation": self.operation(),
            "options": {name: data[name] for name in self.OPTIONS if data[name] is not None},
        }


class GrowForm(OperateForm):
    """Double the experts."""

    kind, title = "grow", OPERATIONS["grow"]
    words = _(
        "Double the experts, once or several times. What the model says does not change at that moment."
    )
    num_experts = forms.IntegerField(
        label=_("Experts a layer, then"), min_value=2, max_value=1024,
        help_text=_("Twice as many as now, or four times, eight times …"),
    )  # fmt: skip
    method = forms.ChoiceField(
        label=_("How"),
        choices=[
            ("twin", _("twins: each token sees one of two")),
            ("double_k", _("both twins, top_k doubles")),
            ("split", _("each expert cut in two, top_k doubles")),
        ],
        initial=default(GrowSpec, "method"),
    )

    def suit(self, version: ModelVersion) -> None:
        """Doubled once."""
        self.fields["num_experts"].initial = min(1024, 2 * version.num_experts)


class AddForm(OperateForm):
    """Add one expert."""

    kind, title = "add", OPERATIONS["add"]
    words = _("One more expert in each layer, a twin of another. All others stay bit for bit.")
    source = _expert(_("Twin of expert"), initial=default(AddExpertSpec, "source"))


class RemoveForm(OperateForm):
    """Remove one expert."""

    kind, title = "remove", OPERATIONS["remove"]
    words = _("One expert less in each layer. What every domain loses is measured before it is done.")
    expert = _expert(
        _("Expert"),
        required=False,
        initial=default(RemoveExpertSpec, "expert"),
        help_text=_("Left empty: the one with the least load, by layer."),
    )
    max_loss_increase = forms.FloatField(
        label=_("Refuse when a domain's loss rises by more"), min_value=0, max_value=1000, required=False,
        help_text=_("In nats a token."),
    )  # fmt: skip


class MergeForm(OperateForm):
    """Merge two experts."""

    kind, title = "merge", OPERATIONS["merge"]
    words = _("Two experts of each layer become one, their neurons aligned first.")
    first = _expert(_("Expert that stays"), initial=0)
    second = _expert(_("Expert that goes into it"), initial=1)
    weights = forms.ChoiceField(
        label=_("Weighed"),
        choices=[("usage", _("by how much each is used")), ("even", _("half and half"))],
        initial=default(MergeExpertsSpec, "weights"),
    )
    max_loss_increase = forms.FloatField(
        label=_("Refuse when a domain's loss rises by more"), min_value=0, max_value=1000, required=False,
        help_text=_("In nats a token."),
    )  # fmt: skip

    def operation(self) -> dict[str, Any]:
        """Usage is measured on logs; without logs it is half and half."""
        wanted = super().operation()
        return wanted if self.cleaned_data["corpus"] else {**wanted, "weights": "even"}


class SpecialiseForm(OperateForm):
    """Clone an expert and teach the clone."""

    kind, title = "specialise_clone", OPERATIONS["specialise_clone"]
    words = _("One expert is cloned, and only the clone learns, from the logs of one domain.")
    source = _expert(_("Clone of expert"), initial=default(SpecialiseCloneSpec, "source"))
    domain = forms.SlugField(label=_("Domain"), max_length=63, help_text=_("Its code, as in the logs."))
    steps = forms.IntegerField(
        label=_("Steps"), min_value=0, max_value=1_000_000, initial=default(SpecialiseCloneSpec, "steps")
    )


# Of what is not an expert: left in 16 bits, unless it is asked for.
TRUNK_BITS = [("", "16"), (8, "8"), (4, "4")]


class QuantiseForm(OperateForm):
    """Pack the experts."""

    kind, title = "quantise", OPERATIONS["quantise"]
    words = _("The experts' weights in 8 or 4 bits, and where wanted those of attention and the output map.")
    bits = forms.TypedChoiceField(
        label=_("Bits"), coerce=int, choices=[(4, "4"), (8, "8")], initial=default(ExpertQuantSpec, "bits")
    )
    group_size = forms.TypedChoiceField(
        label=_("Weights that share a scale"), coerce=int, choices=[(size, str(size)) for size in (32, 64, 128)],
        initial=default(ExpertQuantSpec, "group_size"),
    )  # fmt: skip
    symmetric = forms.BooleanField(
        label=_("Symmetric"),
        required=False,
        initial=default(ExpertQuantSpec, "symmetric"),
        help_text=_("Without a zero point: smaller, a little less exact."),
    )

    attention = forms.TypedChoiceField(
        label=_("Attention, bits"), coerce=int, choices=TRUNK_BITS, empty_value=None, required=False
    )
    head = forms.TypedChoiceField(
        label=_("Output map, bits"), coerce=int, choices=TRUNK_BITS, empty_value=None, required=False,
        help_text=_("Beside experts in 4 bits, 8 cost the least for what they save."),
    )  # fmt: skip

    def operation(self) -> dict[str, Any]:
        """How each part is packed, all in groups of one size."""
        data = self.cleaned_data
        shared = {name: data[name] for name in ("group_size", "symmetric")}
        parts = {"quantisation": data["bits"], "attention": data["attention"], "head": data["head"]}
        packings = {name: {"bits": bits, **shared} for name, bits in parts.items() if bits is not None}
        return {"kind": self.kind, **packings}


class DistilForm(OperateForm):
    """Make a small mixture of a large one."""

    kind, title = "distil", OPERATIONS["distil"]
    words = _("Experts that answer alike are merged, then the small mixture learns from the large one.")
    num_experts = forms.IntegerField(label=_("Experts a layer, then"), min_value=1, max_value=1024)
    top_k = forms.IntegerField(
        label="top_k", min_value=1, max_value=64, required=False, initial=default(DistilSpec, "top_k"),
        help_text=_("Left empty: as now."),
    )  # fmt: skip
    moe_intermediate_size = forms.IntegerField(
        label=_("Neurons of each expert, then"), min_value=1, max_value=1 << 18, required=False,
        help_text=_("Left empty: as many as now."),
    )  # fmt: skip
    steps = forms.IntegerField(
        label=_("Steps"), min_value=0, max_value=1_000_000, initial=default(DistilSpec, "steps")
    )

    def suit(self, version: ModelVersion) -> None:
        """Half as many experts."""
        self.fields["num_experts"].initial = max(1, version.num_experts // 2)


class ComposeForm(OperateForm):
    """Put several models together."""

    kind, title = "compose", OPERATIONS["compose"]
    words = _(
        "Several models of one shape become one mixture, with gates fitted on the logs of their domains."
    )
    starts_dense = None
    others = forms.TypedMultipleChoiceField(label=_("More versions"), coerce=int)
    domains = forms.CharField(
        label=_("Domain of each, in their order"),
        max_length=2000,
        help_text=_("Codes with commas between them."),
    )
    top_k = forms.IntegerField(
        label="top_k", min_value=1, max_value=64, required=False, initial=default(ComposeSpec, "top_k"),
        help_text=_("Left empty: 1 for dense versions, their own for mixtures."),
    )  # fmt: skip

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, team=team, **more)
        self.fields["others"].choices = self.versions  # type: ignore[attr-defined]

    def operation(self) -> dict[str, Any]:
        """The versions are named beside the operation."""
        data = self.cleaned_data
        codes = [code.strip() for code in data["domains"].split(",") if code.strip()]
        top_k = {} if data["top_k"] is None else {"top_k": data["top_k"]}
        return {"kind": self.kind, "domains": codes, **top_k}

    def spec(self) -> dict[str, Any]:
        """With all versions."""
        return {**super().spec(), "others": self.cleaned_data["others"]}


class UpcycleForm(OperateForm):
    """Lay experts over a dense version."""

    kind, title = "upcycle", OPERATIONS["upcycle"]
    words = _("A dense version becomes a mixture that says the same, ready to be tuned.")
    starts_dense = True
    layout = forms.TypedChoiceField(label=_("Expert layout"), coerce=int)

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, team=team, **more)
        self.layouts = {layout.pk: layout for layout in layouts_of(team)[:MAX_CHOICES]}
        self.fields["layout"].choices = [(pk, str(layout)) for pk, layout in self.layouts.items()]  # type: ignore[attr-defined]

    def operation(self) -> dict[str, Any]:
        """The layout as it is now."""
        layout = self.layouts[self.cleaned_data["layout"]].layout_spec()
        return {"kind": self.kind, "layout": layout.model_dump(mode="json")}


FORMS: dict[str, type[OperateForm]] = {
    form.kind: form
    for form in (
        GrowForm, AddForm, RemoveForm, MergeForm, SpecialiseForm, QuantiseForm, DistilForm, ComposeForm, UpcycleForm,
    )
}  # fmt: skip
