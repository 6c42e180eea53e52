"""The layers of an encoder–decoder: attention to oneself or to the encoder, and a feed-forward, dense or of experts.

Shapes: B batch, S tokens, N keys, H heads, d head_dim, D model width, T = B·S tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_core.experts import MixedExperts, PackedMlps
from moe_core.kernels.mixed import ACTIVATIONS
from moe_core.kernels.precision import attention
from moe_core.model.context import RoutingContext
from moe_core.model.layers import Linear, RmsNorm, Router
from moe_core.routers import Overflow, Routing
from moe_core.spec.seq2seq import Seq2SeqSpec, StackSpec

KeysValues = tuple[Tensor, Tensor]


class LayerNorm(nn.Module):
    """Mean and variance taken out, then a learnt scale and bias."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; the result has the input's dtype."""
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def norm_of(spec: Seq2SeqSpec, dtype: torch.dtype) -> RmsNorm | LayerNorm:
    """The norm that a model has everywhere."""
    kind = RmsNorm if spec.norm == "rms" else LayerNorm
    return kind(spec.hidden_size, spec.norm_eps, dtype)


class HeadsAttention(nn.Module):
    """Attention of H heads; keys and values come from the layer's own input or from the encoder."""

    def __init__(self, spec: Seq2SeqSpec, dtype: torch.dtype) -> None:
        super().__init__()
        width, inner, self.num_heads = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_heads
        # T5 folds the scale into its weights.
        self.scale = 1.0 if spec.positions == "relative" else spec.head_dim**-0.5
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, Linear(width, inner, dtype, bias=spec.bias))
        self.o_proj = Linear(inner, width, dtype, bias=spec.bias)

    def keys_values(self, x_BND: Tensor) -> KeysValues:
        """(B, H, N, d) twice."""
        return self._heads("k_proj", x_BND), self._heads("v_proj", x_BND)

    def forward(self, x_BSD: Tensor, seen: KeysValues, bias: Tensor | None) -> Tensor:
        """Attend to keys and values; `bias` is added to the scores, (S, N) or with heads and batch before it."""
        out_BHSd = attention(self._heads("q_proj", x_BSD), *seen, attn_mask=bias, scale=self.scale)
        out: Tensor = self.o_proj(out_BHSd.transpose(1, 2).flatten(2))
        return out

    def _heads(self, name: str, x_BSD: Tensor) -> Tensor:
        mapped: Tensor = self.get_submodule(name)(x_BSD)
        return mapped.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class PlainMlp(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.up_proj = Linear(spec.hidden_size, stack.intermediate_size, dtype, bias=spec.bias)
        self.down_proj = Linear(stack.intermediate_size, spec.hidden_size, dtype, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape again."""
        out: Tensor = self.down_proj(self.activation(self.up_proj(x)))
        return out


class SparseMlp(nn.Module):
    """Router and plain experts in the place of the feed-forward. `layer` counts the encoder's layers, then the decoder's."""

    def __init__(
        self, spec: Seq2SeqSpec, stack: StackSpec, layer: int, place: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.spec, self.layer, self.place = spec, layer, place
        moe = spec.moe_of(stack)
        assert moe.expert_kinds is not None
        self.router = Router(moe, spec.hidden_size, spec.vocab_size)
        self.experts: MixedExperts | PackedMlps
        if spec.quantisation is None:
            self.experts = MixedExperts(moe.expert_kinds, spec.hidden_size, dtype)
        else:
            expert = spec.expert_of(stack)
            self.experts = PackedMlps(spec.num_experts, spec.hidden_size, expert, spec.quantisation, dtype)

    def forward(self, x_BSD: Tensor, context: RoutingContext) -> Tensor:
        """Route, run the chosen experts, scale what they give."""
        routing = self._route(x_BSD, context)
        if context.observe is not None:
            context.observe(self.layer, routing)
        out_TD = self.experts(x_BSD.flatten(0, 1), routing) * self.spec.expert_output_scale
        return out_TD.view(x_BSD.shape)

    def _route(self, x_BSD: Tensor, context: RoutingContext) -> Routing:
        """All tokens together, or each sequence by itself where experts are full by sequence."""
        if not self.spec.capacity_per_sequence or x_BSD.shape[0] == 1:
            return self.router(x_BSD.flatten(0, 1), context, self.place)
        real_BS = None if context.real_T is None else context.real_T.view(x_BSD.shape[:2])
        each = [
            self.router(
                x_SD, context if real_BS is None else replace(context, real_T=real_BS[at]), self.place
            )
            for at, x_SD in enumerate(x_BSD)
        ]
        return Routing(
            torch.cat([one.expert_ids_TK for one in each]),
            torch.cat([one.weights_TK for one in each]),
            torch.cat([one.logits_TE for one in each]),
            torch.cat([one.probs_TE for one in each]),
            overflow=_joined([one.overflow for one in each if one.overflow is not None]),
        )


def _joined(each: list[Overflow]) -> Overflow | None:
    """What became of the choices of several sequences; None where no expert could be full."""
    if not each:
        return None
    return Overflow(
        torch.cat([one.kept_TK for one in each]),
        torch.cat([one.rerouted_TK for one in each]),
        torch.cat([one.dropped_TK for one in each]),
        torch.cat([one.wanted_TK for one in each]),
        torch.cat([one.wanted_weights_TK for one in each]),
    )


class Layer(nn.Module):
    """Attention to oneself, in a decoder to the encoder too, and a feed-forward, each behind its norm."""

    def __init__(self, spec: Seq2SeqSpec, at: int, dtype: torch.dtype, *, is_decoder: bool) -> None:
        super().__init__()
        stack = spec.decoder if is_decoder else spec.encoder
        self.self_norm, self.self_attention = norm_of(spec, dtype), HeadsAttention(spec, dtype)
        self.cross_norm = norm_of(spec, dtype) if is_decoder else None
        self.cross_attention = HeadsAttention(spec, dtype) if is_decoder else None
        self.mlp_norm = norm_of(spec, dtype)
        self.mlp: PlainMlp | SparseMlp
        if at in stack.moe_layers:
            number = at + (spec.encoder.num_layers if is_decoder else 0)
            self.mlp = SparseMlp(spec, stack, number, stack.moe_layers.index(at), dtype)
        else:
            self.mlp = PlainMlp(spec, stack, dtype)

    def feed_forward(self, x_BSD: Tensor, context: RoutingContext) -> Tensor:
        """The last third of the layer, with its residual."""
        normed_BSD = self.mlp_norm(x_BSD)
        if isinstance(self.mlp, SparseMlp):
            return x_BSD + self.mlp(normed_BSD, context)
        return x_BSD + self.mlp(normed_BSD)
