"""The map between a checkpoint's tensors and an encoder–decoder's parameters, by the words that a family uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from moe_core.kernels.packing import code_bytes, num_groups
from moe_core.model.families.slots import Slot
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.seq2seq import Seq2SeqSpec, StackSpec

Side = Literal["encoder", "decoder"]
SIDES: tuple[Side, Side] = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Names:
    """How a family calls things; `{side}` is encoder or decoder, `{at}` the number of a layer."""

    embedding: str
    layer: str
    # Below a layer: attention to oneself and to the encoder, and the maps in each of them by our names.
    attention: Mapping[str, str]
    maps: Mapping[str, str]
    # By side, our name of a norm to theirs.
    norms: Mapping[str, Mapping[str, str]]
    mlp: Mapping[str, str]
    up: str
    down: str
    last_norm: str
    relative_bias: str | None


def slots_of(spec: Seq2SeqSpec, names: Names, *, copies: bool = False) -> list[Slot]:
    """Every tensor of a checkpoint of this model; with `copies` the embedding under all names that transformers reads.

    It reads more than one where the head is not tied: then it ties nothing.
    """
    width, vocab = spec.hidden_size, spec.vocab_size
    embeddings = [f"{names.embedding}.weight"]
    if copies and not spec.tie_word_embeddings:
        embeddings += repeated_names(spec, names)
    slots = [Slot(name, "embed_tokens.weight", (vocab, width), "embedding") for name in embeddings]
    for side in SIDES:
        stack = spec.encoder if side == "encoder" else spec.decoder
        for at in range(stack.num_layers):
            slots += _layer(spec, names, side, at)
        slots += _norm(spec, names.last_norm.format(side=side), f"{side}.norm", None)
        if names.relative_bias is not None:
            shape = (spec.relative_buckets, spec.num_heads)
            theirs = names.relative_bias.format(side=side)
            slots.append(Slot(theirs, f"{side}.relative_bias.weight", shape, "attention", layer=0))
    if not spec.tie_word_embeddings:
        slots.append(Slot("lm_head.weight", "lm_head.weight", (vocab, width), "head"))
    return slots


def repeated_names(spec: Seq2SeqSpec, names: Names) -> list[str]:
    """Copies of the embedding that older files hold, under the names of the places where it is used."""
    prefix = names.embedding.removesuffix("shared")
    copies = [f"{prefix}{side}.embed_tokens.weight" for side in SIDES]
    return [*copies, "lm_head.weight"] if spec.tie_word_embeddings else copies


def _layer(spec: Seq2SeqSpec, names: Names, side: Side, at: int) -> Iterator[Slot]:
    stack = spec.encoder if side == "encoder" else spec.decoder
    there, here = names.layer.format(side=side, at=at), f"{side}.layers.{at}"
    number = at + (spec.encoder.num_layers if side == "decoder" else 0)
    inner, width = spec.num_heads * spec.head_dim, spec.hidden_size
    for kind in ("self", "cross") if side == "decoder" else ("self",):
        for ours, theirs in names.maps.items():
            shape = (width, inner) if ours == "o_proj" else (inner, width)
            tensor, parameter = f"{there}{names.attention[kind]}{theirs}", f"{here}.{kind}_attention.{ours}"
            yield Slot(f"{tensor}.weight", f"{parameter}.weight", shape, "attention", layer=number)
            if spec.bias:
                yield Slot(f"{tensor}.bias", f"{parameter}.bias", shape[:1], "attention", layer=number)
    for ours, theirs in names.norms[side].items():
        yield from _norm(spec, there + theirs, f"{here}.{ours}", number)
    below = f"{there}{names.mlp[side]}"
    if at in stack.moe_layers:
        yield from _experts(spec, names, stack, below, f"{here}.mlp", number)
    else:
        yield from _dense(spec, names, stack, below, f"{here}.mlp", number)


def _norm(spec: Seq2SeqSpec, there: str, here: str, layer: int | None) -> Iterator[Slot]:
    for part in ("weight",) if spec.norm == "rms" else ("weight", "bias"):
        yield Slot(f"{there}.{part}", f"{here}.{part}", (spec.hidden_size,), "norms", layer=layer)


def _dense(
    spec: Seq2SeqSpec, names: Names, stack: StackSpec, there: str, here: str, layer: int
) -> Iterator[Slot]:
    wide, width = stack.intermediate_size, spec.hidden_size
    for theirs, ours, shape in (
        (names.up, "up_proj", (wide, width)),
        (names.down, "down_proj", (width, wide)),
    ):
        yield Slot(f"{there}{theirs}.weight", f"{here}.{ours}.weight", shape, "dense_mlp", layer=layer)
        if spec.bias:
            yield Slot(f"{there}{theirs}.bias", f"{here}.{ours}.bias", shape[:1], "dense_mlp", layer=layer)


def _experts(
    spec: Seq2SeqSpec, names: Names, stack: StackSpec, there: str, here: str, layer: int
) -> Iterator[Slot]:
    moe = spec.moe_of(stack)
    assert moe.expert_kinds is not None
    for tensor in moe.gate_tensors(spec.hidden_size, spec.vocab_size):
        parameter = f"{here}.router.{tensor.name}"
        yield Slot(f"{there}router.classifier.{tensor.name}", parameter, tensor.shape, "router", layer=layer)
    theirs = {"w3": names.up, "w2": names.down}
    if spec.quantisation is not None:
        yield from _packed(spec, stack, spec.quantisation, f"{there}experts.expert_", theirs, here, layer)
        return
    start = 0
    for expert, kind in enumerate(moe.expert_kinds):
        for matrix in kind.matrices(spec.hidden_size):
            name, part = matrix.name.split(".")
            run = (start, start + matrix.numel)
            tensor_name = f"{there}experts.expert_{expert}.{theirs[name]}.{part}"
            place = f"{here}.experts.weights_N"
            yield Slot(tensor_name, place, matrix.shape, "experts", rows=run, layer=layer, fold="flat")
            start = run[1]


def _packed(
    spec: Seq2SeqSpec,
    stack: StackSpec,
    quantisation: ExpertQuantSpec,
    there: str,
    theirs: Mapping[str, str],
    here: str,
    layer: int,
) -> Iterator[Slot]:
    """Codes, scales, zero points and biases of experts in few bits."""
    kinds = [("codes", "U8", code_bytes), ("scales", "F16", num_groups)]
    kinds += [] if quantisation.symmetric else [("zeros", "U8", num_groups)]
    inner, width = stack.intermediate_size, spec.hidden_size
    maps = (("w3", "up", "up_bias_EF", inner, width), ("w2", "down", "down_bias_ED", width, inner))
    for expert in range(spec.num_experts):
        for name, ours, bias, rows, length in maps:
            tensor, parameter = f"{there}{expert}.{theirs[name]}", f"{here}.experts.{ours}"
            for kind, dtype, columns in kinds:
                shape, both = (
                    (rows, columns(length, quantisation)),
                    (f"{tensor}.{kind}", f"{parameter}_{kind}"),
                )
                yield Slot(*both, shape, "experts", expert, layer=layer, dtype=dtype)
            if spec.bias:
                yield Slot(
                    f"{tensor}.bias", f"{here}.experts.{bias}", (rows,), "experts", expert, layer=layer
                )
