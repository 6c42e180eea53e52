"""GGUF files: read with bounds, and imported as a model directory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_core.checkpoint.atomic import new_directory, write_json
from moe_core.checkpoint.files import read_exactly
from moe_core.checkpoint.gguf_architectures import ROPE_FREQS
from moe_core.checkpoint.gguf_config import spec_from_metadata
from moe_core.checkpoint.gguf_header import GgufTensor
from moe_core.checkpoint.gguf_names import gguf_slots, is_further, is_rope_permuted, is_shifted
from moe_core.checkpoint.gguf_parts import open_parts
from moe_core.checkpoint.gguf_tokenizer import write_tokenizer
from moe_core.checkpoint.layout import CONFIG_FILE
from moe_core.checkpoint.store import TORCH_DTYPES, DtypeName, write_weights
from moe_core.errors import FormatError
from moe_core.model.decoder import Decoder
from moe_core.model.families import Slot, config_of
from moe_core.spec import ModelSpec

# Elements unpacked at once: bounds the float32 and the temporary memory of a large tensor.
UNPACK_ELEMENTS = 4 * 1024 * 1024


class GgufFile:
    """An open, checked GGUF file, with the other parts where it is one of several; a context manager."""

    def __init__(self, path: Path | str, *, follow_links: bool = True) -> None:
        self.name = Path(path).name
        self._files, self.head = open_parts(Path(path), follow_links=follow_links)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    @property
    def metadata(self) -> dict[str, Any]:
        """Keys and values of the head; arrays of numbers are numpy arrays."""
        return dict(self.head.metadata)

    @property
    def tensors(self) -> dict[str, GgufTensor]:
        """Every tensor by its GGUF name."""
        return dict(self.head.tensors)

    def spec(self) -> ModelSpec:
        """The model that the file describes; FormatError where that is none that is served."""
        return spec_from_metadata(self.head, self.name, self.dequantised)

    def dequantised(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32 in row-major shape."""
        tensor = self.head.tensors[name]
        quant, file = tensor.quant, self._files[tensor.part]
        num_blocks = (tensor.end - tensor.begin) // quant.block_bytes
        out = np.empty((num_blocks, quant.block_elements), np.float32)
        step = max(1, UNPACK_ELEMENTS // quant.block_elements)
        for start in range(0, num_blocks, step):
            raw = np.empty((min(step, num_blocks - start), quant.block_bytes), np.uint8)
            read_exactly(file, tensor.begin + start * quant.block_bytes, raw.reshape(-1).data)
            with np.errstate(over="ignore", invalid="ignore"):
                out[start : start + len(raw)] = quant.unpack(raw)
        return out.reshape(tensor.shape)


def read_gguf(path: Path | str, *, follow_links: bool = True) -> GgufFile:
    """Open a GGUF file, or all parts of one, and check its head; FormatError or CheckpointError when it is not one.

    With `follow_links` false the parts beside the one that is named may be no symbolic links.
    """
    return GgufFile(path, follow_links=follow_links)


def describe_gguf(path: Path | str) -> dict[str, Any]:
    """What a file says of itself: architecture, name, licence, and how its tensors are stored."""
    with read_gguf(path, follow_links=False) as file:
        said = file.metadata
        stored = Counter(tensor.quant.name for tensor in file.tensors.values())
        return {
            "architecture": said.get("general.architecture"),
            "name": said.get("general.name"),
            "organization": said.get("general.organization"),
            "license": said.get("general.license"),
            "languages": list(said.get("general.languages", [])),
            "tensors": len(file.tensors),
            "stored_as": dict(stored),
        }


def import_gguf(path: Path | str, out_dir: Path | str, *, dtype: DtypeName = "bfloat16") -> ModelSpec:
    """Write a model directory from a GGUF file of a known architecture (gguf_architectures).

    Weights are dequantised and stored as `dtype`; the tokenizer comes out of the file's own metadata.
    Raises FormatError when the file is broken, lacks a tensor, or is of another architecture.
    """
    with read_gguf(path, follow_links=False) as file:
        spec = file.spec()
        with new_directory(Path(out_dir)) as directory:
            model = decoder_from(file, spec, dtype)
            write_weights(directory, model, TORCH_DTYPES[dtype])
            write_json(directory / CONFIG_FILE, config_of(spec, dtype))
            write_tokenizer(directory, file.head, spec, file.name)
    return spec


@torch.no_grad()
def decoder_from(file: GgufFile, spec: ModelSpec, dtype: DtypeName) -> Decoder:
    """The decoder with every weight of the file; names and shapes are checked before anything is allocated."""
    slots = gguf_slots(spec, file.head.tensors)
    _check_tensors(file, slots, spec)
    model = Decoder(spec, TORCH_DTYPES[dtype])
    parameters = dict(model.named_parameters())
    for slot in slots:
        values = torch.from_numpy(file.dequantised(slot.tensor)).view(slot.shape)
        slot.of(parameters[slot.parameter]).copy_(_as_kept(values, slot, spec))
    return model


def _check_tensors(file: GgufFile, slots: list[Slot], spec: ModelSpec) -> None:
    wanted = {slot.tensor: slot for slot in slots}
    present = {name for name in file.head.tensors if name != ROPE_FREQS and not is_further(name, spec)}
    missing, surplus = wanted.keys() - present, present - wanted.keys()
    if missing or surplus:
        which, names = ("lacks", missing) if missing else ("holds unknown", surplus)
        raise FormatError(f"{file.name}: {which} {len(names)} tensors, first {min(names)}")
    for name, slot in wanted.items():
        shape = file.head.tensors[name].shape
        # A map to one value is written as a vector.
        if shape != slot.shape and (1, *shape) != slot.shape:
            raise FormatError(f"{name}: has shape {list(shape)}; the metadata demands {list(slot.shape)}")


def _as_kept(values: Tensor, slot: Slot, spec: ModelSpec) -> Tensor:
    """The values in the rotary order of Hugging Face, and norms as they are kept there."""
    if is_shifted(slot, spec):
        return values - 1.0
    if not is_rope_permuted(slot, spec):
        return values
    # llama.cpp stores rotary pairs side by side (0, d/2, 1, d/2 + 1, …) within each head.
    heads = slot.shape[0] // spec.head_dim
    return values.view(heads, spec.head_dim // 2, 2, -1).transpose(1, 2).reshape(slot.shape)
