"""What operations on experts refuse, in the reader's language: the words of `moe_core.sentences` that only they say."""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.translation import gettext_noop

OPERATIONS: Mapping[str, str] = {
    "groups_too_small": gettext_noop("Groups of %(size)s experts cannot lose one each: %(why)s"),
    "too_few_left_together": gettext_noop(
        "%(num_experts)s experts cannot lose %(gone)s at once: for top-k %(top_k)s at least %(least)s must stay, so that at "
        "most %(most)s may go."
    ),
    "vocabularies_differ": gettext_noop(
        "The models have vocabularies of %(one)s and %(other)s tokens, so that the same text is not the same tokens; "
        "measure beside a model with this one's tokenizer."
    ),
    "measured_on_nothing": gettext_noop(
        "No held-out row of these logs names a domain, so that there is nothing to measure on; use logs whose rows do."
    ),
    "groups_hide_the_nearest": gettext_noop(
        "The gate “%(gate)s” chooses among %(groups)s groups before it chooses experts, so that an expert's score alone "
        "does not tell which tokens are nearest to it; use a version whose gate has one group."
    ),
    "last_expert": gettext_noop("The last expert must stay; use a version of at least two."),
    "halves_apart": gettext_noop(
        "Experts %(experts)s of layer %(layer)s share one gate row and answer differently, as the halves of one expert do, "
        "so that a token must have all of them or none. Let %(size)s go together, so that none of them is left behind."
    ),
    "halves_undecided": gettext_noop(
        "Experts %(experts)s of layer %(layer)s share one gate row and answer differently, as the halves of one expert do, "
        "and then rounding alone would choose which of them a token has. Choose other experts, or start from the version "
        "before its experts were cut."
    ),
    "halves_unlearnt": gettext_noop(
        "Experts %(experts)s of layer %(layer)s of the student share one gate row and answer differently, as the halves of "
        "one expert do, and then rounding alone would choose which of them a token has. Let the student learn for at least "
        "one step, which tells them apart."
    ),
    "not_together": gettext_noop(
        "In layer %(layer)s the gate row of expert %(expert)s is that of %(size)s in all; let %(size)s go together."
    ),
    "not_shared": gettext_noop(
        "In layer %(layer)s no other expert shares the gate row of expert %(expert)s; leave the number at 1."
    ),
    "none_together": gettext_noop(
        "In layer %(layer)s there are no %(together)s experts that share one gate row; let 1 go."
    ),
    "twins_before_halves": gettext_noop(
        "Experts go together only where there are no twins; remove the twins first, one at a time, or let 1 go."
    ),
    "group_empty": gettext_noop("No group may be empty."),
    "too_few_seen": gettext_noop(
        "Without expert %(expert)s a token would see %(seen)s experts, one of each set of twins, and it goes to %(top_k)s. "
        "Name one that has a twin."
    ),
    "twins_in_every_layer": gettext_noop(
        "Twins are the same in every layer and stay so; name one expert for all layers."
    ),
    "hash_deals_anew": gettext_noop(
        "A hash deals tokens among the twins of expert %(expert)s, and would deal them anew without it; release the twins "
        "to the gate first."
    ),
    "learning_not_finite": gettext_noop(
        "The loss became %(loss)s at step %(step)s; lower the learning rate (%(learning_rate)s)."
    ),
    "nothing_to_learn": gettext_noop(
        "Each of the %(count)s prompts has one token, and none has a next one to learn; choose logs with longer "
        "rows."
    ),
    "domain_without_prompts": gettext_noop("The domain “%(domain)s” has no prompts; there are: %(known)s."),
    "empty_prompts": gettext_noop(
        "The domain “%(domain)s” needs prompts of at least one token each; it has %(count)s."
    ),
    "no_prompts": gettext_noop("No domain has prompts; give at least one."),
    "too_few_prompts": gettext_noop("The domain “%(domain)s” has %(count)s prompts; %(least)s are needed."),
    "too_many_tokens": gettext_noop("%(tokens)s tokens with padding are too many; give at most %(most)s."),
    "token_outside": gettext_noop(
        "Token %(token)s is outside the vocabulary of %(vocab_size)s; the version has another tokenizer than its "
        "tokens were made with."
    ),
    "prompt_over_positions": gettext_noop(
        "A prompt has %(tokens)s tokens, and the version has %(positions)s positions; cut prompts to that."
    ),
    "experts_not_finite": gettext_noop(
        "%(name)s of the experts of layer %(layer)s has %(count)s weights that are not finite, and cannot be "
        "packed; start from a sound version."
    ),
    "expert_not_finite": gettext_noop(
        "%(name)s of expert %(expert)s of layer %(layer)s has %(count)s weights that are not finite, and cannot be "
        "packed; start from a sound version."
    ),
    "map_not_finite": gettext_noop(
        "%(name)s of layer %(layer)s has %(count)s weights that are not finite, and cannot be packed; start from a "
        "sound version."
    ),
    "head_not_finite": gettext_noop(
        "The output map has %(count)s weights that are not finite, and cannot be packed; start from a sound "
        "version."
    ),
    "super_groups_of_other_codes": gettext_noop(
        "A common scale for %(super_group_size)s weights is for 4 bits in symmetric groups of 32; these are %(bits)s bits "
        "in groups of %(group_size)s. Leave it out, or choose those."
    ),
    "levels_decoders": gettext_noop("Only experts of decoders are levelled; leave levelling out for an encoder–decoder."),
    "rotates_decoders": gettext_noop("Only decoders are rotated; leave rotating out for an encoder–decoder."),
    "rotates_own_head": gettext_noop(
        "Rotating needs an output map of its own, and this version's is its embedding; pack the output map too, in 8 "
        "bits say, or do not rotate."
    ),
    "rotates_no_mix": gettext_noop(
        "The gate of this version hands hidden states on by themselves (soft slots, or what passes where an expert "
        "is full), so that it cannot be rotated; do not rotate."
    ),
    "domain_loses": gettext_noop(
        "The domain “%(domain)s” would lose %(loss)s nats; at most %(most)s are allowed. Choose other experts or "
        "allow more."
    ),
    "domain_loss_not_finite": gettext_noop(
        "The loss of the domain “%(domain)s” is %(before)s before and %(after)s after, and no limit can be held against "
        "that; start from a sound version."
    ),
    "other_shape": gettext_noop(
        "The version of the domain “%(domain)s” has another shape than that of “%(first)s”; they differ in %(fields)s."
    ),
    "decoders_only": gettext_noop(
        "%(model)s is not a decoder; of the operations on experts only packing and unpacking are for "
        "encoder–decoders."
    ),
    "hash_slices": gettext_noop(
        "The gate “hash” deals words to single experts, and of granularity %(granularity)s only all slices of a "
        "copy together are a feed-forward; choose granularity 1, or another gate."
    ),
    "top_k_over_twins": gettext_noop(
        "top-k (%(top_k)s) must not exceed the %(seen)s experts that a token sees, one of each set of twins."
    ),
    "top_k_over_twins_of_groups": gettext_noop(
        "top-k (%(top_k)s) must not exceed the %(seen)s experts that a token sees in %(groups)s groups, one of "
        "each set of twins."
    ),
    "gate_not_composable": gettext_noop(
        "The gate “%(gate)s” does not score every expert for each token alone, so that no row of a domain can be added "
        "to it. Compose versions with a gate that does, such as “softmax_topk” or “sigmoid_groups”, or dense ones."
    ),
    "twins_not_composable": gettext_noop(
        "A hash has a say between twins, and would deal those of a composed version otherwise. Release the twins to the "
        "gate first."
    ),
}
