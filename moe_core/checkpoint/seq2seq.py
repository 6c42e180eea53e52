"""Load and save encoder–decoders: directories of Hugging Face in, directories that transformers loads out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_core.checkpoint.atomic import new_directory, write_json
from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.hashes import verify_hashes
from moe_core.checkpoint.layout import CONFIG_FILE, MAX_CONFIG_BYTES
from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.store import (
    TORCH_DTYPES,
    DtypeName,
    check_slots,
    copy_tokenizer,
    fill_slots,
    write_slots,
)
from moe_core.errors import FormatError, SpecError
from moe_core.model.seq2seq import EncoderDecoder, nllb_moe, switch_transformers, turnout_seq2seq
from moe_core.model.seq2seq.config import Seq2SeqConfig
from moe_core.model.seq2seq.names import Names, repeated_names, slots_of
from moe_core.model.seq2seq.turnout_seq2seq import TurnoutSeq2SeqConfig
from moe_core.spec.base import Spec
from moe_core.spec.seq2seq import Seq2SeqSpec


@dataclass(frozen=True, slots=True)
class Seq2SeqFamily:
    """One way of naming and spelling an encoder–decoder."""

    schema: type[Seq2SeqConfig]
    keys: Callable[[Seq2SeqSpec, str], dict[str, Any]]
    names: Names


_SWITCH = Seq2SeqFamily(
    switch_transformers.SwitchConfig, switch_transformers.keys_of, switch_transformers.NAMES
)
_NLLB = Seq2SeqFamily(nllb_moe.NllbConfig, nllb_moe.keys_of, nllb_moe.NAMES)
# By the family of a specification, and by its model_type.
FAMILIES: Mapping[str, Seq2SeqFamily] = {
    "switch_transformers": _SWITCH,
    "nllb-moe": _NLLB,
    "nllb_moe": _NLLB,
}


def is_seq2seq(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a family of encoder–decoders."""
    name = config.get("model_type")
    return isinstance(name, str) and name in (*FAMILIES, turnout_seq2seq.MODEL_TYPE)


def spec_of(config: dict[str, Any]) -> Seq2SeqSpec:
    """The specification behind a config.json; FormatError for unknown keys and impossible values."""
    own = config["model_type"] == turnout_seq2seq.MODEL_TYPE
    schema: type[Spec] = TurnoutSeq2SeqConfig if own else FAMILIES[config["model_type"]].schema
    try:
        return schema.parse(config).to_spec()  # type: ignore[attr-defined, no-any-return]
    except SpecError as error:
        raise FormatError(f"config.json: {error}") from error


def config_of(spec: Seq2SeqSpec, dtype: str) -> dict[str, Any]:
    """The config.json of a model; FormatError when the family's spelling cannot say all of the specification.

    Packed experts no family can say: their config.json is Turnout's own.
    """
    if spec.quantisation is not None:
        return turnout_seq2seq.keys_of(spec, dtype)
    config = FAMILIES[spec.family].keys(spec, dtype)
    said = spec_of(config)
    if said != spec:
        lost = [name for name in Seq2SeqSpec.model_fields if getattr(said, name) != getattr(spec, name)]
        raise FormatError(
            f"a config.json of family {spec.family!r} cannot say this model's {', '.join(lost)}"
        )
    return config


def load_seq2seq(
    path: Path | str,
    dtype: DtypeName = "float32",
    *,
    device: torch.device | str = "cpu",
    expected_hashes: Mapping[str, str] | None = None,
) -> EncoderDecoder:
    """Build the model of a directory and fill it; routers are float32 whatever `dtype` is.

    Raises CheckpointError, FormatError or HashMismatch; nothing is allocated before names and shapes fit.
    """
    directory = Path(path)
    if expected_hashes is not None:
        verify_hashes(directory, expected_hashes)
    spec = spec_of(read_json_object(directory / CONFIG_FILE, MAX_CONFIG_BYTES))
    names = FAMILIES[spec.family].names
    with WeightReader(directory) as reader:
        slots = slots_of(spec, names)
        check_slots(slots, reader, ignorable=repeated_names(spec, names))
        _check_copies(reader, f"{names.embedding}.weight", repeated_names(spec, names))
        model = EncoderDecoder(spec, TORCH_DTYPES[dtype])
        fill_slots(model, slots, reader)
        return model.to(device)


def _check_copies(reader: WeightReader, embedding: str, copies: list[str]) -> None:
    """Raise FormatError when encoder, decoder or head have an embedding of their own."""
    for name in copies:
        if name in reader.names and not torch.equal(reader.tensor(name), reader.tensor(embedding)):
            raise FormatError(f"{name}: differs from {embedding}; one embedding is for both sides here")


def save_seq2seq(
    model: EncoderDecoder,
    path: Path | str,
    *,
    dtype: DtypeName | None = None,
    tokenizer_from: Path | str | None = None,
) -> Path:
    """Write a model directory: all of it or nothing; routers in float32, the rest in `dtype` (default: the model's)."""
    out, target = Path(path), TORCH_DTYPES[dtype] if dtype else model.dtype
    config = config_of(model.spec, str(target).removeprefix("torch."))
    with new_directory(out) as directory:
        write_slots(
            directory, model, slots_of(model.spec, FAMILIES[model.spec.family].names, copies=True), target
        )
        write_json(directory / CONFIG_FILE, config)
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), directory)
    return out
