"""The errors and log lines that people meet often: a code, its parameters, and one sentence with a place for each.

An error is stored and sent as its sentence; whoever reads it finds code and parameters again, so that a console can say it
in its reader's language. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter


class Sentences:
    """Sentences by code, each with named places such as "{top_k}"."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.templates = dict(templates)
        self._patterns = {code: _pattern(template) for code, template in self.templates.items()}

    def say(self, code: str, **values: object) -> str:
        """The sentence of a code. Raises KeyError for an unknown code or a missing value."""
        return self.templates[code].format(**values)

    def understand(self, text: str) -> tuple[str, dict[str, str]] | None:
        """The code and the values that a text was made of; None when no template fits it."""
        for code, pattern in self._patterns.items():
            if found := pattern.fullmatch(text):
                return code, found.groupdict()
        return None


def _pattern(template: str) -> re.Pattern[str]:
    parts: list[str] = []
    for words, place, _spec, _conversion in Formatter().parse(template):
        parts.append(re.escape(words))
        if place is not None:
            # A value that stands twice must be the same in both places.
            parts.append(f"(?P={place})" if f"(?P<{place}>.+?)" in parts else f"(?P<{place}>.+?)")
    return re.compile("".join(parts), re.DOTALL)


CORE = Sentences(
    {
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
        "only_exploring": "gate_noise, capacity and twin_hold are for gates that explore; leave explore at true",
        "hold_without_steps": (
            "twin_hold ({hold}) falls to 0 from the first step of the routers to the last, and route_steps is {steps}; give "
            "route_steps of 2 or more, or leave twin_hold out and release twins by hand"
        ),
        "layer_key": 'a key of prior_layers is the number of a layer, as "0" or "17", from 0 to 511, not {key}',
        "no_bias_to_move": (
            "balance_bias_rate ({rate}) moves the bias that picks experts, and gate '{gate}' has none; "
            "set selection_bias in the layout's gate, or balance_bias_rate to 0"
        ),
        "no_learned_overflow": (
            "capacity.overflow 'learned' needs the correction that a layout with that overflow gives its gates; "
            "set it in the layout, or choose drop, residual or next_best"
        ),
        "dense_has_no_experts": "the model is dense ({family}); make it a mixture first (upcycle, compose)",
        "not_packed": "the experts are not packed; save the model as it is",
        "packed_experts": (
            "the experts are packed in {bits} bits and cannot be changed; "
            "start from the model before it was quantised, and quantise last"
        ),
        "experts_differ": (
            "the experts are of different kinds and widths (expert_kinds); this operation is for experts that are alike"
        ),
        "gate_ties_experts": (
            "gate '{gate}' ties experts to one another (slots, tables or groups), so that none can be "
            "taken by itself; this operation needs a gate with one row for each expert"
        ),
        "not_doubled": "num_experts ({num_experts}) must be {old} times a power of two; the next is {next}",
        "growth_needs_softmax": (
            "gate '{gate}' does not treat copies alike; growth needs gate 'softmax_topk' or 'sigmoid_groups'"
        ),
        "growth_without_capacity": (
            "a capacity gives each copy the room of one expert, so that copies drop other tokens than the one did; "
            "growth needs a model without capacity"
        ),
        "attention_unpackable": (
            "the maps of latent attention and of gated heads cannot be packed; leave attention null"
        ),
        "weights_without_experts": (
            "weights '{weights}' are packed from experts in 16 bits, and this version has no experts; "
            "leave weights 'stored'"
        ),
        "weights_packed": (
            "weights '{weights}' are packed from experts in 16 bits, and this version is packed in {bits} bits already; "
            "leave weights 'stored'"
        ),
        "weights_of_kinds": (
            "weights '{weights}' are packed from experts that are alike, and those of this version are of different kinds "
            "and widths (expert_kinds); leave weights 'stored'"
        ),
        "weights_in_bfloat16": (
            "weights '{weights}' are computed in bfloat16 with all experts in memory; leave dtype and resident_experts out, "
            "or give weights 'stored'"
        ),
        "has_hash_twins": (
            "expert {expert} has twins already, among which a hash chooses; "
            "release them to the gate first (operation release_twins)"
        ),
        "hash_between_twins": (
            "the model has twins between which a hash chooses; release them to the gate first (operation release_twins)"
        ),
        "least_used_unknown": (
            "no expert is named; name one, or give prompts (a corpus), so that the least used one can be found"
        ),
        "loss_unmeasured": "max_loss_increase needs prompts to measure with (a corpus); give them or leave it out",
        "usage_unmeasured": (
            "how much each of the two experts is used is told by logs; name a corpus, or set weights to 'even'"
        ),
        "not_tuned": "gate '{gate}' cannot be tuned: {why}",
        "tokens_of_the_batch": (
            "whether an expert takes a token hangs on the other tokens of the batch, so what a job measures on its windows "
            "says nothing about other batches; choose a gate whose tokens choose, such as quantile for even loads"
        ),
        "slots_read_ahead": (
            "its slots mix every token of a window, later ones included, so that a language-model loss rewards reading "
            "ahead; choose a gate that sends each token by itself, such as softmax_topk"
        ),
        "kind_missing": "{field} is missing, which tells what this is; give it a value",
        "kind_unknown": "there is no {field} called '{tag}'; there are: {known}",
        "not_a_list": "this must be a list",
        "list_too_short": "this must have at least {least} entries",
        "list_too_long": "this must have at most {most} entries",
        "value_missing": "this is missing; give it a value",
        "field_unknown": "there is no such field",
        "not_null": "this must be null",
        "not_above": "this must be above {limit}",
        "not_at_least": "this must be at least {limit}",
        "not_below": "this must be below {limit}",
        "not_at_most": "this must be at most {limit}",
        "not_a_multiple": "this must be a multiple of {factor}",
        "not_finite": "this must be a finite number",
        "not_a_whole_number": "this must be a whole number",
        "not_a_number": "this must be a number",
        "not_a_truth": "this must be true or false",
        "not_a_text": "this must be text",
        "text_too_short": "this must have at least {least} characters",
        "text_too_long": "this must have at most {most} characters",
        "not_of_pattern": "this must match the pattern {pattern}",
        "not_one_of": "this must be one of these: {known}",
        "not_an_object": "this must be an object with named fields",
        "too_many_experts": "{num_experts} experts are more than the {most} that a layer may have; make fewer",
        "top_k_doubled": (
            "method '{method}' doubles top_k with the experts, from {top_k} to {doubled}, and a token has at most {most} "
            "experts; grow to at most {reach}, or with 'twin', which keeps top_k"
        ),
        "other_twins": "method '{method}' would let a token see other twins than before; grow with 'twin'",
        "other_groups": (
            "method '{method}' would let the two best of a group be one expert and its copy, and so choose other "
            "groups than before; grow with 'twin'"
        ),
        "groups_tie_experts": (
            "gate '{gate}' ties experts to one another in {groups} groups of one size, so that "
            "none comes or goes alone; use a model whose gate has one group"
        ),
        "groups_by_place": (
            "gate '{gate}' ties experts to one another in {groups} groups of one size, so that "
            "none comes or goes alone; set per_group to do the same at one place of each group"
        ),
        "no_such_place": "expert {expert} is outside the {num_experts} experts of a group",
        "floor_without_shares": (
            "gate '{gate}' chooses by a table, so that a floor means nothing to it; set prior_mode to mask or none"
        ),
        "no_twins": "the model has no twins to release; grow it with method 'twin' first",
        "unsplit": "moe_intermediate_size ({width}) must be divisible by {parts} to split the experts",
        "student_larger": "a student may not be larger than its teacher: {asked} is more than {own}",
        "twins_are_never_idle": (
            "twins share their tokens, so that none of them is idle by itself; use a model without twins"
        ),
        "none_is_idle": "all {num_experts} experts are always chosen, so that none is idle; lower top_k first",
        "layers_differ": "layers with another attention than the rest cannot be left out; keep all of them",
        "no_such_expert": "expert {expert} is outside the {num_experts} experts of a layer",
        "one_for_each_layer": (
            "{experts} experts are named for {layers} expert layers; name one for each, or one for all"
        ),
        "too_few_left": ("{num_experts} experts cannot lose one when top_k is {top_k}; lower top_k first"),
        "too_few_left_together": "{num_experts} experts cannot lose {gone} at once: {why}",
        "halves_apart": (
            "experts {experts} of layer {layer} share one gate row and answer differently, as halves of one expert do, so "
            "that a token must have all of them or none; set together to {size}, so that none of them is left behind"
        ),
        "halves_undecided": (
            "experts {experts} of layer {layer} share one gate row and answer differently, as halves of one expert do, and "
            "rounding alone would choose which of them a token has; choose other experts, or start from the model before "
            "its experts were cut"
        ),
        "not_together": (
            "in layer {layer} the gate row of expert {expert} is that of {size} in all; set together to {size}"
        ),
        "none_together": "in layer {layer} there are no {together} experts of one gate row; leave together at 1",
        "twins_before_halves": (
            "experts go together only where there are no twins; remove those first, one at a time, or leave together at 1"
        ),
        "groups_too_small": "groups of {size} experts cannot lose one each: {why}",
        "group_empty": "no group may be empty",
        "too_few_seen": (
            "without expert {expert} a token would see {seen} experts, one of each set of twins, and top_k is {top_k}; "
            "name one that has a twin, or lower top_k first"
        ),
        "twins_in_every_layer": (
            "twins are the same in every layer and stay so; name one expert for all layers"
        ),
        "hash_deals_anew": (
            "a hash deals tokens among the twins of expert {expert}, and would deal them anew without it; "
            "release the twins to the gate first (operation release_twins)"
        ),
        "merged_with_itself": "expert {expert} cannot be merged with itself; name two",
        "layers_are_kept": "mixtures keep their expert layers; leave moe_layers out",
        "gate_not_composable": (
            "gate '{gate}' does not score every expert for each token alone, so that no row of a domain can be added to it; "
            "compose mixtures with a gate that does, such as softmax_topk or sigmoid_groups, or dense models"
        ),
        "twins_not_composable": (
            "a hash has a say between twins, and would deal those of a composed model otherwise; release the twins to the "
            "gate first (operation release_twins)"
        ),
        "preview_without_logs": "a preview measures on held-out logs; name a corpus",
        "expert_repeated": "{owner}: an expert is named twice in {experts}",
        "layers_unordered": "moe_layers must be ascending and without repeats",
        "layer_outside": "layer {layer} is outside the model's {num_layers} layers; choose layers from 0 to {last}",
        "already_a_mixture": "the model is already a mixture ({family}); a layout needs a dense one",
        "needs_a_layout": "the model is dense; name a layout to lay over it",
        "no_router": "a {family} model has no router to tune; lay experts over it first",
        "expert_outside": (
            "domain {domain} names expert {expert}, but the layout has {num_experts} experts (0 to {last})"
        ),
        "general_expert_outside": "general expert {expert} is outside the layout's {num_experts} experts",
        "domains_repeated": "domain codes must be unique; repeated: {codes}",
        "no_derangement": (
            "domain number {domain} cannot be given another domain's experts: the expert sets overlap; "
            "map at least two domains to experts of their own"
        ),
        "no_window_for_expert": (
            "the training logs hold no window for expert {expert} ({domains}); "
            "upload logs of that domain or unmap it"
        ),
        "no_window_for_general": (
            "the training logs hold no window for the general experts; upload logs of that domain or unmap it"
        ),
        "no_window": "the training logs hold no window for {name}; upload logs of that domain or unmap it",
        "no_held_out_window": "the held-out logs hold no window; upload more logs so that some can be held out",
        "loss_of_expert_not_finite": "the loss of expert {expert} is {loss}",
        "loss_not_finite": "the loss is {loss}",
        "learning_not_finite": "the loss became {loss} at step {step}; lower learning_rate ({learning_rate})",
        "nothing_to_learn": (
            "each of the {count} prompts has one token, and none has a next one to learn; "
            "give prompts of at least two tokens"
        ),
        "domain_without_prompts": "domain '{domain}' has no prompts; there are: {known}",
        "empty_prompts": "domain '{domain}' needs prompts of at least one token each; it has {count}",
        "no_prompts": "no domain has prompts; give at least one",
        "too_few_prompts": "domain '{domain}' has {count} prompts; {least} are needed",
        "too_many_tokens": "{tokens} tokens with padding are too many; give at most {most}",
        "token_outside": "token {token} is outside the vocabulary of {vocab_size}; tokenize with this model's own",
        "prompt_over_positions": (
            "a prompt has {tokens} tokens, and the model has {positions} positions; cut prompts to {positions} tokens"
        ),
        "experts_not_finite": (
            "{name} of the experts of layer {layer} has {count} weights that are not finite, and cannot be packed; "
            "start from a sound copy of the model"
        ),
        "expert_not_finite": (
            "{name} of expert {expert} of layer {layer} has {count} weights that are not finite, and cannot be packed; "
            "start from a sound copy of the model"
        ),
        "map_not_finite": (
            "{name} of layer {layer} has {count} weights that are not finite, and cannot be packed; "
            "start from a sound copy of the model"
        ),
        "head_not_finite": (
            "the output map has {count} weights that are not finite, and cannot be packed; "
            "start from a sound copy of the model"
        ),
        "domain_loses": (
            "domain '{domain}' would lose {loss} nats; at most {most} are allowed. Choose other experts or raise "
            "max_loss_increase"
        ),
        "domain_loss_not_finite": (
            "the loss of domain '{domain}' is {before} before and {after} after, and no limit can be held against that; "
            "start from a sound copy of the model"
        ),
        "other_shape": "the model of domain '{domain}' has another shape than that of '{first}'",
        "decoders_only": (
            "{model} is not a decoder; of the operations on experts only quantise and dequantise are for encoder–decoders"
        ),
        "hash_slices": (
            "gate 'hash' deals words to single experts, and of granularity {granularity} only all slices of a copy together "
            "are a feed-forward; choose granularity 1, or another gate"
        ),
        "top_k_over_twins": "top_k ({top_k}) must not exceed the {seen} experts that a token sees",
        "top_k_over_twins_of_groups": (
            "top_k ({top_k}) must not exceed the {seen} experts that a token sees in {groups} groups, "
            "for it sees one of each set of twins"
        ),
        "gradient_not_finite": "the gradient of {name} is not finite",
        "stopped_at_step": (
            "stopped at step {step} of stage {stage}: {why}; no weight of that step was kept. "
            "Lower the learning rate ({rate}) or look for damaged logs"
        ),
        "prompt_too_long": "the prompt has {tokens} tokens; this deployment takes at most {most}",
        "busy": "{waiting} requests wait already; at most {most} may: try again",
        "wrong_hash": (
            "{path}: sha256 is {actual}, expected {expected}; fetch the file again or import it anew"
        ),
        "another_run": (
            "{path}: belongs to a run with other settings or inputs; resume with those, or start a new job"
        ),
    }
)
# Lines of a run's log that people read; `moe_core.training.progress` sends them with code and values.
RUN = Sentences(
    {
        "converting": "converting {name} to safetensors",
        "operation_begins": "operation {operation} begins; models: {count}",
        "prompts_taken": "prompts taken from {file}, by domain: {counts}",
        "plain_logs": "the model has no chat format; logs are read as plain paragraphs with the role in words",
        "no_domain_named": "no row of {file} names a domain; nothing is measured on it",
        "resumed": "resumed in stage {stage} after step {step}",
        "passed_over": "{checkpoint} was passed over: {why}",
        "other_environment": (
            "{checkpoint} was made with {then}, this process has {now}: results may differ in their last digits"
        ),
    }
)
