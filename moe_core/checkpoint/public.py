"""The public face of loading and saving: whatever kind of model a directory holds, or is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from moe_core.checkpoint import store
from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.layout import CONFIG_FILE, MAX_CONFIG_BYTES
from moe_core.checkpoint.seq2seq import is_seq2seq, load_seq2seq, save_seq2seq
from moe_core.checkpoint.store import DtypeName
from moe_core.model.decoder import Decoder
from moe_core.model.seq2seq import EncoderDecoder


def load(
    path: Path | str,
    dtype: DtypeName = "float32",
    *,
    device: torch.device | str = "cpu",
    expected_hashes: Mapping[str, str] | None = None,
) -> Decoder | EncoderDecoder:
    """Build the model of a directory, ours or one of transformers, and fill it from the files.

    A decoder, or an encoder–decoder where config.json is of such a family. Routers are float32 whatever `dtype` is. With
    `expected_hashes` (name to sha256) every file is hashed first. Raises CheckpointError, FormatError or HashMismatch.
    """
    config = read_json_object(Path(path) / CONFIG_FILE, MAX_CONFIG_BYTES)
    read = load_seq2seq if is_seq2seq(config) else store.load
    return read(path, dtype, device=device, expected_hashes=expected_hashes)


def save(
    model: Decoder | EncoderDecoder,
    path: Path | str,
    *,
    dtype: DtypeName | None = None,
    tokenizer_from: Path | str | None = None,
) -> Path:
    """Write a model directory: all of it or nothing. Equal weights give equal bytes.

    Raises CheckpointError when `path` holds something already, FormatError when the family cannot say the model.
    """
    if isinstance(model, EncoderDecoder):
        return save_seq2seq(model, path, dtype=dtype, tokenizer_from=tokenizer_from)
    return store.save(model, path, dtype=dtype, tokenizer_from=tokenizer_from)
