"""What a layout, its gate or a map of domains cannot be."""

from __future__ import annotations

from collections.abc import Mapping

LAYOUTS: Mapping[str, str] = {
    "top_k_over_experts": "top_k ({top_k}) must not exceed num_experts ({num_experts})",
    "groups_uneven": "num_experts ({num_experts}) must be divisible by num_groups ({num_groups})",
    "tree_uneven": "num_experts ({num_experts}) must be divisible by the {num_groups} groups of all domains",
    "topk_group_over": "topk_group ({topk_group}) must not exceed num_groups ({num_groups})",
    "top_k_over_groups": "top_k ({top_k}) must not exceed the {experts} experts of {groups} groups",
    "one_expert_a_token": "gate '{gate}' sends a token to one expert; top_k is {top_k}",
    "two_experts_a_token": "gate '{gate}' sends a token to two experts; top_k is {top_k}",
    "even_by_itself": "gate '{gate}' fills its experts evenly by itself; capacity must be null",
    "thresholds_are_kept": (
        "gate '{gate}' stores the thresholds that it finds as its selection_bias; leave selection_bias at true, or "
        "choose gate 'softmax_topk'"
    ),
    "kinds_counted": "expert_kinds names {kinds} experts; num_experts is {num_experts}",
    "kinds_without_feed_forward": "expert_kinds must hold at least one swiglu or mlp expert",
    "kinds_have_widths": "expert_kinds has the widths; leave moe_intermediate_size out",
    "two_temperatures": "give temperature or temperature_schedule, not both",
    "constant_temperature": "a constant temperature has start ({start}) equal to end ({end})",
    "shared_width_alone": "shared_intermediate_size must be null when num_shared_experts is 0",
    "granularity_divides": "{name} ({value}) must be divisible by granularity ({granularity})",
    "granularity_sets_widths": (
        "granularity sets the experts' width; leave the widths and the shared expert out"
    ),
    "layer_key": 'a key of prior_layers is the number of a layer, as "0" or "17", from 0 to 511, not {key}',
    "floor_without_shares": (
        "gate '{gate}' chooses by a table, so that a floor means nothing to it; set prior_mode to mask or none"
    ),
    "expert_repeated": "{owner}: an expert is named twice in {experts}",
    "layers_unordered": "moe_layers must be ascending and without repeats",
    "layer_outside": "layer {layer} is outside the model's {num_layers} layers; choose layers from 0 to {last}",
    "already_a_mixture": "the model is already a mixture ({family}); a layout needs a dense one",
    "needs_a_layout": "the model is dense; name a layout to lay over it",
    "expert_outside": (
        "domain {domain} names expert {expert}, but the layout has {num_experts} experts (0 to {last})"
    ),
    "general_expert_outside": "general expert {expert} is outside the layout's {num_experts} experts",
    "domains_repeated": "domain codes must be unique; repeated: {codes}",
    "hash_slices": (
        "gate 'hash' deals words to single experts, and of granularity {granularity} only all slices of a copy together "
        "are a feed-forward; choose granularity 1, or another gate"
    ),
    "top_k_over_twins": "top_k ({top_k}) must not exceed the {seen} experts that a token sees",
    "top_k_over_twins_of_groups": (
        "top_k ({top_k}) must not exceed the {seen} experts that a token sees in {groups} groups, "
        "for it sees one of each set of twins"
    ),
}
