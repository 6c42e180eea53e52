"""What is wrong with files of a model."""

from __future__ import annotations

from collections.abc import Mapping

FILES: Mapping[str, str] = {
    "gguf_part_alone": (
        "{name} is part {part} of {count} of a model, and its name does not tell the other parts; give all of them their "
        "names back (such as model-00001-of-00002.gguf) in one folder, or join them with llama-gguf-split --merge"
    ),
    "gguf_part_missing": (
        "{name} is missing, part {part} of {count} of a model; put all parts into one folder, or join them with "
        "llama-gguf-split --merge"
    ),
}
