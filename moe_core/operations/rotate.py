"""Turn the residual stream of a decoder, so that no column of it stands out; the function stays the same.

Norms by the root mean square do not see a rotation, once their weights are taken into the maps behind them. So the embedding
and whatever writes to the stream are turned one way, and whatever reads it the other. What stood out in a few columns is
spread over all of them: 8 bits then do with one scale for many more columns, which products in tiles are faster by. What
stands out inside experts is not in the stream; it is levelled (`level.py`).

Shapes: D model width, as p times an odd m where p is a power of two.
Source: Ashkboos et al. 2024, "QuaRot", arXiv 2404.00456 (the stream alone; nothing is turned while the model runs).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts
from moe_core.model.decoder import Block, Decoder
from moe_core.model.heads import Attention, LatentAttention
from moe_core.model.layers import DenseMlp, MoeMlp, RmsNorm, ZeroCentredRmsNorm
from moe_core.operations.level import level
from moe_core.operations.parts import rebuilt

# A width whose odd part is larger is turned in blocks of its power of two.
MOST_ODD = 1024
# Of a gate's tensors the maps of hidden states, and those that have no column of the stream.
GATE_MAPS = frozenset({"weight", "domain_weight", "group_weight", "noise_weight", "overflow_weight"})
GATE_OTHERS = frozenset({"bias", "selection_bias", "table"})


@torch.no_grad()
def rotated(model: Decoder) -> Decoder:
    """The same function with a turned residual stream and an output map of its own; norms of the stream weigh nothing.

    The caller has checked that the model can be (`moe_core.spec.foresee`). Raises SpecError for a gate with a tensor that is
    not known to read the stream or not to.
    """
    new = rebuilt(model, model.spec.model_copy(update={"tie_word_embeddings": False}))
    new.embed_tokens.weight.copy_(turned(model.embed_tokens.weight, 1))
    for block in new.layers:
        assert isinstance(block, Block)
        _turn_attention(block.attention, _taken(block.input_norm))
        before = _taken(block.input_norm if block.mlp_norm is None else block.mlp_norm)
        if isinstance(block.mlp, MoeMlp):
            _turn_mixture(block.mlp, before)
        else:
            _turn_dense(block.mlp, before)
        for norm in (block.input_norm, block.mlp_norm):
            if norm is not None:
                _reset(norm)
    assert new.lm_head is not None
    head_VD = turned(model.head_weight_VD.float() * _taken(new.norm), 1)
    new.lm_head.get_parameter("weight").copy_(head_VD)
    _reset(new.norm)
    return new


def turned(weight: Tensor, axis: int) -> Tensor:
    """A tensor whose axis of D is turned, in float32: by Hadamard's matrix of p, and the cosines of m.

    Times its own transpose the rotation is the identity.
    """
    rows = weight.float().movedim(axis, -1)
    sizes = _parts(rows.shape[-1])
    out = rows.unflatten(-1, sizes)
    for place, size in enumerate(sizes, -len(sizes)):
        if size > 1 and size <= MOST_ODD:
            matrix = (_cosines if size % 2 else _hadamard)(size).to(out.device)
            out = (out.movedim(place, -1) @ matrix).movedim(-1, place)
    return out.flatten(-len(sizes)).movedim(-1, axis)


def _parts(width: int) -> list[int]:
    """The odd part of a width, and powers of two of at most 64: a rotation of each by itself is one of all."""
    sizes, power = [width // (width & -width)], width & -width
    while power > 1:
        sizes.append(min(64, power))
        power //= sizes[-1]
    return sizes


def _hadamard(power: int) -> Tensor:
    """Sylvester's matrix, scaled to be orthogonal: (p, p) float32."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < power:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix * power**-0.5


def _cosines(odd: int) -> Tensor:
    """The discrete cosine transform of type 2 as an orthogonal matrix, (m, m) float32."""
    place = torch.arange(odd, dtype=torch.float64)
    matrix = torch.cos(math.pi / odd * (place[None, :] + 0.5) * place[:, None]) * math.sqrt(2 / odd)
    matrix[0] *= math.sqrt(0.5)
    return matrix.float()


def _taken(norm: RmsNorm) -> Tensor:
    """What a norm multiplies each column by: (D) float32."""
    weight_D = norm.weight.float()
    return 1.0 + weight_D if isinstance(norm, ZeroCentredRmsNorm) else weight_D


def _reset(norm: RmsNorm) -> None:
    norm.weight.fill_(0.0 if isinstance(norm, ZeroCentredRmsNorm) else 1.0)


def _reads(weight: Tensor, before_D: Tensor) -> None:
    """A map that reads the stream behind a norm: its last axis."""
    weight.copy_(turned(weight.float() * before_D, weight.ndim - 1))


def _writes(weight: Tensor, axis: int) -> None:
    """A map, or a bias, that is added to the stream."""
    weight.copy_(turned(weight, axis))


def _turn_attention(attention: Attention | LatentAttention, before_D: Tensor) -> None:
    if isinstance(attention, LatentAttention):
        first = attention.q_proj if attention.q_a_proj is None else attention.q_a_proj
        readers = [first.weight, attention.kv_a_proj.weight]
    else:
        readers = [attention.qkv_proj.get_parameter("weight")]
        readers += [] if attention.g_proj is None else [attention.g_proj.weight]
    for weight in readers:
        _reads(weight, before_D)
    for name, parameter in attention.o_proj.named_parameters():
        assert name in ("weight", "bias")
        _writes(parameter, 0)


def _turn_dense(mlp: DenseMlp, before_D: Tensor) -> None:
    _reads(mlp.gate_up_proj.weight, before_D)
    _writes(mlp.down_proj.weight, 0)


def _turn_mixture(mlp: MoeMlp, before_D: Tensor) -> None:
    for tensor in mlp.moe.gate_tensors(before_D.numel(), 1):
        if tensor.name in GATE_MAPS:
            _reads(mlp.router.tensors[tensor.name], before_D)
        elif tensor.name not in GATE_OTHERS:
            raise SpecError(f"whether the gate's {tensor.name} reads the residual stream is not known; leave rotate out")
    experts = mlp.experts
    assert isinstance(experts, GroupedExperts)
    # One expert at a time: a copy of all of them in float32 need not fit.
    for gate_up_2FD, down_DF in zip(experts.gate_up_E2FD, experts.down_EDF, strict=True):
        _reads(gate_up_2FD, before_D)
        _writes(down_DF, 0)
    if experts.down_bias_ED is not None:
        _writes(experts.down_bias_ED, 1)
    level(experts)
    if mlp.shared_expert is not None:
        _turn_dense(mlp.shared_expert, before_D)
    if mlp.shared_gate is not None:
        _reads(mlp.shared_gate.weight, before_D)
