"""One decoder for every family: what differs between them is a field of ModelSpec and a small part.

Shapes: T tokens, B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_core.kernels.gating import Gating
from moe_core.model.attention import DenseCausal, GrowingSequence
from moe_core.model.context import AttentionContext, RoutingContext
from moe_core.model.heads import Attention, LatentAttention
from moe_core.model.inputs import check_ids, check_length, check_speaks, checked_prompt
from moe_core.model.layers import DenseMlp, Embedding, Linear, MoeMlp, norm_of
from moe_core.model.packed_linear import PackedLinear
from moe_core.model.rotary import Rotary, rotary_of
from moe_core.spec import ModelSpec


class Block(nn.Module):
    """Attention and a feed-forward, each behind its norm and beside the residual; or both behind one norm."""

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_norm = norm_of(spec, spec.hidden_size, dtype)
        latent = spec.attention.mla is not None
        self.attention: Attention | LatentAttention = (LatentAttention if latent else Attention)(
            spec, layer, dtype
        )
        # None where the feed-forward reads what attention reads (PaLM's parallel form).
        self.mlp_norm = None if spec.parallel_blocks else norm_of(spec, spec.hidden_size, dtype)
        self.mlp: DenseMlp | MoeMlp
        if spec.is_moe_layer(layer):
            self.mlp = MoeMlp(spec, layer, dtype)
        else:
            gating = Gating.of(spec, spec.dense_clamp(layer))
            self.mlp = DenseMlp(spec.hidden_size, spec.intermediate_size, dtype, gating)

    def forward(
        self, x_TD: Tensor, rotary: Rotary, attention: AttentionContext, routing: RoutingContext | None
    ) -> Tensor:
        """One layer: (T, D) to (T, D)."""
        x_TD, normed_TD = self.attended(x_TD, rotary, attention)
        if isinstance(self.mlp, MoeMlp):
            return x_TD + self.mlp(normed_TD, routing)
        return x_TD + self.mlp(normed_TD)

    def attended(self, x_TD: Tensor, rotary: Rotary, attention: AttentionContext) -> tuple[Tensor, Tensor]:
        """The residual stream after attention, and what the feed-forward reads: both (T, D)."""
        normed_TD = self.input_norm(x_TD)
        x_TD = x_TD + self.attention(normed_TD, rotary, attention)
        return x_TD, normed_TD if self.mlp_norm is None else self.mlp_norm(x_TD)


class Decoder(nn.Module):
    """A causal language model built from a ModelSpec; weights start uninitialised, routers are float32."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size, dtype)
        self.layers = nn.ModuleList(Block(spec, layer, dtype) for layer in range(spec.num_hidden_layers))
        self.norm = norm_of(spec, spec.hidden_size, dtype)
        self.lm_head: Linear | PackedLinear | None = None
        if not spec.tie_word_embeddings:
            packing = spec.moe.head_quantisation if spec.moe else None
            sizes = (spec.hidden_size, spec.vocab_size)
            self.lm_head = Linear(*sizes, dtype) if packing is None else PackedLinear(*sizes, packing, dtype)

    @property
    def head_weight_VD(self) -> Tensor:
        """The output map; the embedding itself when they are tied, a widened copy where it is packed."""
        if isinstance(self.lm_head, PackedLinear):
            return self.lm_head.widened(self.dtype)
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie; told by the last norm, for maps in panels have no memory of their own."""
        return self.norm.weight.device

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
        if self.spec.moe is not None and self.spec.moe.gate.kind == "soft":
            routing = _by_rows(routing or RoutingContext(), attention, input_ids_T.device)
        rotary = rotary_of(self.spec, positions_T, x_TD.dtype)
        for block in self.layers:
            x_TD = block(x_TD, rotary, attention, routing)
        normed: Tensor = self.norm(x_TD)
        return normed

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits over the vocabulary, (T, V), in the dtype of the weights."""
        if self.lm_head is None:
            return self.embed_tokens.logits(hidden_TD)
        logits_TV: Tensor = self.lm_head(hidden_TD)
        return logits_TV

    def forward(self, input_ids_BS: Tensor, routing: RoutingContext | None = None) -> Tensor:
        """Logits (B, S, V) with dense causal attention; routers see T = B·S tokens. No token, no logits: (B, S, V) of none.

        Raises InputError for ids that are no integers (B, S) of the vocabulary, or more than the model has positions for.
        """
        check_ids(input_ids_BS, self.spec.vocab_size)
        batch, sequence = input_ids_BS.shape
        check_length(sequence, self.spec)
        if not input_ids_BS.numel():
            return self.head_weight_VD.new_empty(batch, sequence, self.spec.vocab_size)
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
        self, ids: Sequence[int] | Tensor, max_new_tokens: int, routing: RoutingContext | None = None
    ) -> list[int]:
        """Greedy continuation of one prompt, without the prompt; ends after an end token.

        Raises InputError for a prompt that is none, for more tokens than the model has positions for, and for a gate that
        chooses for all tokens of a batch at once.
        """
        check_speaks(self.spec)
        ids = checked_prompt(ids, max_new_tokens, self.spec.vocab_size)
        check_length(len(ids) + max_new_tokens, self.spec)
        cache = GrowingSequence(self.spec, len(ids) + max_new_tokens, self.dtype, self.device)
        new: list[int] = []
        fresh = ids
        while len(new) < max_new_tokens:
            tokens_T = torch.tensor(fresh, dtype=torch.long, device=self.device)
            positions_T = torch.arange(cache.length, cache.length + len(fresh), device=tokens_T.device)
            hidden_TD = self.hidden(tokens_T, positions_T, cache, routing)
            cache.advance(len(fresh))
            new.append(int(self.logits(hidden_TD[-1:]).argmax()))
            if new[-1] in self.spec.eos_token_ids:
                break
            fresh = new[-1:]
        return new


def _by_rows(routing: RoutingContext, attention: AttentionContext, device: torch.device) -> RoutingContext:
    """The context with each row of a batch as a sequence of its own, for gates that mix the tokens of one.

    Where it says already which sequence each token is of, that holds.
    """
    if routing.sequence_T is not None or not isinstance(attention, DenseCausal):
        return routing
    rows_B = torch.arange(attention.batch, device=device)
    return replace(routing, sequence_T=rows_B.repeat_interleave(attention.sequence))
