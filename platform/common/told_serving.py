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
        "memory empty, or serve the weights as they are stored."
    ),
    "guesses_in_company": gettext_noop(
        "Guessed tokens (%(tokens)s a step) are checked together, and answers that are the same to the last bit in any "
        "company are computed token by token; set guessed tokens to 0, or leave that out."
    ),
}
