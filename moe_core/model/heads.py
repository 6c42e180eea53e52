"""The projections around attention: heads with keys of their own, and heads that share one latent.

Shapes: T tokens, D model width, H query heads, G key-value heads, d head_dim, n values without and p with positions of
a latent head's query, e width of a value, r rank of the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.model.context import AttentionContext, AttentionRule
from moe_core.model.layers import Linear, RmsNorm, norm_of
from moe_core.model.packed_linear import PackedLinear
from moe_core.model.rotary import Rotary
from moe_core.spec import ModelSpec


def _map(
    spec: ModelSpec, width_in: int, width_out: int, dtype: torch.dtype, *, bias: bool
) -> Linear | PackedLinear:
    packing = spec.moe.attention_quantisation if spec.moe else None
    if packing is None:
        return Linear(width_in, width_out, dtype, bias=bias)
    return PackedLinear(width_in, width_out, packing, dtype, bias=bias)


class Attention(nn.Module):
    """Projections of one layer's attention; the context does the attending."""

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.kind = layer, spec.attention
        self.num_heads, self.num_kv, self.head_dim = (
            spec.num_heads_of(layer),
            spec.num_key_value_heads,
            spec.head_dim,
        )
        rows = (self.num_heads + 2 * self.num_kv) * spec.head_dim
        width, queries = spec.hidden_size, self.num_heads * spec.head_dim
        self.qkv_proj = _map(spec, width, rows, dtype, bias=self.kind.qkv_bias)
        self.o_proj = _map(spec, queries, width, dtype, bias=self.kind.o_bias)
        # "head": one norm for each head by itself; "projection": one over all heads of queries, or of keys.
        self.q_norm: RmsNorm | None = None
        self.k_norm: RmsNorm | None = None
        if self.kind.qk_norm != "none":
            whole = self.kind.qk_norm == "projection"
            q_width, k_width = (self.num_heads, self.num_kv) if whole else (1, 1)
            self.q_norm = norm_of(spec, q_width * spec.head_dim, dtype)
            self.k_norm = norm_of(spec, k_width * spec.head_dim, dtype)
        self.sinks_H = nn.Parameter(torch.empty(self.num_heads, dtype=dtype)) if self.kind.sinks else None
        self.g_proj = Linear(spec.hidden_size, self.num_heads, dtype) if self.kind.head_gate else None
        self.scale = spec.head_dim**-0.5
        self.window = self.kind.window_of(layer)

    def forward(self, x_TD: Tensor, rotary: Rotary, context: AttentionContext) -> Tensor:
        """Project, rotate queries and keys together, attend, project back."""
        heads_qk = self.num_heads + self.num_kv
        qkv = self.qkv_proj(x_TD).view(x_TD.shape[0], -1, self.head_dim)
        qk_THd, v_TGd = qkv.split([heads_qk, self.num_kv], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            qk_THd = self._normed(qk_THd, self.q_norm, self.k_norm)
        if self.kind.clip_qkv is not None:
            clip = self.kind.clip_qkv
            qk_THd, v_TGd = qk_THd.clamp(-clip, clip), v_TGd.clamp(-clip, clip)
        qk_THd = rotary.within(self.window).turn(qk_THd)
        rule = AttentionRule(self.scale, self.window, self.sinks_H)
        q_THd, k_TGd = qk_THd.split([self.num_heads, self.num_kv], dim=1)
        out_THd = context.attend(self.layer, q_THd, k_TGd, v_TGd, rule)
        if self.g_proj is not None:
            out_THd = out_THd * torch.sigmoid(self.g_proj(x_TD))[..., None]
        projected: Tensor = self.o_proj(out_THd.reshape(x_TD.shape[0], -1))
        return projected

    def _normed(self, qk_THd: Tensor, q_norm: RmsNorm, k_norm: RmsNorm) -> Tensor:
        q_THd, k_TGd = qk_THd[:, : self.num_heads], qk_THd[:, self.num_heads :]
        if self.kind.qk_norm == "head":
            return torch.cat([q_norm(q_THd), k_norm(k_TGd)], dim=1)
        flat = torch.cat([q_norm(q_THd.flatten(1)), k_norm(k_TGd.flatten(1))], dim=1)
        return flat.view(qk_THd.shape)


class LatentAttention(nn.Module):
    """DeepSeek's multi-head latent attention.

    A context that keeps latents gets one key-value head of r + p values, and the maps up to keys and values are taken
    into queries and outputs; any other gets whole keys and values, which is cheaper for many queries.
    Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, sections 2.1.2 and 2.1.3.
    """

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        mla = spec.attention.mla
        assert mla is not None
        self.layer, self.mla, self.num_heads = layer, mla, spec.num_attention_heads
        width, queries = spec.hidden_size, self.num_heads * spec.head_dim
        self.q_a_proj: Linear | None = None
        self.q_a_norm: RmsNorm | None = None
        if mla.q_lora_rank is not None:
            self.q_a_proj = Linear(width, mla.q_lora_rank, dtype)
            self.q_a_norm = RmsNorm(mla.q_lora_rank, LATENT_NORM_EPS, dtype)
        self.q_proj = Linear(mla.q_lora_rank or width, queries, dtype)
        self.kv_a_proj = Linear(width, mla.kv_lora_rank + mla.qk_rope_head_dim, dtype)
        self.kv_a_norm = RmsNorm(mla.kv_lora_rank, LATENT_NORM_EPS, dtype)
        both = mla.qk_nope_head_dim + mla.v_head_dim
        self.kv_b_proj = Linear(mla.kv_lora_rank, self.num_heads * both, dtype)
        self.o_proj = Linear(self.num_heads * mla.v_head_dim, width, dtype)
        self.rule = AttentionRule(spec.head_dim**-0.5 * spec.rope.softmax_factor)

    def forward(self, x_TD: Tensor, rotary: Rotary, context: AttentionContext) -> Tensor:
        """Project down, rotate the part that carries positions, attend, project back."""
        mla, num_tokens = self.mla, x_TD.shape[0]
        low_T = x_TD if self.q_a_proj is None or self.q_a_norm is None else self.q_a_norm(self.q_a_proj(x_TD))
        q_THd = self.q_proj(low_T).view(num_tokens, self.num_heads, -1)
        q_THn, q_THp = q_THd.split([mla.qk_nope_head_dim, mla.qk_rope_head_dim], dim=-1)
        c_Tr, k_Tp = self.kv_a_proj(x_TD).split([mla.kv_lora_rank, mla.qk_rope_head_dim], dim=-1)
        c_Tr = self.kv_a_norm(c_Tr)
        q_THp, k_T1p = rotary.turn(q_THp), rotary.turn(k_Tp[:, None])
        attend = self._attend_latent if context.keeps_latents else self._attend_expanded
        out_THe = attend(q_THn, q_THp, c_Tr, k_T1p, context)
        projected: Tensor = self.o_proj(out_THe.reshape(num_tokens, -1))
        return projected

    def _attend_expanded(
        self, q_THn: Tensor, q_THp: Tensor, c_Tr: Tensor, k_T1p: Tensor, context: AttentionContext
    ) -> Tensor:
        kv = self.kv_b_proj(c_Tr).view(c_Tr.shape[0], self.num_heads, -1)
        k_THn, v_THe = kv.split([self.mla.qk_nope_head_dim, self.mla.v_head_dim], dim=-1)
        k_THd = torch.cat([k_THn, k_T1p.expand(-1, self.num_heads, -1)], dim=-1)
        return context.attend(self.layer, torch.cat([q_THn, q_THp], dim=-1), k_THd, v_THe, self.rule)

    def _attend_latent(
        self, q_THn: Tensor, q_THp: Tensor, c_Tr: Tensor, k_T1p: Tensor, context: AttentionContext
    ) -> Tensor:
        up_Hxr = self.kv_b_proj.weight.view(self.num_heads, -1, self.mla.kv_lora_rank)
        up_Hnr, up_Her = up_Hxr.split([self.mla.qk_nope_head_dim, self.mla.v_head_dim], dim=1)
        q_THr = torch.einsum("thn,hnr->thr", q_THn, up_Hnr)
        q_THx, c_T1r = torch.cat([q_THr, q_THp], dim=-1), c_Tr[:, None]
        out_THr = context.attend(self.layer, q_THx, torch.cat([c_T1r, k_T1p], dim=-1), c_T1r, self.rule)
        return torch.einsum("thr,her->the", out_THr, up_Her)


# transformers and DeepSeek's own code leave these two norms at their default, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6
