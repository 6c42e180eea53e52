"""An encoder–decoder with experts: reads a text whole, then says another one token by token.

Shapes: B batch, S source tokens, T target tokens, D model width, V vocabulary, H heads, N keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_core.kernels.precision import product
from moe_core.model.context import RoutingContext
from moe_core.model.inputs import check_ids, checked_prompt
from moe_core.model.layers import Embedding, Linear
from moe_core.model.seq2seq.layers import KeysValues, Layer, SparseMlp, norm_of
from moe_core.model.seq2seq.positions import RelativeBias, check_sines, sines
from moe_core.spec.seq2seq import Seq2SeqSpec

NEG_INF = float("-inf")


class Memory:
    """What a decoder keeps while it speaks: keys and values of the encoder, and of what was said."""

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self.said: list[KeysValues | None] = [None] * num_layers
        self.heard: list[KeysValues | None] = [None] * num_layers

    def with_new(self, layer: int, new: KeysValues) -> KeysValues:
        """Keys and values of everything said so far in one layer."""
        before = self.said[layer]
        both = (
            new if before is None else (torch.cat([before[0], new[0]], 2), torch.cat([before[1], new[1]], 2))
        )
        self.said[layer] = both
        return both


class Stack(nn.Module):
    """The layers of one side."""

    def __init__(self, spec: Seq2SeqSpec, dtype: torch.dtype, *, is_decoder: bool) -> None:
        super().__init__()
        self.spec, self.is_decoder = spec, is_decoder
        count = (spec.decoder if is_decoder else spec.encoder).num_layers
        self.layers = nn.ModuleList(Layer(spec, at, dtype, is_decoder=is_decoder) for at in range(count))
        self.norm = norm_of(spec, dtype)
        relative = spec.positions == "relative"
        self.relative_bias = RelativeBias(spec, dtype, bidirectional=not is_decoder) if relative else None

    def bias(self, start: int, num_queries: int, real_BN: Tensor | None) -> Tensor | None:
        """What is added to the scores of a layer's own keys: distance, the future hidden, padding hidden."""
        bias = None if self.relative_bias is None else self.relative_bias(start, num_queries)[None]
        if self.is_decoder and num_queries > 1:
            hidden_QN = torch.ones(
                num_queries, start + num_queries, dtype=torch.bool, device=self.norm.weight.device
            )
            bias = _masked(bias, ~hidden_QN.tril(start), self.norm.weight.dtype)
        return bias if real_BN is None else _masked(bias, ~real_BN[:, None, None, :], self.norm.weight.dtype)


class EncoderDecoder(nn.Module):
    """A sequence-to-sequence model built from a Seq2SeqSpec; weights start uninitialised, routers are float32."""

    def __init__(self, spec: Seq2SeqSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size, dtype)
        self.encoder = Stack(spec, dtype, is_decoder=False)
        self.decoder = Stack(spec, dtype, is_decoder=True)
        self.lm_head = None if spec.tie_word_embeddings else Linear(spec.hidden_size, spec.vocab_size, dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embed_tokens.weight.dtype

    def moe_layers(self) -> Iterator[SparseMlp]:
        """The expert layers, the encoder's first."""
        for stack in (self.encoder, self.decoder):
            for layer in stack.layers:
                if isinstance(layer, Layer) and isinstance(layer.mlp, SparseMlp):
                    yield layer.mlp

    def encode(
        self, input_ids_BS: Tensor, real_BS: Tensor | None = None, context: RoutingContext | None = None
    ) -> Tensor:
        """What the encoder makes of a source, (B, S, D); `real_BS` (bool) is False for padding."""
        context = _of_real(context, real_BS)
        x_BSD = self._embedded(input_ids_BS, 0)
        bias = self.encoder.bias(0, input_ids_BS.shape[1], real_BS)
        for layer in self.encoder.layers:
            assert isinstance(layer, Layer)
            normed_BSD = layer.self_norm(x_BSD)
            seen = layer.self_attention.keys_values(normed_BSD)
            x_BSD = layer.feed_forward(x_BSD + layer.self_attention(normed_BSD, seen, bias), context)
        out: Tensor = self.encoder.norm(x_BSD)
        return out

    def decode(
        self,
        decoder_ids_BT: Tensor,
        source_BSD: Tensor,
        real_BS: Tensor | None = None,
        memory: Memory | None = None,
        context: RoutingContext | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) after each target token; with `memory` the tokens go on from those that it holds.

        `real_BT` (bool) is False where a target has ended: such tokens take no place of an expert.
        """
        memory, context = memory or Memory(self.spec.decoder.num_layers), _of_real(context, real_BT)
        x_BTD = self._embedded(decoder_ids_BT, memory.length)
        bias = self.decoder.bias(memory.length, decoder_ids_BT.shape[1], None)
        cross = None if real_BS is None else _masked(None, ~real_BS[:, None, None, :], self.dtype)
        for at, layer in enumerate(self.decoder.layers):
            assert (
                isinstance(layer, Layer)
                and layer.cross_attention is not None
                and layer.cross_norm is not None
            )
            normed_BTD = layer.self_norm(x_BTD)
            seen = memory.with_new(at, layer.self_attention.keys_values(normed_BTD))
            x_BTD = x_BTD + layer.self_attention(normed_BTD, seen, bias)
            heard = memory.heard[at] or layer.cross_attention.keys_values(source_BSD)
            memory.heard[at] = heard
            x_BTD = x_BTD + layer.cross_attention(layer.cross_norm(x_BTD), heard, cross)
            x_BTD = layer.feed_forward(x_BTD, context)
        memory.length += decoder_ids_BT.shape[1]
        return self._logits(self.decoder.norm(x_BTD))

    def forward(
        self,
        input_ids_BS: Tensor,
        decoder_ids_BT: Tensor,
        real_BS: Tensor | None = None,
        routing: RoutingContext | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of a target given its source; both sides at once. `routing` is told of every decision."""
        source_BSD = self.encode(input_ids_BS, real_BS, routing)
        return self.decode(decoder_ids_BT, source_BSD, real_BS, context=routing, real_BT=real_BT)

    @torch.inference_mode()
    def generate(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """Greedy answer to one source, without the start token; ends after an end token.

        Raises InputError for a source that is none, and for more tokens than the model has positions for.
        """
        ids = checked_prompt(ids, max_new_tokens, self.spec.vocab_size)
        # The last one is said, not read.
        check_sines(max_new_tokens, self.spec)
        device = self.embed_tokens.weight.device
        source_1SD = self.encode(torch.tensor([ids], dtype=torch.long, device=device))
        memory, new = Memory(self.spec.decoder.num_layers), [self.spec.decoder_start_token_id]
        while len(new) <= max_new_tokens:
            fresh_11 = torch.tensor([new[-1:]], dtype=torch.long, device=device)
            new.append(int(self.decode(fresh_11, source_1SD, memory=memory)[0, -1].argmax()))
            if new[-1] in self.spec.eos_token_ids:
                break
        return new[1:]

    def _embedded(self, ids_BS: Tensor, start: int) -> Tensor:
        check_ids(ids_BS, self.spec.vocab_size)
        check_sines(start + ids_BS.shape[1], self.spec)
        x_BSD: Tensor = self.embed_tokens(ids_BS)
        if self.spec.scale_embedding:
            x_BSD = x_BSD * self.spec.hidden_size**0.5
        if self.spec.positions == "relative":
            return x_BSD
        return x_BSD + sines(ids_BS, start, self.spec, x_BSD.dtype)

    def _logits(self, hidden_BTD: Tensor) -> Tensor:
        if self.lm_head is not None:
            return product(hidden_BTD, self.lm_head.weight)
        if self.spec.family == "switch_transformers":
            # T5 with a tied head: the embedding is large, so what meets it is made small.
            hidden_BTD = hidden_BTD * self.spec.hidden_size**-0.5
        return product(hidden_BTD, self.embed_tokens.weight)


def _of_real(context: RoutingContext | None, real_BS: Tensor | None) -> RoutingContext:
    """The surroundings of one side's routers: its own tokens, and which of them are real."""
    return replace(context or RoutingContext(), real_T=None if real_BS is None else real_BS.flatten())


def _masked(bias: Tensor | None, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias with -inf where something must not be seen."""
    if bias is not None:
        return bias.masked_fill(hidden, NEG_INF)
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, NEG_INF)
