"""What is wrong with files of a model, in the reader's language."""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.translation import gettext_noop

FILES: Mapping[str, str] = {
    "gguf_part_alone": gettext_noop(
        "%(name)s is part %(part)s of %(count)s of a model. Join the parts with “llama-gguf-split --merge” and send the "
        "whole file."
    ),
    "gguf_part_missing": gettext_noop(
        "%(name)s is missing, part %(part)s of %(count)s of a model; put all parts into one folder, or join them with "
        "“llama-gguf-split --merge”."
    ),
}
