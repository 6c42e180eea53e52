"""Which decoders the native step computes, and what it is told of one: where each weight lies."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_core.engine.block_pool import BLOCK_TOKENS
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.experts import GroupedExperts
from moe_core.kernels.cpu.attach import (
    IN_PANELS,
    DecodeLinear,
    PanelDenseMlp,
    PanelEmbedding,
    PanelExperts,
    PanelLinear,
    PanelPackedExperts,
    PanelPackedLinear,
)
from moe_core.kernels.cpu.latent import PanelLatentAttention
from moe_core.kernels.cpu.panels import ExpertPanels, Panels
from moe_core.kernels.cpu.plan import (
    GatePlan,
    GatingPlan,
    HeadsPlan,
    LatentPlan,
    LayerPlan,
    ModelPlan,
    narrowed,
)
from moe_core.model.decoder import Block, Decoder
from moe_core.model.heads import LATENT_NORM_EPS, Attention
from moe_core.model.layers import DenseMlp, MoeMlp
from moe_core.model.rotary import Rotary, rotary_of
from moe_core.spec import MoeSpec


@dataclass(frozen=True, slots=True)
class HeldPlan:
    """The plan of a model and its cache for C, its layers, and what else it points to beside the model's weights."""

    plan: ModelPlan
    layers: ctypes.Array[LayerPlan]
    rotary: Rotary
    # What the plans of the gates point to, layer by layer. Numbers of a router that are written anew in a
    # model's memory are not seen before the next plan.
    gates: list[Mapping[str, Tensor]]

    @property
    def address(self) -> int:
        """Where the plan lies, for C."""
        return ctypes.addressof(self.plan)

    @classmethod
    def of(cls, model: Decoder, cache: PagedKVCache) -> HeldPlan:
        """Of a model that `is_known`; positions reach as far as the cache does."""
        spec = model.spec
        num_positions = min(spec.max_position_embeddings, cache.num_blocks * BLOCK_TOKENS)
        rotary = rotary_of(spec, torch.arange(num_positions), torch.bfloat16)
        blocks = [block for block in model.layers if isinstance(block, Block)]
        twins = None if spec.moe is None else spec.moe.twins
        # (E) int64: of each expert the lowest number among its twins.
        roots: dict[str, Tensor] = {} if twins is None else {"roots": torch.tensor(twins.roots)}
        gates: list[Mapping[str, Tensor]] = [
            {**narrowed(block.mlp.router.tensors), **roots} if isinstance(block.mlp, MoeMlp) else {}
            for block in blocks
        ]
        layers = (LayerPlan * len(blocks))(
            *(_layer_plan(block, cache, rotary, gate) for block, gate in zip(blocks, gates, strict=True))
        )
        embedding, embedding_panels = _places(model.embed_tokens)
        head, head_panels = _places(model.embed_tokens if model.lm_head is None else model.lm_head)
        plan = ModelPlan(
            embedding,
            embedding_panels,
            model.norm.weight.data_ptr(),
            head,
            head_panels,
            ctypes.addressof(layers),
            len(layers),
            spec.hidden_size,
            spec.vocab_size,
            spec.rms_norm_eps,
            float(spec.zero_centred_norms),
            int(spec.rope.interleaved),
        )
        return cls(plan, layers, rotary, gates)


def is_known(model: Decoder) -> bool:
    """Whether every part of a model is one that the native step computes, in bfloat16 on the CPU."""
    spec = model.spec
    tensors = [*model.parameters(), *model.buffers()]
    # Experts in panels keep parameters without memory; they are known by their class.
    held = [tensor for tensor in tensors if tensor.device.type != "meta"]
    return (
        model.dtype is torch.bfloat16
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in held)
        and (spec.moe is None or knows_mixture(spec.moe))
        and all(isinstance(block, Block) and _knows_block(block) for block in model.layers)
    )


def all_in_panels(model: Decoder) -> bool:
    """Whether no map of a known model lies in rows; those with an output for each head, or one alone, do not count."""
    maps: list[nn.Module] = [model.embed_tokens if model.lm_head is None else model.lm_head]
    for block in model.layers:
        assert isinstance(block, Block)
        # Latent attention is known in panels alone.
        if isinstance(block.attention, Attention):
            maps += [block.attention.qkv_proj, block.attention.o_proj]
        if isinstance(block.mlp, MoeMlp):
            maps += [
                block.mlp.experts,
                *([] if block.mlp.shared_expert is None else [block.mlp.shared_expert]),
            ]
        else:
            maps.append(block.mlp)
    return all(isinstance(module, IN_PANELS) for module in maps)


def knows_mixture(moe: MoeSpec) -> bool:
    """Whether the native step computes the gate of a mixture: any that is served token by token, without a capacity."""
    unlimited = moe.capacity is None or moe.capacity.eval_factor is None
    return unlimited and moe.gate.not_served is None


def _knows_block(block: Block) -> bool:
    """A block whose kernels are attached, with a feed-forward that they compute."""
    attention = block.attention
    maps = DecodeLinear | PanelLinear | PanelPackedLinear
    if isinstance(attention, Attention):
        attached = isinstance(attention.qkv_proj, maps)
    else:
        attached = isinstance(attention, PanelLatentAttention)
    return attached and _knows_feed_forward(block.mlp)


def _knows_feed_forward(mlp: nn.Module) -> bool:
    if isinstance(mlp, DenseMlp):
        return _knows_dense(mlp)
    if not isinstance(mlp, MoeMlp) or (mlp.shared_expert is not None and not _knows_dense(mlp.shared_expert)):
        return False
    experts, table_VK = mlp.experts, mlp.router.tensors.get("table")
    if table_VK is not None and not bool(((table_VK >= 0) & (table_VK < mlp.moe.num_experts)).all()):
        return False
    if isinstance(experts, PanelExperts | PanelPackedExperts):
        return True
    if not isinstance(experts, GroupedExperts) or experts.gate_up_bias_E2F is not None:
        return False
    # Rows of bfloat16, where torch keeps the products of many rows.
    return mlp.moe.quantisation is None and experts.kernel is None and experts.gating.kind == "silu"


def _knows_dense(mlp: DenseMlp) -> bool:
    return isinstance(mlp, PanelDenseMlp) or mlp.gating.kind == "silu"


def _layer_plan(block: Block, cache: PagedKVCache, rotary: Rotary, gate: Mapping[str, Tensor]) -> LayerPlan:
    plan = LayerPlan(
        input_norm=block.input_norm.weight.data_ptr(),
        mlp_norm=_address(block.mlp_norm),
    )
    if isinstance(block.attention, PanelLatentAttention):
        _tell_latent(plan, block.attention, cache, rotary)
    else:
        assert isinstance(block.attention, Attention)
        _tell_attention(plan, block.attention, cache, rotary)
    if isinstance(block.mlp, MoeMlp):
        _tell_mixture(plan, block.mlp, gate)
    else:
        _tell(plan, ("gate_up", "down"), block.mlp)
        plan.gating = GatingPlan.of(block.mlp.gating)
        plan.num_experts, plan.top_k, plan.num_ff = 1, 1, block.mlp.down_proj.weight.shape[1]
    return plan


def _tell_attention(plan: LayerPlan, attention: Attention, cache: PagedKVCache, rotary: Rotary) -> None:
    plan.heads = HeadsPlan.of(
        attention.num_heads,
        *cache.blocks(attention.layer),
        scale=attention.scale,
        window=attention.window,
        sinks_H=attention.sinks_H,
    )
    _tell_positions(plan, rotary.within(attention.window))
    _tell(plan, ("qkv",), attention.qkv_proj)
    _tell(plan, ("o",), attention.o_proj)
    plan.qkv_bias, plan.o_bias = _pointer(attention.qkv_proj.bias), _pointer(attention.o_proj.bias)
    plan.q_norm, plan.k_norm = _address(attention.q_norm), _address(attention.k_norm)
    plan.whole_norms = attention.kind.qk_norm == "projection"
    plan.clip = attention.kind.clip_qkv or 0.0
    plan.head_gate = _address(attention.g_proj)


def _tell_latent(
    plan: LayerPlan, attention: PanelLatentAttention, cache: PagedKVCache, rotary: Rotary
) -> None:
    rule, blocks = attention.rule, cache.blocks(attention.layer)
    plan.heads = HeadsPlan.of(attention.num_heads, *blocks, scale=rule.scale)
    _tell_positions(plan, rotary)
    _tell(plan, ("qkv",), attention.q_proj)
    _tell(plan, ("o",), attention.o_proj)
    plan.latent = LatentPlan(
        q_norm=_address(attention.q_a_norm),
        kv_down_panels=_places(attention.kv_a_proj)[1],
        kv_norm=_address(attention.kv_a_norm),
        up_keys=attention.panels.keys.address,
        up_values=attention.panels.values.address,
        q_rank=attention.mla.q_lora_rank or 0,
        eps=LATENT_NORM_EPS,
    )
    if attention.q_a_proj is not None:
        plan.latent.q_down_panels = _places(attention.q_a_proj)[1]


def _tell_positions(plan: LayerPlan, rotary: Rotary) -> None:
    plan.cos, plan.sin = rotary.cos_T1h.data_ptr(), rotary.sin_T1h.data_ptr()
    plan.turning = 2 * rotary.cos_T1h.shape[-1]


def _tell_mixture(plan: LayerPlan, mlp: MoeMlp, gate: Mapping[str, Tensor]) -> None:
    moe, experts, shared = mlp.moe, mlp.experts, mlp.shared_expert
    assert isinstance(experts, GroupedExperts | PanelPackedExperts)
    plan.num_experts, plan.top_k, plan.num_ff = moe.num_experts, moe.top_k, moe.moe_intermediate_size
    plan.moe_index = mlp.moe_index
    plan.gate = GatePlan.of(moe, gate)
    _tell(plan, ("gate_up", "down"), experts)
    plan.gating = GatingPlan.of(experts.gating, experts.gate_up_bias_E2F, experts.down_bias_ED)
    if shared is not None:
        _tell(plan, ("shared_gate_up", "shared_down"), shared)
        plan.shared_num_ff = shared.down_proj.weight.shape[1]
        plan.shared_gating = GatingPlan.of(shared.gating)
        plan.shared_gate = _address(mlp.shared_gate)


def _tell(plan: LayerPlan, names: tuple[str, ...], module: nn.Module) -> None:
    """Write where a module's weights lie, in panels or as rows, into the fields of those names."""
    panels: tuple[Panels, ...] = ()
    rows: tuple[Tensor, ...] = ()
    if isinstance(module, PanelLinear | PanelPackedLinear):
        panels = (module.panels,)
    elif isinstance(module, PanelDenseMlp | PanelExperts | PanelPackedExperts):
        experts: ExpertPanels = module.panels
        panels = (experts.gate_up, experts.down)
    elif isinstance(module, DenseMlp):
        rows = (module.gate_up_proj.weight, module.down_proj.weight)
    elif isinstance(module, GroupedExperts):
        rows = (module.gate_up_E2FD, module.down_EDF)
    else:
        rows = (module.get_parameter("weight"),)
    for name, own in zip(names, panels, strict=False):
        setattr(plan, f"{name}_panels", own.address)
    for name, weight in zip(names, rows, strict=False):
        setattr(plan, name, weight.data_ptr())


def _places(module: nn.Module) -> tuple[int | None, int | None]:
    """Where a single matrix lies: as rows, or in panels."""
    if isinstance(module, PanelEmbedding | PanelLinear | PanelPackedLinear):
        return None, module.panels.address
    return module.get_parameter("weight").data_ptr(), None


def _address(module: nn.Module | None) -> int | None:
    return None if module is None else module.get_parameter("weight").data_ptr()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
