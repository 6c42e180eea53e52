"""One decoder for Llama, Mixtral and Turnout's mixture of dense and expert layers.

Shapes: T tokens, B batch, S sequence, D model width, H query heads, G key-value heads, d head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_core.kernels.precision import product
from moe_core.model.attention import DenseCausal, GrowingSequence
from moe_core.model.context import AttentionContext, RoutingContext
from moe_core.model.layers import DenseMlp, Embedding, Linear, MoeMlp, RmsNorm, rotary_table, rotate
from moe_core.spec import ModelSpec


class Attention(nn.Module):
    """Projections of one layer's attention; the context does the attending."""

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv = spec.num_attention_heads, spec.num_key_value_heads
        self.head_dim = spec.head_dim
        rows = (self.num_heads + 2 * self.num_kv) * spec.head_dim
        self.qkv_proj = Linear(spec.hidden_size, rows, dtype)
        self.o_proj = Linear(self.num_heads * spec.head_dim, spec.hidden_size, dtype)

    def forward(self, x_TD: Tensor, cos: Tensor, sin: Tensor, context: AttentionContext) -> Tensor:
        """Project, rotate queries and keys together, attend, project back."""
        qkv = self.qkv_proj(x_TD).view(x_TD.shape[0], -1, self.head_dim)
        qk = rotate(qkv[:, : self.num_heads + self.num_kv], cos, sin)
        out_THd = context.attend(
            self.layer,
            qk[:, : self.num_heads],
            qk[:, self.num_heads :],
            qkv[:, self.num_heads + self.num_kv :],
        )
        projected: Tensor = self.o_proj(out_THd.reshape(x_TD.shape[0], -1))
        return projected


class Block(nn.Module):
    """Attention and a feed-forward, each behind its norm and beside the residual."""

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_norm = RmsNorm(spec.hidden_size, spec.rms_norm_eps, dtype)
        self.attention = Attention(spec, layer, dtype)
        self.mlp_norm = RmsNorm(spec.hidden_size, spec.rms_norm_eps, dtype)
        self.mlp: DenseMlp | MoeMlp
        if spec.is_moe_layer(layer):
            self.mlp = MoeMlp(spec, layer, dtype)
        else:
            self.mlp = DenseMlp(spec.hidden_size, spec.intermediate_size, dtype)

    def forward(
        self,
        x_TD: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention: AttentionContext,
        routing: RoutingContext | None,
    ) -> Tensor:
        """One layer: (T, D) to (T, D)."""
        x_TD = x_TD + self.attention(self.input_norm(x_TD), cos, sin, attention)
        normed_TD = self.mlp_norm(x_TD)
        if isinstance(self.mlp, MoeMlp):
            return x_TD + self.mlp(normed_TD, routing)
        return x_TD + self.mlp(normed_TD)


class Decoder(nn.Module):
    """A causal language model built from a ModelSpec; weights start uninitialised, routers are float32."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size, dtype)
        self.layers = nn.ModuleList(Block(spec, layer, dtype) for layer in range(spec.num_hidden_layers))
        self.norm = RmsNorm(spec.hidden_size, spec.rms_norm_eps, dtype)
        self.lm_head = None if spec.tie_word_embeddings else Linear(spec.hidden_size, spec.vocab_size, dtype)

    @property
    def head_weight_VD(self) -> Tensor:
        """The output map; the embedding itself when they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embed_tokens.weight.dtype

    def hidden(
        self,
        input_ids_T: Tensor,
        positions_T: Tensor,
        attention: AttentionContext,
        routing: RoutingContext | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (T, D); every sequence's layout is the attention context's affair."""
        x_TD = self.embed_tokens(input_ids_T)
        if self.spec.moe is not None and self.spec.moe.gate.kind == "hash":
            routing = replace(routing or RoutingContext(), token_ids_T=input_ids_T)
        cos, sin = rotary_table(positions_T, self.spec.head_dim, self.spec.rope_theta)
        cos, sin = cos.to(x_TD.dtype), sin.to(x_TD.dtype)
        for block in self.layers:
            x_TD = block(x_TD, cos, sin, attention, routing)
        normed: Tensor = self.norm(x_TD)
        return normed

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits over the vocabulary, (T, V), in the dtype of the weights."""
        return product(hidden_TD, self.head_weight_VD)

    def forward(self, input_ids_BS: Tensor, routing: RoutingContext | None = None) -> Tensor:
        """Logits (B, S, V) with dense causal attention; routers see T = B·S tokens."""
        batch, sequence = input_ids_BS.shape
        positions_T = torch.arange(sequence, device=input_ids_BS.device).repeat(batch)
        hidden_TD = self.hidden(input_ids_BS.reshape(-1), positions_T, DenseCausal(batch, sequence), routing)
        return self.logits(hidden_TD).view(batch, sequence, -1)

    def moe_layers(self) -> Iterator[MoeMlp]:
        """The expert layers, lowest first; each knows its layer number."""
        for block in self.layers:
            if isinstance(block, Block) and isinstance(block.mlp, MoeMlp):
                yield block.mlp

    @torch.inference_mode()
    def generate(
        self, ids: list[int], max_new_tokens: int, routing: RoutingContext | None = None
    ) -> list[int]:
        """Greedy continuation of one prompt, without the prompt; ends after an end token."""
        cache = GrowingSequence(
            self.spec, len(ids) + max_new_tokens, self.dtype, self.embed_tokens.weight.device
        )
        new: list[int] = []
        fresh = ids
        while len(new) < max_new_tokens:
            tokens_T = torch.tensor(fresh, dtype=torch.long, device=self.embed_tokens.weight.device)
            positions_T = torch.arange(cache.length, cache.length + len(fresh), device=tokens_T.device)
            hidden_TD = self.hidden(tokens_T, positions_T, cache, routing)
            cache.advance(len(fresh))
            new.append(int(self.logits(hidden_TD[-1:]).argmax()))
            if new[-1] in self.spec.eos_token_ids:
                break
            fresh = new[-1:]
        return new
