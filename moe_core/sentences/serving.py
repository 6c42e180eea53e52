"""What an engine cannot load or take."""

from __future__ import annotations

from collections.abc import Mapping

SERVING: Mapping[str, str] = {
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
        "weights '{weights}' are computed in bfloat16 with all experts in memory; leave dtype, resident_experts and "
        "device_experts out, or give weights 'stored'"
    ),
    "guesses_in_company": (
        "ngram_tokens ({tokens}) are checked in one step with the token before them, and a batch_invariant engine computes "
        "each token of an answer by itself; set ngram_tokens to 0, or batch_invariant to false"
    ),
    "gate_not_served": "gate '{gate}' cannot answer token by token: {why}; serve a model with another gate",
    "hangs_on_later_tokens": "whether an expert takes a token hangs on later tokens",
    "slots_mix_later_tokens": "its slots mix later tokens into earlier ones",
    "setting_without_experts": (
        "{setting} is about experts, and this model has none; set it to {off}, or leave it out"
    ),
    "residency_without_experts": "{setting} is set, but the model has no experts; leave it out",
    "residency_of_kinds": (
        "{setting} needs experts that are alike, and those of this model are of different kinds and widths "
        "(expert_kinds); leave it out"
    ),
    "residency_too_small": (
        "{setting} ({resident}) must hold the {num_experts} experts that one layer may need at once"
    ),
    "mask_leaves_few": (
        "the mask leaves requests of domain '{domain}' {left} experts in a layer, and top_k is {top_k}; name more experts "
        "for it or general ones, or set prior_mode to bias"
    ),
    "mask_leaves_twins": (
        "the mask leaves requests of domain '{domain}' {left} experts in a layer, of which a token sees {seen}, for it sees "
        "one of each set of twins, and top_k is {top_k}; name experts that are not twins of one another, or set prior_mode "
        "to bias"
    ),
    "prompt_too_long": "the prompt has {tokens} tokens; this deployment takes at most {most}",
    "busy": "{waiting} requests wait already; at most {most} may: try again",
    "wrong_hash": ("{path}: sha256 is {actual}, expected {expected}; fetch the file again or import it anew"),
}
