"""The public face of loading and saving: whatever kind of model a directory holds, or is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from moe_core.checkpoint import store
from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.gguf import decoder_from, read_gguf
from moe_core.checkpoint.layout import CONFIG_FILE, MAX_CONFIG_BYTES
from moe_core.checkpoint.seq2seq import is_seq2seq, load_seq2seq, save_seq2seq
from moe_core.checkpoint.store import TORCH_DTYPES, DtypeName
from moe_core.errors import CheckpointError
from moe_core.model.decoder import Decoder
from moe_core.model.seq2seq import EncoderDecoder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
GGUF_WAY_OUT = (
    "moe_core.load(file) reads it, moe_core.checkpoint.gguf.import_gguf makes a model directory of it"
)


def load(
    path: Path | str,
    dtype: DtypeName | torch.dtype = "float32",
    *,
    device: torch.device | str = "cpu",
    expected_hashes: Mapping[str, str] | None = None,
) -> Decoder | EncoderDecoder:
    """Build the model of a directory, ours or one of transformers, or of one GGUF file, and fill it from the files.

    A decoder, or an encoder–decoder where config.json is of such a family. Routers are float32 whatever `dtype` is. With
    `expected_hashes` (name to sha256) every file of a directory is hashed first. Only what is on disk is read. Raises
    CheckpointError, FormatError or HashMismatch.
    """
    name, device = _dtype_name(dtype), _device(device)
    if Path(path).is_file():
        return _load_gguf(Path(path), name, expected_hashes).to(device)
    _check_directory(path)
    config = read_json_object(Path(path) / CONFIG_FILE, MAX_CONFIG_BYTES)
    read = load_seq2seq if is_seq2seq(config) else store.load
    return read(path, name, device=device, expected_hashes=expected_hashes)


def save(
    model: Decoder | EncoderDecoder,
    path: Path | str,
    *,
    dtype: DtypeName | torch.dtype | None = None,
    tokenizer_from: Path | str | None = None,
) -> Path:
    """Write a model directory: all of it or nothing. Equal weights give equal bytes.

    Raises CheckpointError when `path` holds something already or `dtype` is none, FormatError when the family cannot say
    the model.
    """
    name = None if dtype is None else _dtype_name(dtype)
    if isinstance(model, EncoderDecoder):
        return save_seq2seq(model, path, dtype=name, tokenizer_from=tokenizer_from)
    if not isinstance(model, Decoder):
        raise CheckpointError(
            f"{type(model).__name__} is no model of moe_core; save a Decoder or an EncoderDecoder"
        )
    return store.save(model, path, dtype=name, tokenizer_from=tokenizer_from)


def _load_gguf(path: Path, dtype: DtypeName, expected_hashes: Mapping[str, str] | None) -> Decoder:
    """The decoder of a GGUF file. Raises CheckpointError for a file of another kind."""
    if path.suffix != ".gguf":
        raise CheckpointError(
            f"{path.name}: is a file; name the directory that holds {CONFIG_FILE}, or a file that ends in .gguf"
        )
    if expected_hashes is not None:
        raise CheckpointError(
            f"{path.name}: expected_hashes are of a directory's files; make one with import_gguf"
        )
    with read_gguf(path) as file:
        return decoder_from(file, file.spec(), dtype)


def _check_directory(path: Path | str) -> None:
    """Raise CheckpointError, with the way out, for what is no directory or holds GGUF files only."""
    directory = Path(path)
    if not directory.is_dir():
        hint = "is the path right?"
        if HUB_ID.fullmatch(str(path)):
            hint = "if it is the name of a model on a hub, download it first: only what is on disk is read"
        raise CheckpointError(f"there is no directory {str(path)[:200]!r}; {hint}")
    found = sorted(directory.glob("*.gguf"))
    if found and not (directory / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{directory.name}: has no {CONFIG_FILE}, but the GGUF file {found[0].name}; {GGUF_WAY_OUT}"
        )


def _device(device: torch.device | str) -> torch.device:
    """A device of this machine. Raises CheckpointError for one that torch does not know or reach."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # torch raises AssertionError where it was built without a kind of device.
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"device {str(device)[:40]!r} cannot be used ({why}); 'cpu' always can"
        ) from error
    return found


def _dtype_name(dtype: object) -> DtypeName:
    """The name of a dtype that models are computed and stored in; CheckpointError with the possible ones for any other."""
    for name, known in TORCH_DTYPES.items():
        if dtype == name or dtype is known:
            return cast("DtypeName", name)
    raise CheckpointError(
        f"dtype {str(dtype)[:40]!r} is not computed here; choose {' or '.join(map(repr, TORCH_DTYPES))}. Files in float16 "
        "are read in either; experts in few bits are an operation (moe_core.operations.quantise)"
    )
