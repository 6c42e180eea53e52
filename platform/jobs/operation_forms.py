"""One form for each operation on experts, with everything that its specification can be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from common.layers import layers_text, parse_layers
from common.spec_fields import Ask
from jobs.chosen import ChosenField
from jobs.forms import MAX_CHOICES
from jobs.learning_forms import DistilForm, SpecialiseForm, WakeForm
from jobs.measure_form import MeasureForm
from jobs.operation_form import LOSS, PER_GROUP, SEED, TOGETHER, OfOneExpertForm, OperateForm, SingleForm
from jobs.quantise_form import QuantiseForm
from layouts.selectors import layouts_of
from moe_core.spec.demands import check_alone, check_growth
from moe_core.spec.fewer import places_to_go
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.model import MoeSpec
from moe_core.spec.operations import (
    AddExpertSpec,
    ComposeSpec,
    DequantiseSpec,
    GrowSpec,
    MergeExpertsSpec,
    ReleaseTwinsSpec,
    RemoveExpertSpec,
    UpcycleSpec,
)
from registry.models import ModelVersion
from registry.operated import OPERATIONS


class GrowForm(OperateForm):
    """Double the experts."""

    kind, title, schema = "grow", OPERATIONS["grow"], GrowSpec
    words = _(
        "Double the experts, once or several times. What the model says does not change at that moment."
    )
    asks = {
        "num_experts": Ask(
            _("Experts a layer, then"), _("Twice as many as now, or four times, eight times …")
        ),
        "method": Ask(
            _("How"),
            words={
                "twin": _("twins: each token sees one of two"),
                "double_k": _("both twins, top-k doubles"),
                "split": _("each expert cut in two, top-k doubles"),
            },
        ),
    }

    @classmethod
    def check_gate(cls, moe: MoeSpec) -> None:
        """Groups grow as they are."""
        check_alone(moe, per_group=True)
        check_growth(moe, "twin")

    def suit(self, version: ModelVersion) -> None:
        """Doubled once."""
        self.fields["num_experts"].initial = min(1024, 2 * version.num_experts)


class ReleaseForm(OperateForm):
    """Give the choice between twins to the gate."""

    kind, title, schema = "release_twins", OPERATIONS["release_twins"], ReleaseTwinsSpec
    words = _(
        "After growth by twins a hash decides which twin a token sees. Released, the gate does, and twins can be grown, "
        "taken away and tuned like any other experts."
    )
    lacking = _("It needs a version with twins; grow one by twins first.")
    asks = {
        "hold": Ask(
            _("Hold of the hash"),
            _(
                "Added to the logit of the twin that the hash picks. 0: the gate alone chooses. Empty: the hash alone."
            ),
        )
    }

    @classmethod
    def fits(cls, version: ModelVersion) -> bool:
        """Those with twins."""
        return bool((version.spec.get("moe") or {}).get("twins"))


class AddForm(SingleForm):
    """Add one expert."""

    kind, title, schema = "add", OPERATIONS["add"], AddExpertSpec
    words = _("One more expert in each layer, a twin of another. All others stay bit for bit.")
    asks = {"source": Ask(_("Twin of expert"))}
    more = {"per_group": PER_GROUP}


class FewerForm(SingleForm):
    """An operation after which there is one expert less."""

    previews_first = True

    @classmethod
    def check_gate(cls, moe: MoeSpec) -> None:
        """Gates that have enough experts without one."""
        super().check_gate(moe)
        places_to_go(moe, per_group=False)


class RemoveForm(FewerForm, OfOneExpertForm):
    """Remove one expert."""

    kind, title, schema = "remove", OPERATIONS["remove"], RemoveExpertSpec
    words = _("One expert less in each layer. What every domain loses is measured before it is done.")
    asks = {"max_loss_increase": LOSS}
    more = {"together": TOGETHER, "per_group": PER_GROUP}


class MergeForm(FewerForm):
    """Merge two experts."""

    kind, title, schema = "merge", OPERATIONS["merge"], MergeExpertsSpec
    words = _("Two experts of each layer become one, their neurons aligned first.")
    asks = {
        "weights": Ask(
            _("Weighed"), words={"usage": _("by how much each is used"), "even": _("half and half")}
        ),
        "max_loss_increase": LOSS,
    }
    more = {
        "together": Ask(
            _("Experts merged at once"),
            _(
                "As many as share a gate row: 2 for the halves of experts cut in two, each with a half of the other."
            ),
        ),
        "per_group": PER_GROUP,
    }
    first = ChosenField(
        label=_("Expert that stays"), initial=0, help_text=_("One number, or one for each layer.")
    )
    second = ChosenField(label=_("Expert that goes into it"), initial=1)

    def operation(self) -> dict[str, Any]:
        """Usage is measured on logs; without logs it is half and half."""
        chosen = {name: self.cleaned_data[name] for name in ("first", "second")}
        wanted = {**super().operation(), **chosen}
        return wanted if self.cleaned_data["corpus"] else {**wanted, "weights": "even"}


class DequantiseForm(OperateForm):
    """Give floats back."""

    kind, title, schema = "dequantise", OPERATIONS["dequantise"], DequantiseSpec
    words = _("Packed experts become the floats that they stand for, so that they can be changed again.")
    lacking = _("It needs a version whose experts are packed; quantise one first.")

    @classmethod
    def fits(cls, version: ModelVersion) -> bool:
        """Packed ones."""
        return bool((version.spec.get("moe") or {}).get("quantisation"))


class ComposeForm(OperateForm):
    """Put several models together."""

    kind, title, schema = "compose", OPERATIONS["compose"], ComposeSpec
    words = _(
        "Several models of one shape become one mixture, with gates fitted on the logs of their domains."
    )
    lacking = _("It needs versions of one shape; import or build some.")
    asks = {
        "top_k": Ask("top-k", _("Left empty: 1 for dense versions, their own for mixtures.")),
        "gate": Ask(
            _("Gates are fitted by"),
            words={"ridge": _("ridge regression"), "logistic": _("logistic regression"), "mean": _("mean hidden states")},
        ),
    }  # fmt: skip
    more = {
        "trunk": Ask(
            _("Attention, embeddings and norms"),
            words={"first": _("of the first version"), "mean": _("the mean of all")},
        ),
        "ridge": Ask(
            _("Strength of the ridge"),
            _(
                "Relative to the mean eigenvalue of the inputs. Mean hidden states need none, except under gates whose "
                "scores are sigmoids."
            ),
        ),
    }
    others = forms.TypedMultipleChoiceField(
        label=_("More versions"), coerce=int, help_text=_("Several with Ctrl or Shift held down.")
    )
    domains = forms.CharField(
        label=_("Domain of each, in their order"),
        max_length=4200,
        help_text=_(
            "Codes with commas between them: of the version above, then of the others from top to bottom."
        ),
    )
    moe_layers = forms.CharField(
        label=_("Layers with experts"), max_length=4000, required=False,
        help_text=_("For dense versions, such as 0-29. Left empty: all; mixtures keep theirs."),
    )  # fmt: skip

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, team=team, **more)
        self.fields["others"].choices = self.versions  # type: ignore[attr-defined]
        self.name_codes("domains")

    @classmethod
    def fits(cls, version: ModelVersion) -> bool:
        """Dense ones too."""
        return version.is_dense or super().fits(version)

    def clean_moe_layers(self) -> list[int] | None:
        """Layers as numbers."""
        text = self.cleaned_data["moe_layers"].strip()
        return parse_layers(text) if text else None

    def operation(self) -> dict[str, Any]:
        """The versions are named beside the operation."""
        data = self.cleaned_data
        codes = [code for code in re.split(r"[,，、\s]+", data["domains"]) if code]
        return {**super().operation(), "domains": codes, "moe_layers": data["moe_layers"]}

    def spec(self, *, preview: bool = False) -> dict[str, Any]:
        """With all versions."""
        return {**super().spec(preview=preview), "others": self.cleaned_data["others"]}

    @classmethod
    def initial_of(cls, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Domains and layers as people write them."""
        initial = super().initial_of(spec)
        layers = initial.get("moe_layers")
        written = {
            "domains": ", ".join(initial["domains"]),
            "moe_layers": layers_text(layers) if layers else "",
        }
        return {**initial, **written, "others": spec.get("others", [])}


class UpcycleForm(OperateForm):
    """Lay experts over a dense version."""

    kind, title, schema = "upcycle", OPERATIONS["upcycle"], UpcycleSpec
    words = _("A dense version becomes a mixture that says the same, ready to be tuned.")
    lacking = _("It begins with a dense version; import one.")
    asks = {
        "granularity": Ask(_("Slices of each copy"), _("Fine-grained experts: experts per layer and top-k count slices.")),
        "noise": Ask(_("Noise on the copied experts"), _("Standard deviation, relative to each matrix's own.")),
    }  # fmt: skip
    more = {
        "router_std": Ask(_("Spread of a new router"), _("Standard deviation of its first weights.")),
        "seed": SEED,
    }
    layout = forms.TypedChoiceField(label=_("Expert layout"), coerce=int)

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, team=team, **more)
        self.layouts = {layout.pk: layout for layout in layouts_of(team)[:MAX_CHOICES]}
        self.fields["layout"].choices = [(pk, str(layout)) for pk, layout in self.layouts.items()]  # type: ignore[attr-defined]
        # What a browser shows chosen, so that the page can foretell it at once.
        self.fields["layout"].initial = next(iter(self.layouts), None)
        if not self.layouts:
            self.fields["layout"].help_text = _("There is none yet; draw one under Layouts first.")
        asked = self.initial.get("layout")
        if isinstance(asked, Mapping):
            self._choose(LayoutSpec.parse(asked))

    def _choose(self, asked: LayoutSpec) -> None:
        """Take the layout that is as a job had it; where none is, choosing is left to the reader."""
        alike = next((pk for pk, layout in self.layouts.items() if layout.layout_spec() == asked), "")
        self.initial = {**self.initial, "layout": alike}
        if alike == "" and self.layouts:
            field = self.fields["layout"]
            field.choices = [("", _("choose one")), *field.choices]  # type: ignore[attr-defined]
            field.help_text = _("No layout is now as that job had it: it was changed or removed.")

    @classmethod
    def fits(cls, version: ModelVersion) -> bool:
        """Dense ones."""
        return version.is_dense

    def operation(self) -> dict[str, Any]:
        """The layout as it is now."""
        layout = self.layouts[self.cleaned_data["layout"]].layout_spec()
        return {**super().operation(), "layout": layout.model_dump(mode="json")}


FORMS: dict[str, type[OperateForm]] = {
    form.kind: form
    for form in (
        GrowForm, ReleaseForm, AddForm, RemoveForm, MergeForm, SpecialiseForm, WakeForm, QuantiseForm, DequantiseForm,
        DistilForm, ComposeForm, UpcycleForm, MeasureForm,
    )
}  # fmt: skip
