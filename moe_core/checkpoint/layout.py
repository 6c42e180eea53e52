"""Which files a model directory has, and which tensor lies in which.

Shards follow the parts of a model, so that versions which share a part share its bytes: a tuned router leaves
the trunk and the experts as they were, and the store keeps them once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.safetensors_header import TENSOR_NAME, TensorInfo
from moe_core.errors import CheckpointError, FormatError

if TYPE_CHECKING:
    # Brings torch, and a tokenizer is read without it.
    from moe_core.model.families.slots import Slot

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_INDEX_BYTES = 16 * 1024 * 1024
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,180}\.safetensors\Z")
WEIGHT_DTYPES = ("F32", "BF16", "F16")


def shard_of(slot: Slot) -> str:
    """The file that holds a tensor."""
    if slot.part in ("experts", "shared_experts"):
        return f"experts-{slot.layer}.safetensors"
    return "router.safetensors" if slot.part == "router" else "trunk.safetensors"


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Which file each tensor is in."""

    file_of: Mapping[str, str]

    @property
    def files(self) -> list[str]:
        """The weight files, in name order."""
        return sorted(set(self.file_of.values()))


def index_json(file_of: Mapping[str, str], total_bytes: int) -> dict[str, Any]:
    """The index as transformers reads it."""
    return {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(file_of.items()))}


def read_weight_map(directory: Path, *, follow_links: bool = True) -> WeightMap | None:
    """The index of a directory; None when it has a single weight file and no index."""
    if not (directory / INDEX_FILE).exists():
        if (directory / SINGLE_FILE).exists():
            return None
        raise CheckpointError(f"{directory.name}: has neither {INDEX_FILE} nor {SINGLE_FILE}")
    index = read_json_object(directory / INDEX_FILE, MAX_INDEX_BYTES, follow_links=follow_links)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{INDEX_FILE}: weight_map must be an object that is not empty")
    for tensor, file in weight_map.items():
        if not TENSOR_NAME.match(tensor) or not isinstance(file, str) or not SHARD_NAME.match(file):
            raise FormatError(
                f"{INDEX_FILE}: {tensor[:80]!r} -> {str(file)[:80]!r} is not a plain tensor and file name"
            )
    return WeightMap(weight_map)


def check_tensor(slot: Slot, info: TensorInfo) -> None:
    """Raise FormatError when a tensor has not the shape that the configuration demands, or is no float."""
    if info.shape != slot.shape:
        raise FormatError(
            f"{slot.tensor}: has shape {list(info.shape)}; config.json demands {list(slot.shape)}"
        )
    allowed = WEIGHT_DTYPES if slot.dtype is None else (slot.dtype,)
    if info.dtype not in allowed:
        raise FormatError(f"{slot.tensor}: has dtype {info.dtype}; it must be {' or '.join(allowed)}")
