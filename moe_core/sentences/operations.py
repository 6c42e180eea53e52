"""What operations on experts refuse, of the model, the logs or one another."""

from __future__ import annotations

from collections.abc import Mapping

OPERATIONS: Mapping[str, str] = {
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
        "method '{method}' gives a token both copies of an expert, which gate '{gate}' would not choose together as it "
        "chose the one; grow by method 'twin', or a model with gate 'softmax_topk' or 'sigmoid_groups'"
    ),
    "growth_of_pickers": (
        "under gate '{gate}' experts pick their tokens, and copies would pick others than the one did; "
        "grow a model whose tokens choose"
    ),
    "growth_without_capacity": (
        "a capacity gives each copy the room of one expert, so that copies drop other tokens than the one did; "
        "growth needs a model without capacity"
    ),
    "attention_unpackable": (
        "the maps of latent attention and of gated heads cannot be packed; leave attention null"
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
    "groups_hide_the_nearest": (
        "gate '{gate}' chooses among {groups} groups before it chooses experts, so that an expert's score alone does not "
        "tell which tokens are nearest to it; use a model whose gate has one group"
    ),
    "groups_by_place": (
        "gate '{gate}' ties experts to one another in {groups} groups of one size, so that "
        "none comes or goes alone; set per_group to do the same at one place of each group"
    ),
    "no_such_place": "expert {expert} is outside the {num_experts} experts of a group",
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
    "too_few_left_together": (
        "{num_experts} experts cannot lose {gone} at once: for top_k {top_k} at least {least} must stay, so that at most "
        "{most} may go"
    ),
    "last_expert": "the last expert must stay; use a model of at least two",
    "halves_apart": (
        "experts {experts} of layer {layer} share one gate row and answer differently, as halves of one expert do, so "
        "that a token must have all of them or none; set together to {size}, so that none of them is left behind"
    ),
    "halves_undecided": (
        "experts {experts} of layer {layer} share one gate row and answer differently, as halves of one expert do, and "
        "rounding alone would choose which of them a token has; choose other experts, or start from the model before "
        "its experts were cut"
    ),
    "halves_unlearnt": (
        "experts {experts} of layer {layer} of the student share one gate row and answer differently, as halves of one "
        "expert do, and rounding alone would choose which of them a token has; let the student learn (steps of 1 or more), "
        "which tells them apart"
    ),
    "not_together": (
        "in layer {layer} the gate row of expert {expert} is that of {size} in all; set together to {size}"
    ),
    "not_shared": (
        "in layer {layer} no other expert shares the gate row of expert {expert}; leave together at 1"
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
    "twins_in_every_layer": ("twins are the same in every layer and stay so; name one expert for all layers"),
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
    "vocabularies_differ": (
        "the models have vocabularies of {one} and {other} tokens, so that the same text is not the same tokens; measure "
        "beside a model with this one's tokenizer"
    ),
    "measured_on_nothing": (
        "no held-out row of these logs names a domain, so that there is nothing to measure on; use logs whose rows do"
    ),
    "preview_without_logs": "a preview measures on held-out logs; name a corpus",
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
    "super_groups_of_other_codes": (
        "super_group_size {super_group_size} is for 4 bits in symmetric groups of 32, and these are {bits} bits in groups "
        "of {group_size}; leave it out, or choose those"
    ),
    "levels_decoders": "only experts of decoders are levelled; leave level out for an encoder–decoder",
    "rotates_decoders": "only decoders are rotated; leave rotate out for an encoder–decoder",
    "rotates_own_head": (
        "rotating needs an output map of its own, and this model's is its embedding; pack the head too, "
        "in 8 bits say, or leave rotate out"
    ),
    "rotates_no_mix": (
        "the gate of this model hands hidden states on by themselves (soft slots, or what passes where an expert is full), "
        "so that the stream cannot be rotated; leave rotate out"
    ),
    "domain_loses": (
        "domain '{domain}' would lose {loss} nats; at most {most} are allowed. Choose other experts or raise "
        "max_loss_increase"
    ),
    "domain_loss_not_finite": (
        "the loss of domain '{domain}' is {before} before and {after} after, and no limit can be held against that; "
        "start from a sound copy of the model"
    ),
    "other_shape": "the model of domain '{domain}' has another shape than that of '{first}'; they differ in {fields}",
    "decoders_only": (
        "{model} is not a decoder; of the operations on experts only quantise and dequantise are for encoder–decoders"
    ),
}
