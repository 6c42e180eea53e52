"""Everything that a tuning run can be told, in groups as its page shows them; bounds and defaults are TuneSpec's."""

from __future__ import annotations

from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from common.spec_fields import Ask, Part, default_of
from moe_core.spec import TuneSpec
from registry.gate_fields import TUNE_CAPACITY, TUNE_SCHEDULE

PRECISION = {
    "auto": _("as stored, or float32 where that is quicker"),
    "float32": "float32",
    "bfloat16": "bfloat16",
}
DTYPE = Ask(
    _("Precision"),
    _("bfloat16 rounds every weight of a version that is stored in float32, those that do not change too."),
    words=PRECISION,
)
ESSENTIALS = Part(
    TuneSpec,
    {
        "specialise_steps": Ask(
            _("Steps for each expert"), _("Each mapped expert learns from the logs of its domains alone.")
        ),
        "route_steps": Ask(_("Steps for the router"), _("Only the gates change, with balance on.")),
        "tokens_per_batch": Ask(_("Tokens a batch")),
        "window_tokens": Ask(_("Tokens a window")),
        "held_out_windows": Ask(_("Held-out windows for each domain")),
        "control": Ask(
            _("Run the control with a deranged map"),
            _("It shows whether the gain comes from the map. It takes about a quarter of the time."),
        ),
    },
)
FINER = Part(
    TuneSpec,
    {
        "specialise_learning_rate": Ask(_("Learning rate, experts")),
        "route_learning_rate": Ask(_("Learning rate, router")),
        "dtype": DTYPE,
        "num_threads": Ask(_("Threads")),
        "checkpoint_every_steps": Ask(
            _("Checkpoint after steps"),
            format_lazy(
                _("And when at least {seconds} s have passed since the last one; the end of each stage is always kept."),
                seconds=f"{default_of(TuneSpec, 'checkpoint_min_seconds'):g}",
            ),
        ),
        "seed": Ask(_("Seed")),
    },
)  # fmt: skip
TEACHING = Part(
    TuneSpec,
    {
        "explore": Ask(
            _("Gates explore while they learn"),
            _("Learnt noise, jitter, a random second expert, evened loads, limited room. Off: they choose as when serving."),
        ),
        "gate_noise": Ask(
            _("Noise on all scores"), _("Standard deviation at the first step; it falls to 0 at the last. 0 for none.")
        ),
        "balance_bias_rate": Ask(
            _("Rate of the balance bias"),
            _("How far the bias that picks experts moves against their load after each step; the gate must have one."),
        ),
        "balance_form": Ask(
            _("The balance loss goes by the load of"),
            _("How much it weighs is said by the domain map's policy."),
            words={
                "running": _("the last batches"),
                "global": _("the whole batch"),
                "switch": _("each thread's part of the batch"),
                "sequence": _("each window by itself"),
            },
        ),
        "importance_weight": Ask(
            _("Weight of even importance"), _("Of the squared variation of the experts' summed weights. 0 for none.")
        ),
        "gate_loss_weight": Ask(
            _("Weight of the gate's own losses"), _("Of gates that compute some, as the noisy one's smooth load.")
        ),
        "twin_hold": Ask(
            _("Hold on twins at first"),
            _(
                "Of a version with twins: it falls to 0 over the router's steps, and then the gate alone chooses. "
                "Empty: as the version says."
            ),
        ),
        "route_clip_norm": Ask(
            _("Clip each gate's gradient at norm"), _("Of every gate by itself. Empty: as the gradient of the rest.")
        ),
    },
)  # fmt: skip
DEEP = Part(
    TuneSpec,
    {
        "clip_norm": Ask(_("Clip gradients at norm")),
        "weight_decay": Ask(_("Weight decay"), _("Of experts, and of gates while they learn. 0 for none.")),
        "lm_weight": Ask(_("Weight of the language loss"), _("Beside labels and balance, while the router learns.")),
        "upcycle_noise": Ask(
            _("Noise on the copied experts"), _("Standard deviation, relative to each matrix's own.")
        ),
        "router_std": Ask(_("Spread of a new router"), _("Standard deviation of its first weights.")),
        "device": Ask(
            _("Device"), words={"auto": _("the GPU where there is one"), "cpu": "CPU", "cuda": "GPU (CUDA)"}
        ),
        "checkpoint_min_seconds": Ask(_("Seconds between two checkpoints, at least")),
    },
)  # fmt: skip
PARTS = {"capacity": TUNE_CAPACITY, "temperature_schedule": TUNE_SCHEDULE}
PLAIN = (ESSENTIALS, FINER, TEACHING, DEEP)
# What the rows of the team say, not these fields.
OF_ROWS = ("layout", "routing")
