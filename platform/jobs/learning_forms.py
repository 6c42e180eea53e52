"""The forms of operations in which something learns."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _

from common.spec_fields import Ask
from jobs.operation_form import SEED, OfOneExpertForm, SingleForm
from moe_core.spec.demands import check_idle
from moe_core.spec.model import MoeSpec
from moe_core.spec.operations import DistilSpec, SpecialiseCloneSpec, WakeExpertSpec
from registry.models import ModelVersion
from registry.operated import OPERATIONS


class SpecialiseForm(SingleForm):
    """Clone an expert and teach the clone."""

    kind, title, schema = "specialise_clone", OPERATIONS["specialise_clone"], SpecialiseCloneSpec
    words = _("One expert is cloned, and only the clone learns, from the logs of one domain.")
    asks = {
        "source": Ask(_("Clone of expert")),
        "domain": Ask(_("Domain"), _("Its code, as in the logs.")),
        "steps": Ask(_("Steps")),
    }
    more = {
        "learning_rate": Ask(_("Learning rate")),
        "batch_prompts": Ask(_("Prompts a batch")),
        "gate_weight": Ask(
            _("Weight of the gate's loss"), _("It sends the domain's tokens to the clone, all others to its source.")
        ),
        "seed": SEED,
    }  # fmt: skip

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.name_codes("domain")


class WakeForm(OfOneExpertForm):
    """Train an expert that hardly anything reaches."""

    kind, title, schema = "wake_expert", OPERATIONS["wake_expert"], WakeExpertSpec
    words = _(
        "One expert of each layer that hardly anything reaches learns from the tokens that were nearest to it; all else "
        "stays bit for bit."
    )
    asks = {
        "steps": Ask(_("Steps")),
        "share": Ask(_("Tokens drawn to it, over its fair share")),
    }
    more = {
        "learning_rate": Ask(_("Learning rate")),
        "batch_prompts": Ask(_("Prompts a batch")),
        "gate_weight": Ask(
            _("Weight of the gate's loss"), _("It draws the nearest tokens and holds the others off.")
        ),
        "seed": SEED,
    }

    @classmethod
    def check_gate(cls, moe: MoeSpec) -> None:
        """Gates under which an expert may be idle."""
        check_idle(moe)


class DistilForm(SingleForm):
    """Make a small mixture of a large one."""

    kind, title, schema = "distil", OPERATIONS["distil"], DistilSpec
    words = _("Experts that answer alike are merged, then the small mixture learns from the large one.")
    asks = {
        "num_experts": Ask(_("Experts a layer, then")),
        "top_k": Ask("top-k", _("Left empty: as now.")),
        "moe_intermediate_size": Ask(_("Neurons of each expert, then"), _("Left empty: as many as now.")),
        "num_hidden_layers": Ask(
            _("Layers, then"), _("Those that change least are left out. Left empty: as many as now.")
        ),
        "steps": Ask(_("Steps")),
    }
    more = {
        "learning_rate": Ask(_("Learning rate")),
        "router_learning_rate": Ask(_("Learning rate, router"), _("Left empty: as the rest.")),
        "batch_prompts": Ask(_("Prompts a batch")),
        "temperature": Ask(_("Temperature of the teacher"), _("Above 1 its second choices count for more.")),
        "logit_weight": Ask(_("Weight of the teacher's words")),
        "router_weight": Ask(_("Weight of the teacher's routing")),
        "label_weight": Ask(_("Weight of the text itself")),
        "clip_norm": Ask(_("Clip gradients at norm")),
        "router_clip_norm": Ask(_("Clip each gate's gradient at norm")),
        "seed": SEED,
    }

    def suit(self, version: ModelVersion) -> None:
        """Half as many experts."""
        self.fields["num_experts"].initial = max(1, version.num_experts // 2)
