"""safetensors files in and out, straight between the file and the memory of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from moe_core.checkpoint.files import open_regular, read_exactly
from moe_core.checkpoint.safetensors_header import SafetensorsHeader, read_header
from moe_core.errors import CheckpointError, FormatError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFile:
    """An open, checked file; a context manager."""

    def __init__(self, path: Path, *, follow_links: bool = True) -> None:
        self.name = Path(path).name
        self._file = open_regular(Path(path), follow_links=follow_links)
        try:
            self.header: SafetensorsHeader = read_header(self._file, self.name)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def tensor(self, key: str) -> Tensor:
        """A copy of one tensor in its own dtype."""
        info = self.header.tensors[key]
        out = torch.empty(info.shape, dtype=DTYPES[info.dtype])
        self._read(info.begin, out)
        return out

    def read_into(self, key: str, target: Tensor) -> None:
        """Fill a tensor of the same shape, converting the dtype; no second copy when dtype and layout agree."""
        info = self.header.tensors[key]
        if info.shape != tuple(target.shape):
            raise FormatError(
                f"{self.name}: {key} has shape {list(info.shape)}, expected {list(target.shape)}"
            )
        direct = DTYPES[info.dtype] == target.dtype and target.is_contiguous() and target.device.type == "cpu"
        if direct:
            self._read(info.begin, target)
        else:
            target.copy_(self.tensor(key))

    def _read(self, begin: int, target: Tensor) -> None:
        if target.numel():
            read_exactly(self._file, begin, _bytes_of(target))


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors in name order; equal tensors give equal bytes. The caller fsyncs.

    Raises CheckpointError for a dtype that the format does not have.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    # Wider dtypes first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    for key in order:
        tensor = tensors[key]
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{key}: dtype {tensor.dtype} has no place in safetensors")
        length = tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for key in order:
            if tensors[key].numel():
                file.write(_bytes_of(tensors[key].cpu().contiguous()))
