"""What a model directory holds, told from headers and configuration alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.layout import MAX_CONFIG_BYTES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from moe_core.checkpoint.quantised import widened
from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.safetensors_header import TensorInfo
from moe_core.checkpoint.source import ignorable, spec_in
from moe_core.checkpoint.store import check_slots, read_spec
from moe_core.checkpoint.tokenizer_config import TokenizerConfig
from moe_core.model.families import Slot, slots_of
from moe_core.spec import ModelSpec, cost_of

BYTES = {"F32": 4, "BF16": 2, "F16": 2}


def inspect_dir(path: Path | str) -> dict[str, Any]:
    """Family, layers, parameters and bytes by part, files and tokenizer, as plain data for JSON.

    Every header is checked against config.json, read as `load` reads it: of the weights only a head that is tied and yet
    lies in the files is read, to be compared. Raises CheckpointError or FormatError.
    """
    directory = Path(path)
    params: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    with WeightReader(directory) as reader:
        spec = spec_in(read_spec(directory), widened(reader))
        slots = slots_of(spec)
        check_slots(slots, reader, ignorable=ignorable(spec, reader.names))
        for slot in slots:
            info = reader.info(slot.tensor)
            num_bytes[slot.part] += info.num_bytes
            dtype, count = _weights_in(slot, info, spec)
            params[slot.part] += count
            dtypes[dtype] += count
    cost = cost_of(spec)
    return {
        "family": spec.family,
        "layers": spec.num_hidden_layers,
        "spec": spec.model_dump(mode="json"),
        "params": dict(params),
        "params_total": params.total(),
        "params_active": cost.active_per_token,
        "bytes": dict(num_bytes),
        "bytes_total": num_bytes.total(),
        "params_by_dtype": dict(dtypes),
        "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir()) if file.is_file()},
        **_tokenizer_facts(directory),
    }


def _weights_in(slot: Slot, info: TensorInfo, spec: ModelSpec) -> tuple[str, int]:
    """How the weights of a tensor are stored and how many they are; scales and zero points are no weights."""
    if slot.dtype is None:
        return info.dtype, info.num_bytes // BYTES[info.dtype]
    assert spec.moe is not None
    if not slot.tensor.endswith(".codes"):
        return info.dtype, 0
    packing, width = spec.moe.quantisation, spec.hidden_size
    if slot.part == "experts":
        width = spec.moe.moe_intermediate_size if ".w2." in slot.tensor else width
    elif slot.part == "head":
        packing = spec.moe.head_quantisation
    else:
        packing = spec.moe.attention_quantisation
        assert slot.layer is not None
        width = spec.num_heads_of(slot.layer) * spec.head_dim if ".o_proj." in slot.tensor else width
    assert packing is not None
    return f"INT{packing.bits}", info.shape[0] * width


def _tokenizer_facts(directory: Path) -> dict[str, Any]:
    if not (directory / TOKENIZER_FILE).exists():
        return {"has_tokenizer": False, "chat_format": None}
    config = TokenizerConfig.parse(read_json_object(directory / TOKENIZER_CONFIG_FILE, MAX_CONFIG_BYTES))
    return {"has_tokenizer": True, "chat_format": config.chat_format.name if config.chat_format else None}
