"""The weights of a model directory behind one door: every shard opened, checked, and matched with its index."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from moe_core.checkpoint.layout import INDEX_FILE, SINGLE_FILE, read_weight_map
from moe_core.checkpoint.safetensors import SafetensorsFile
from moe_core.checkpoint.safetensors_header import TensorInfo
from moe_core.errors import FormatError

MAX_SHARDS = 2048


class WeightReader:
    """A context manager over all safetensors files of a directory."""

    def __init__(self, directory: Path, *, follow_links: bool = True) -> None:
        self._stack = ExitStack()
        self._file_of: dict[str, SafetensorsFile] = {}
        try:
            self._open(Path(directory), follow_links)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, directory: Path, follow_links: bool) -> None:
        weight_map = read_weight_map(directory, follow_links=follow_links)
        names = [SINGLE_FILE] if weight_map is None else weight_map.files
        if len(names) > MAX_SHARDS:
            raise FormatError(f"{INDEX_FILE}: names {len(names)} files; at most {MAX_SHARDS} are read")
        for name in names:
            shard = self._stack.enter_context(SafetensorsFile(directory / name, follow_links=follow_links))
            for tensor in shard.header.tensors:
                if tensor in self._file_of:
                    raise FormatError(f"{tensor}: is in {self._file_of[tensor].name} and in {name}")
                if weight_map is not None and weight_map.file_of.get(tensor) != name:
                    raise FormatError(
                        f"{tensor}: is in {name}, but {INDEX_FILE} says {weight_map.file_of.get(tensor)}"
                    )
                self._file_of[tensor] = shard
        missing = sorted(set(weight_map.file_of) - set(self._file_of)) if weight_map else []
        if missing:
            raise FormatError(
                f"{INDEX_FILE}: names {len(missing)} tensors that no file holds, first {missing[0]}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        """Every tensor of the directory."""
        return set(self._file_of)

    def info(self, tensor: str) -> TensorInfo:
        """Dtype, shape and place of a tensor."""
        return self._file_of[tensor].header.tensors[tensor]

    def tensor(self, tensor: str) -> Tensor:
        """A copy of a tensor in its own dtype."""
        return self._file_of[tensor].tensor(tensor)

    def read_into(self, tensor: str, target: Tensor) -> None:
        """Fill `target` with a tensor, converting its dtype."""
        self._file_of[tensor].read_into(tensor, target)
