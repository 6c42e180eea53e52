"""The gates as the console offers them: a name, what it does in one sentence, whose idea it is, its own fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from django.utils.translation import gettext_lazy as _

from common.spec_fields import Ask, Part
from moe_core.spec.gate import Gate, GateSpec

# The schemas by kind, in the order of the specification.
SCHEMAS: dict[str, type[Gate]] = {
    one.model_fields["kind"].default: one for one in get_args(get_args(GateSpec)[0])
}
BIASES = {
    "selection_bias": Ask(
        _("A bias that picks experts"),
        _("Counts for the choice, not for the weight; loss-free balancing moves it."),
    ),
    "logit_bias": Ask(_("A bias on the logits"), _("Learnt; it counts for choice and weight.")),
}


@dataclass(frozen=True, slots=True)
class GateWords:
    """One gate as a page shows it."""

    title: Any
    # What it does, in one sentence.
    sentence: Any
    # As docs/reference/routers.md has it.
    source: str
    asks: dict[str, Ask] = field(default_factory=dict)
    # Deep fields, behind a disclosure.
    more: dict[str, Ask] = field(default_factory=lambda: dict(BIASES))
    # What has one value with this gate and is not asked.
    fixed: dict[str, Any] = field(default_factory=dict)


GATES: dict[str, GateWords] = {
    "softmax_topk": GateWords(
        _("Softmax, the k best"),
        _("Each token goes to the k experts with the highest probability; the usual choice."),
        "Shazeer 2017; Mixtral; gpt-oss",
        {
            "order": Ask(
                _("Softmax"),
                words={"before": _("over all experts, then the k best"), "after": _("over the k best alone")},
            )
        },
    ),
    "sigmoid_groups": GateWords(
        _("Sigmoid, by groups"),
        _(
            "Each expert is scored by itself; the best groups are chosen first, then the k best experts in them."
        ),
        "DeepSeek-V2, V3",
        {
            "num_groups": Ask(_("Groups"), _("Of equal size.")),
            "topk_group": Ask(_("Groups that a token may choose from")),
            "scores": Ask(
                _("Score of an expert"),
                words={"sigmoid": "sigmoid", "softmax": "softmax", "sqrtsoftplus": "√softplus"},
            ),
        },
        {
            "group_score": Ask(
                _("A group is worth"),
                words={"two_best": _("its two best experts"), "best": _("its best expert")},
            ),
            "routed_scaling_factor": Ask(_("Weights are multiplied by")),
            **BIASES,
        },
    ),
    "sparsemax": GateWords(
        _("Sparsemax"),
        _(
            "As many experts as truly have a share of the probability, k at most; the rest get exactly nothing."
        ),
        "Martins & Astudillo 2016; none as a gate",
    ),
    "top_p": GateWords(
        _("Top-p, as many as needed"),
        _("The fewest experts that reach the share p together: hard tokens get more of them, k at most."),
        "Huang et al. 2024",
        {"p": Ask(_("Share p"), _("How much of the probability the chosen must reach."))},
    ),
    "switch": GateWords(
        _("Switch, one expert"),
        _(
            "Each token goes to its single best expert, weighed by its probability; the cheapest gate, top-k must be 1."
        ),
        "Fedus et al. 2021",
        {"jitter": Ask(_("Jitter while training"), _("Inputs are multiplied by 1 ± so much; 0 for none."))},
    ),
    "gshard_top2": GateWords(
        _("GShard, best and second"),
        _(
            "The best expert always, the second by chance while training, the likelier the heavier it is; top-k must be 2."
        ),
        "Lepikhin et al. 2020",
        {"random_second": Ask(_("The second by chance while training"))},
    ),
    "noisy_topk": GateWords(
        _("Noisy, the k best"),
        _(
            "Learnt noise on the scores while training lets neighbours of the best be tried; without noise when serving."
        ),
        "Shazeer 2017, appendix A",
        {
            "noise_floor": Ask(
                _("Noise at least"), _("Standard deviation that the learnt noise never falls below.")
            )
        },
    ),
    "sinkhorn": GateWords(
        _("Sinkhorn, evened scores"),
        _(
            "While training, scores are evened over tokens and experts before the choice; weights stay the gate's own."
        ),
        "Sinkhorn 1964; Clark et al. 2022",
        {"num_iterations": Ask(_("Rounds of evening"))},
    ),
    "quantile": GateWords(
        _("Quantile, fair shares"),
        _(
            "While training, each expert's threshold is set so that it gets its fair share; the thresholds found are served."
        ),
        "dual of the assignment problem (Bertsekas)",
        {"num_iterations": Ask(_("Rounds of evening"))},
        {"logit_bias": BIASES["logit_bias"]},
        # Where the thresholds are kept.
        fixed={"selection_bias": True},
    ),
    "expert_choice": GateWords(
        _("Experts choose"),
        _(
            "Every expert picks its tokens, so that all are equally busy; a token may be picked by several or by none."
        ),
        "Zhou et al. 2022",
        {"capacity_factor": Ask(_("Tokens of an expert, times its fair share"))},
        {"logit_bias": BIASES["logit_bias"]},
        # An expert's bias is the same for all tokens that it compares.
        fixed={"selection_bias": False},
    ),
    "base": GateWords(
        _("BASE, assigned evenly"),
        _(
            "In training, tokens are dealt out evenly over the experts; in serving, each takes its best. top-k must be 1."
        ),
        "Lewis et al. 2021",
        {
            "centroids": Ask(
                _("Centroids start"),
                words={"learned": _("at random"), "semantic": _("from clusters of token embeddings")},
            )
        },
    ),
    "soft": GateWords(
        _("Soft slots"),
        _(
            "Experts work on mixtures of all tokens, and each token gets back a mixture of the answers; nothing is dropped."
        ),
        "Puigcerver et al. 2023",
        {"slots_per_expert": Ask(_("Slots of an expert"))},
        {"normalise": Ask(_("Unit length for tokens and slots"), _("Without it wide models saturate."))},
    ),
    "hash": GateWords(
        _("A fixed table"),
        _("A table sends each word to its experts; nothing is learnt about where to go."),
        "Roller et al. 2021",
        {
            "choice": Ask(
                _("Table"),
                words={
                    "balanced": _("by word frequency"),
                    "random": _("at random"),
                    "clustered": _("by clusters of embeddings"),
                },
            ),
            "weights": Ask(
                _("Weights"), words={"equal": _("equal"), "learned": _("learnt, over the table's experts")}
            ),
        },
        {"seed": Ask(_("Seed"))},
    ),
    "hierarchical": GateWords(
        _("Domain, group, expert"),
        _(
            "Three choices one after the other, from domain to group to expert; the k best of all their products."
        ),
        "Jordan & Jacobs 1994",
        {
            "num_domains": Ask(_("Domains of experts")),
            "groups_per_domain": Ask(_("Groups in each domain")),
        },
        {"selection_bias": BIASES["selection_bias"]},
    ),
}
PARTS: dict[str, Part] = {
    kind: Part(
        SCHEMAS[kind],
        {**words.asks, **words.more},
        prefix=f"gate-{kind}-",
        fixed={"kind": kind, **words.fixed},
    )
    for kind, words in GATES.items()
}
