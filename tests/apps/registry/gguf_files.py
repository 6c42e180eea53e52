"""Small GGUF files, as llama-gguf-split writes and joins them: the keys of a part stand after the vocabulary."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_gguf(path: Path, *, number: int | None = None, count: int | None = None) -> bytes:
    """Write a file with a vocabulary, a tensor and the keys of a part that are given; return its bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token-{at}" for at in range(700)])
    writer.add_array("tokenizer.ggml.scores", [float(at) for at in range(700)])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("general.description", "x" * 5000)
    if number is not None:
        writer.add_uint16("split.no", number)
    if count is not None:
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", 1)
    writer.add_tensor("output.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()
