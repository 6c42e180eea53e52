"""vLLM's Triton kernel for mixtures as a peer, out of an installed copy's own file: its code, its tile rule, its tuned tiles.

vLLM itself need not run here. Its kernel and its rule are taken from `fused_moe.py` by name, tuned tiles from `configs/` beside it. The
sort of rows, which vLLM does in CUDA, is done before and not counted; the gating between its two products is one kernel of ours.

Shapes: T tokens, D model width, E experts, K top_k, F expert width.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WANTED = ("write_zeros_to_output", "fused_moe_kernel", "get_default_config")
HEAD = "import torch\nimport triton\nimport triton.language as tl\n\n"
# What the rule asks of vLLM's surroundings, on an NVIDIA card.
AROUND = {
    "envs": SimpleNamespace(VLLM_BATCH_INVARIANT=False),
    "current_platform": SimpleNamespace(is_rocm=lambda: False),
}


@triton.jit
def silu_and_multiply(both_ptr: Any, act_ptr: Any, num_ff: Any, BLOCK: tl.constexpr) -> None:
    """act = silu(gate) · up of a row (2F), rounded to its dtype."""
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_ff
    gate = tl.load(both_ptr + row * 2 * num_ff + place, mask=inside).to(tl.float32)
    up = tl.load(both_ptr + row * 2 * num_ff + num_ff + place, mask=inside).to(tl.float32)
    tl.store(act_ptr + row * num_ff + place, (gate * tl.sigmoid(gate) * up).to(act_ptr.dtype.element_ty), mask=inside)


def loaded(source: Path) -> Any:
    """A module of the wanted functions alone."""
    tree = ast.parse(source.read_text())
    lines = source.read_text().splitlines()
    parts = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in WANTED:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            parts.append("\n".join(lines[first - 1 : node.end_lineno]))
    if len(parts) != len(WANTED):
        raise SystemExit(f"{source} has not all of {', '.join(WANTED)}: is it vLLM's fused_moe.py?")
    target = Path(tempfile.mkdtemp()) / "vllm_fused_moe.py"
    target.write_text(HEAD + "\n\n\n".join(parts) + "\n")
    spec = importlib.util.spec_from_file_location("vllm_fused_moe", target)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(AROUND)
    return module


def tile_of(module: Any, source: Path, num_tokens: int, num_experts: int, num_ff: int, width: int, top_k: int) -> tuple[dict[str, int], str]:
    """The tile that vLLM would take on this card, and whether it was tuned or is by its rule."""
    card = torch.cuda.get_device_name().replace(" ", "_")
    card = "NVIDIA_H200" if "H200" in card.split("_") else card
    tuned = source.parent / "configs" / f"E={num_experts},N={num_ff},device_name={card}.json"
    if not tuned.exists():
        return module.get_default_config(num_tokens, num_experts, num_ff, width, top_k, None), "rule"
    by_tokens = {int(size): tile for size, tile in json.loads(tuned.read_text()).items() if size.isdigit()}
    return by_tokens[min(by_tokens, key=lambda size: abs(size - num_tokens))], "tuned"


def sorted_rows(ids_TK: Tensor, num_experts: int, block_m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choices in expert order, each expert's filled up to whole blocks; each block's expert; how many choices with what fills them."""
    flat = ids_TK.flatten().long()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    padded = (counts + block_m - 1) // block_m * block_m
    first, before = padded.cumsum(0) - padded, counts.cumsum(0) - counts
    total = int(padded.sum())
    places = first[flat[order]] + torch.arange(flat.numel(), device=flat.device) - before[flat[order]]
    choices = torch.full((total,), flat.numel(), dtype=torch.int32, device=flat.device)
    choices[places] = order.int()
    experts = torch.repeat_interleave(torch.arange(num_experts, device=flat.device), padded // block_m).int()
    return choices, experts, torch.tensor([total], dtype=torch.int32, device=flat.device)


def layer_of(source: Path, ids_TK: Tensor, weights_TK: Tensor, num_experts: int, num_ff: int, width: int) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]:
    """A layer (x, gate_up, down) → (T, D) by vLLM's kernel for these choices, and where its tile is from."""
    module, (num_tokens, top_k) = loaded(source), ids_TK.shape
    tile, origin = tile_of(module, source, num_tokens, num_experts, num_ff, width, top_k)
    # As vLLM does: few choices are a block each, and nobody sorts.
    alone = num_tokens * top_k * 4 <= num_experts
    rows: tuple[Tensor | None, Tensor, Tensor]
    if alone:
        rows = (None, ids_TK.flatten().int(), torch.tensor([ids_TK.numel() * tile["BLOCK_SIZE_M"]], dtype=torch.int32, device=ids_TK.device))
    else:
        rows = sorted_rows(ids_TK, num_experts, tile["BLOCK_SIZE_M"])
    both = torch.empty(num_tokens, top_k, 2 * num_ff, dtype=torch.bfloat16, device=ids_TK.device)
    act, out = both.new_empty(num_tokens * top_k, num_ff), both.new_empty(num_tokens, top_k, width)

    def layer(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        _product(module, x, gate_up, both, None, rows, top_k, tile)
        silu_and_multiply[(act.shape[0], triton.cdiv(num_ff, 1024))](both, act, num_ff, BLOCK=1024)
        _product(module, act, down, out, weights_TK, rows, 1, tile)
        return out.sum(1)

    return layer, origin


def _product(
    module: Any, a: Tensor, b: Tensor, c: Tensor, weights_TK: Tensor | None, rows: tuple[Tensor | None, Tensor, Tensor], top_k: int,
    tile: Mapping[str, int],
) -> None:  # fmt: skip
    choices, experts, total = rows
    num = a.shape[0] * top_k
    padded = num * tile["BLOCK_SIZE_M"] if choices is None else choices.shape[0]
    if choices is not None and a.shape[0] < tile["BLOCK_SIZE_M"]:
        padded = min(padded, num * tile["BLOCK_SIZE_M"])
    grid = (triton.cdiv(padded, tile["BLOCK_SIZE_M"]) * triton.cdiv(b.shape[1], tile["BLOCK_SIZE_N"]),)
    module.fused_moe_kernel[grid](
        a, b, c, None, None, None, weights_TK, choices, experts, total, b.shape[1], b.shape[2], padded, num,
        a.stride(0), a.stride(1), b.stride(0), b.stride(2), b.stride(1), c.stride(1), c.stride(2), 0, 0, 0, 0, 0, 0, 0, 0, 0,
        naive_block_assignment=choices is None, MUL_ROUTED_WEIGHT=weights_TK is not None, top_k=top_k, compute_type=tl.bfloat16,
        use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False, per_channel_quant=False, HAS_BIAS=False, SWAP_AB=False,
        **{"SPLIT_K": 1, **tile},
    )  # fmt: skip
