"""Load a model directory into a decoder, and save a decoder as a model directory."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from moe_core.checkpoint.atomic import new_directory, write_json
from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.hashes import verify_hashes
from moe_core.checkpoint.layout import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CONFIG_BYTES,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    check_tensor,
    index_json,
    shard_of,
)
from moe_core.checkpoint.quantised import Weights, widened
from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.safetensors import write_safetensors
from moe_core.checkpoint.source import ignorable, source_slots, spec_in
from moe_core.errors import CheckpointError, FormatError
from moe_core.model.decoder import Decoder
from moe_core.model.families import Slot, config_of, slots_of, spec_of
from moe_core.spec import ModelSpec

DtypeName = Literal["float32", "bfloat16"]
TORCH_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read_spec(directory: Path | str) -> ModelSpec:
    """The specification in a directory's config.json."""
    return spec_of(read_json_object(Path(directory) / CONFIG_FILE, MAX_CONFIG_BYTES))


def stored_dtype(path: Path | str) -> DtypeName:
    """The narrowest dtype that holds the weights of a model directory without rounding, by the headers of its files.

    Routers, which are float32 in every model, and packed weights do not count, nor do those that were released in 8 or 4
    bits. Raises CheckpointError or FormatError.
    """
    with WeightReader(Path(path)) as reader:
        every = source_slots(read_spec(path), widened(reader))
        names = {slot.tensor for slot in every if slot.part != "router" and slot.dtype is None}
        dtypes = {reader.info(name).dtype for name in names & reader.names}
    return "bfloat16" if dtypes.isdisjoint(("F32", "F16")) else "float32"


def load(
    path: Path | str,
    dtype: DtypeName = "float32",
    *,
    device: torch.device | str = "cpu",
    expected_hashes: Mapping[str, str] | None = None,
) -> Decoder:
    """Build the decoder of a model directory, ours or one of transformers, and fill it from the files.

    Routers are float32 whatever `dtype` is. A head that config.json ties and the files hold with weights of its own is not
    tied. With `expected_hashes` (name to sha256) every file is hashed first.
    Raises CheckpointError, FormatError or HashMismatch; nothing is allocated before names and shapes fit.
    """
    directory = Path(path)
    if expected_hashes is not None:
        verify_hashes(directory, expected_hashes)
    with WeightReader(directory) as reader:
        weights = widened(reader)
        spec = spec_in(read_spec(directory), weights)
        slots = source_slots(spec, weights)
        check_slots(slots, weights, ignorable=ignorable(spec, weights.names))
        return fill(Decoder(spec, TORCH_DTYPES[dtype]), slots, weights).to(device)


def check_slots(slots: Iterable[Slot], reader: Weights, ignorable: Iterable[str] = ()) -> None:
    """Raise FormatError unless the files hold exactly the tensors of the specification, in its shapes."""
    wanted = {slot.tensor: slot for slot in slots}
    missing = sorted(set(wanted) - reader.names)
    surplus = sorted(reader.names - set(wanted) - set(ignorable))
    for kind, names in (("lack", missing), ("hold unknown", surplus)):
        if names:
            raise FormatError(f"the weight files {kind} {len(names)} tensors, first {names[0]}")
    for name, slot in wanted.items():
        check_tensor(slot, reader.info(name))


@torch.no_grad()
def fill(model: Decoder, slots: Iterable[Slot], reader: Weights) -> Decoder:
    """Read every slot into the decoder's parameters."""
    fill_slots(model, slots, reader)
    return model


@torch.no_grad()
def fill_slots(model: nn.Module, slots: Iterable[Slot], reader: Weights) -> None:
    """Read every slot into the parameters of any model."""
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for slot in slots:
        place = slot.of(parameters[slot.parameter].data)
        if slot.fold is None:
            reader.read_into(slot.tensor, place)
        else:
            place.copy_(reader.tensor(slot.tensor).view(place.shape))


def save(
    model: Decoder,
    path: Path | str,
    *,
    dtype: DtypeName | None = None,
    tokenizer_from: Path | str | None = None,
) -> Path:
    """Write a model directory: all of it or nothing. Equal weights give equal bytes.

    Routers are written in float32, the rest in `dtype` (default: the model's own). `tokenizer_from` is a model
    directory whose tokenizer files are copied. Raises CheckpointError when `path` holds something already.
    """
    out = Path(path)
    target = TORCH_DTYPES[dtype] if dtype else model.dtype
    with new_directory(out) as directory:
        write_weights(directory, model, target)
        write_json(directory / CONFIG_FILE, config_of(model.spec, str(target).removeprefix("torch.")))
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), directory)
    return out


def write_weights(directory: Path, model: Decoder, dtype: torch.dtype) -> None:
    """Write the shards and their index, one shard in memory at a time."""
    write_slots(directory, model, slots_of(model.spec), dtype)


def write_slots(directory: Path, model: nn.Module, every: Iterable[Slot], dtype: torch.dtype) -> None:
    """The same for any model whose tensors are named."""
    shards: dict[str, list[Slot]] = defaultdict(list)
    for slot in every:
        shards[shard_of(slot)].append(slot)
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    file_of: dict[str, str] = {}
    total = 0
    for name, slots in shards.items():
        tensors = dict(_converted(slots, parameters, dtype))
        write_safetensors(directory / name, tensors)
        file_of |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(directory / INDEX_FILE, index_json(file_of, total))


def _converted(
    slots: list[Slot], parameters: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for slot in slots:
        tensor = slot.of(parameters[slot.parameter].detach()).reshape(slot.shape)
        if slot.dtype is not None:
            yield slot.tensor, tensor
            continue
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise CheckpointError(
                f"{slot.tensor}: has dtype {tensor.dtype}; save float32, bfloat16 or float16"
            )
        yield slot.tensor, tensor.to(torch.float32 if slot.part == "router" else dtype)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of a model directory; those it lacks are left out."""
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
            os.chmod(target / name, 0o644)
