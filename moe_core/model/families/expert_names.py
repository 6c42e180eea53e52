"""Checkpoint names of routers and experts: one tensor an expert, stacked by map, packed, or packed in turns."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from moe_core.model.families.family import NameMap
from moe_core.model.families.packed_names import packed_slots
from moe_core.model.families.registry import family_of
from moe_core.model.families.slots import Fold, Part, Slot
from moe_core.spec import ModelSpec


def moe_slots(spec: ModelSpec, layer: int) -> list[Slot]:
    """Router, experts and shared expert of one layer as the family writes them."""
    names = family_of(spec.family).names
    quantised = spec.moe is not None and spec.moe.quantisation is not None
    apart = _quantised if quantised else _stacked if names.stacked else _apart
    if spec.moe is not None and spec.moe.expert_kinds is not None:
        apart = _kinds
    experts = _alternating(spec, layer, names.block) if names.alternating else apart(spec, layer)
    return [*_router(spec, layer, names), *experts, *_shared(spec, layer, names)]


def router_and_shared_slots(spec: ModelSpec, layer: int) -> list[Slot]:
    """The same without the experts that tokens are sent to."""
    names = family_of(spec.family).names
    return [*_router(spec, layer, names), *_shared(spec, layer, names)]


def moe_slots_in(spec: ModelSpec, layer: int, present: Container[str]) -> list[Slot]:
    """The same for a source whose tensors are known: the family's own names, or packed as transformers 5 does."""
    packed = f"model.layers.{layer}.mlp.experts.gate_up_proj"
    family = family_of(spec.family)
    if family.names.alternating or packed not in present:
        return moe_slots(spec, layer)
    names = family.packed_names or replace(family.names, block="mlp")
    return [*_router(spec, layer, names), *_packed(spec, layer), *_shared(spec, layer, names)]


def _router(spec: ModelSpec, layer: int, names: NameMap) -> Iterator[Slot]:
    assert spec.moe is not None
    there = f"model.layers.{layer}.{names.block}"
    for tensor in spec.moe.gate_tensors(spec.hidden_size, spec.vocab_size):
        plain = f"{names.router}.{tensor.name}"
        theirs = names.selection_bias if tensor.name == "selection_bias" else plain
        here = f"layers.{layer}.mlp.router.{tensor.name}"
        yield Slot(f"{there}.{theirs}", here, tensor.shape, "router", layer=layer)


def _apart(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    moe, names = spec.moe, family_of(spec.family).names
    assert moe is not None
    there, here = f"model.layers.{layer}.{names.block}.experts", f"layers.{layer}.mlp.experts"
    width, inner = spec.hidden_size, moe.moe_intermediate_size
    gate, up, down = names.expert
    for expert in range(moe.num_experts):
        for name, parameter, shape, rows in (
            (gate, "gate_up_E2FD", (inner, width), (0, inner)),
            (up, "gate_up_E2FD", (inner, width), (inner, 2 * inner)),
            (down, "down_EDF", (width, inner), None),
        ):
            tensor = f"{there}.{expert}.{name}.weight"
            yield Slot(tensor, f"{here}.{parameter}", shape, "experts", expert, rows, layer)
        yield from _biases(spec, layer, expert)


def _stacked(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Each map of all experts in a tensor of its own."""
    moe, names = spec.moe, family_of(spec.family).names
    assert moe is not None
    there, here = f"model.layers.{layer}.{names.block}", f"layers.{layer}.mlp.experts"
    experts, width, inner = moe.num_experts, spec.hidden_size, moe.moe_intermediate_size
    gate, up, down = names.expert
    parts: list[tuple[str, str, tuple[int, ...], Fold | None]] = [
        (gate, "gate_up_E2FD", (experts, inner, width), "gate"),
        (up, "gate_up_E2FD", (experts, inner, width), "up"),
        (down, "down_EDF", (experts, width, inner), None),
    ]
    for name, parameter, shape, fold in parts:
        yield Slot(f"{there}.{name}.weight", f"{here}.{parameter}", shape, "experts", layer=layer, fold=fold)


def _biases(spec: ModelSpec, layer: int, expert: int) -> Iterator[Slot]:
    """Those of one expert that lies apart."""
    moe, names = spec.moe, family_of(spec.family).names
    assert moe is not None
    if not moe.expert_bias:
        return
    there, here = f"model.layers.{layer}.{names.block}.experts.{expert}", f"layers.{layer}.mlp.experts"
    inner = moe.moe_intermediate_size
    gate, up, down = names.expert
    for name, parameter, size, rows in (
        (gate, "gate_up_bias_E2F", inner, (0, inner)),
        (up, "gate_up_bias_E2F", inner, (inner, 2 * inner)),
        (down, "down_bias_ED", spec.hidden_size, None),
    ):
        yield Slot(f"{there}.{name}.bias", f"{here}.{parameter}", (size,), "experts", expert, rows, layer)


def _kinds(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Experts of several kinds: each one's tensors by themselves, out of one flat parameter."""
    moe, names = spec.moe, family_of(spec.family).names
    assert moe is not None and moe.expert_kinds is not None
    there, here = f"model.layers.{layer}.{names.block}.experts", f"layers.{layer}.mlp.experts.weights_N"
    start = 0
    for expert, kind in enumerate(moe.expert_kinds):
        for matrix in kind.matrices(spec.hidden_size):
            run = (start, start + matrix.numel)
            tensor = f"{there}.{expert}.{matrix.name}"
            yield Slot(tensor, here, matrix.shape, "experts", rows=run, layer=layer, fold="flat")
            start = run[1]


def _quantised(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Codes, scales and zero points of experts in few bits."""
    moe, names = spec.moe, family_of(spec.family).names
    assert moe is not None and moe.quantisation is not None
    there, here = f"model.layers.{layer}.{names.block}.experts", f"layers.{layer}.mlp.experts"
    inner, width = moe.moe_intermediate_size, spec.hidden_size
    gate, up, down = names.expert
    for expert in range(moe.num_experts):
        for name, matrix, num_rows, length, rows in (
            (gate, "gate_up", inner, width, (0, inner)),
            (up, "gate_up", inner, width, (inner, 2 * inner)),
            (down, "down", width, inner, None),
        ):
            both, shape = (f"{there}.{expert}.{name}", f"{here}.{matrix}"), (num_rows, length)
            yield from packed_slots(
                *both, shape, moe.quantisation, "experts", expert=expert, rows=rows, layer=layer
            )
        yield from _biases(spec, layer, expert)


def _packed(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """As transformers 5 keeps them in memory: gate rows first, then up rows."""
    moe = spec.moe
    assert moe is not None
    there, here = f"model.layers.{layer}.mlp.experts", f"layers.{layer}.mlp.experts"
    experts, width, inner = moe.num_experts, spec.hidden_size, moe.moe_intermediate_size
    gate_up, down = (experts, 2 * inner, width), (experts, width, inner)
    yield Slot(f"{there}.gate_up_proj", f"{here}.gate_up_E2FD", gate_up, "experts", layer=layer)
    yield Slot(f"{there}.down_proj", f"{here}.down_EDF", down, "experts", layer=layer)


def _alternating(spec: ModelSpec, layer: int, block: str) -> Iterator[Slot]:
    """As gpt-oss has them: maps transposed, columns of gate and up in turn, a bias for each."""
    moe = spec.moe
    assert moe is not None
    there, here = f"model.layers.{layer}.{block}.experts", f"layers.{layer}.mlp.experts"
    experts, width, inner = moe.num_experts, spec.hidden_size, moe.moe_intermediate_size
    parts: list[tuple[str, str, tuple[int, ...], Fold | None]] = [
        ("gate_up_proj", "gate_up_E2FD", (experts, width, 2 * inner), "columns"),
        ("gate_up_proj_bias", "gate_up_bias_E2F", (experts, 2 * inner), "values"),
        ("down_proj", "down_EDF", (experts, inner, width), "transposed"),
        ("down_proj_bias", "down_bias_ED", (experts, width), None),
    ]
    for name, parameter, shape, fold in parts:
        yield Slot(f"{there}.{name}", f"{here}.{parameter}", shape, "experts", layer=layer, fold=fold)


def _shared(spec: ModelSpec, layer: int, names: NameMap) -> Iterator[Slot]:
    moe = spec.moe
    assert moe is not None
    there, here = f"model.layers.{layer}", f"layers.{layer}.mlp"
    if moe.shared_intermediate_size:
        sizes = (spec.hidden_size, moe.shared_intermediate_size, layer)
        yield from mlp_slots(f"{there}.{names.shared}", f"{here}.shared_expert", *sizes, "shared_experts")
    if moe.shared_gate:
        both = (f"{there}.{names.shared_gate}.weight", f"{here}.shared_gate.weight")
        yield Slot(*both, (1, spec.hidden_size), "shared_experts", layer=layer)


def mlp_slots(there: str, here: str, width: int, inner: int, layer: int, part: Part) -> Iterator[Slot]:
    """A dense feed-forward; gate and up share one packed map."""
    packed = f"{here}.gate_up_proj.weight"
    yield Slot(f"{there}.gate_proj.weight", packed, (inner, width), part, rows=(0, inner), layer=layer)
    yield Slot(f"{there}.up_proj.weight", packed, (inner, width), part, rows=(inner, 2 * inner), layer=layer)
    yield Slot(f"{there}.down_proj.weight", f"{here}.down_proj.weight", (width, inner), part, layer=layer)
