"""What an engine refuses of the settings that it is given, in the reader's language."""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.translation import gettext_noop

SERVING: Mapping[str, str] = {
    "weights_without_experts": gettext_noop(
        "%(weights)s is packed from experts in 16 bits, and this version is dense; serve its weights as they are stored."
    ),
    "weights_packed": gettext_noop(
        "%(weights)s is packed from experts in 16 bits, and this version is packed in %(bits)s bits already; serve its "
        "weights as they are stored."
    ),
    "weights_of_kinds": gettext_noop(
        "%(weights)s is packed from experts that are alike, and those of this version are of several kinds or widths; serve "
        "its weights as they are stored."
    ),
    "weights_in_bfloat16": gettext_noop(
        "%(weights)s is computed in bf16 with all experts in memory; choose the precision bf16 and leave the experts in "
        "memory and on the GPU empty, or serve the weights as they are stored."
    ),
    "guesses_in_company": gettext_noop(
        "Guessed tokens (%(tokens)s a step) are checked together, and answers that are the same to the last bit in any "
        "company are computed token by token; set guessed tokens to 0, or leave that out."
    ),
    "gate_not_served": gettext_noop(
        "The gate “%(gate)s” cannot answer token by token: %(why)s Deploy a version with another gate."
    ),
    "hangs_on_later_tokens": gettext_noop("Whether an expert takes a token hangs on later tokens."),
    "slots_mix_later_tokens": gettext_noop("Its slots mix later tokens into earlier ones."),
    "setting_without_experts": gettext_noop(
        "This version is dense: it has no experts that %(setting)s could be about; leave it empty, or send %(off)s."
    ),
    "residency_without_experts": gettext_noop(
        "This version is dense: it has no experts to keep in memory; leave their number empty (null)."
    ),
    "residency_of_kinds": gettext_noop(
        "Only experts that are alike are fetched when they are used, and those of this version are of several kinds "
        "or widths; leave their number empty (null)."
    ),
    "residency_too_small": gettext_noop(
        "A layer may need all its %(num_experts)s experts at once, and %(resident)s would be in memory; choose "
        "%(num_experts)s or more, or leave the number empty (null)."
    ),
    "mask_leaves_few": gettext_noop(
        "Requests of the domain “%(domain)s” would have %(left)s experts in a layer, and each token goes to %(top_k)s: give "
        "the domain more experts or the map general ones, or let it lean instead (bias)."
    ),
    "mask_leaves_twins": gettext_noop(
        "Requests of the domain “%(domain)s” would have %(left)s experts in a layer, of which a token sees %(seen)s, one of "
        "each set of twins, and it goes to %(top_k)s: give the domain experts that are not twins, or let it lean instead "
        "(bias)."
    ),
}
