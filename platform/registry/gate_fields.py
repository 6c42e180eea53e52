"""What a gate is asked beside its kind: capacity, temperature, temperature schedule. Layouts and tuning runs share them."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from common.spec_fields import Ask, Part
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.temperature import TemperatureSpec

OVERFLOW = Ask(
    _("When an expert is full"),
    _("What a token gets for an expert that has no room."),
    {
        "drop": _("nothing from it"),
        "residual": _("its own state, with that expert's weight"),
        "next_best": _("its next best expert with room"),
        "learned": _("the next best, after a learnt correction"),
    },
)
CAPACITY_ASKS = {
    "overflow": OVERFLOW,
    "train_factor": Ask(_("Room while training, times the fair share"), _("Empty: no limit.")),
    "eval_factor": Ask(_("Room when serving, times the fair share"), _("Empty: no limit.")),
    "priority": Ask(
        _("Who goes first"), words={"position": _("earlier tokens"), "weight": _("tokens with more weight")}
    ),
    "min_tokens": Ask(_("Room for so many tokens at least")),
}
SCHEDULE_ASKS = {
    "kind": Ask(
        _("Temperature while the gate learns"),
        _("High at first, so that many experts are tried; lower later, so that the choice is firm."),
        {
            "constant": _("held at one value"),
            "linear": _("moves evenly"),
            "cosine": _("moves slowly at both ends"),
            "exponential": _("moves by equal ratios"),
        },
    ),
    "start": Ask(_("From")),
    "end": Ask(_("To")),
    "num_steps": Ask(_("Over steps")),
    "step": Ask(_("Begins at step"), _("Where training stands; also the temperature that is served.")),
}
LAYOUT_CAPACITY = Part(
    CapacitySpec, CAPACITY_ASKS, prefix="capacity-", lead="overflow", none=_("never: no limit")
)
LAYOUT_SCHEDULE = Part(
    TemperatureSpec, SCHEDULE_ASKS, prefix="schedule-", lead="kind", none=_("stays as it is")
)
# The room when serving is the model's own: a tuning run saves none.
TUNE_CAPACITY = Part(
    CapacitySpec,
    {name: ask for name, ask in CAPACITY_ASKS.items() if name != "eval_factor"},
    prefix="capacity-",
    lead="overflow",
    none=_("as the model says"),
)
TUNE_SCHEDULE = Part(
    TemperatureSpec, SCHEDULE_ASKS, prefix="schedule-", lead="kind", none=_("as the model says")
)
