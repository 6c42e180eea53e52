"""Lets a loaded decoder use the decode kernels; where they do not apply, each call falls back to torch by itself."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts, PackedExperts
from moe_core.experts.packed import MATRICES
from moe_core.kernels.cpu import experts
from moe_core.kernels.cpu.latent import LatentPanels, PanelLatentAttention
from moe_core.kernels.cpu.linear import linear, linear_to_float
from moe_core.kernels.cpu.native import Library, library
from moe_core.kernels.cpu.panels import ExpertPanels, Panels, bfloat16_panels, code_panels
from moe_core.kernels.gating import Gating
from moe_core.kernels.precision import has_tiles
from moe_core.model.decoder import Decoder
from moe_core.model.heads import Attention, LatentAttention
from moe_core.model.layers import DenseMlp, Embedding, Linear
from moe_core.model.packed_linear import PackedLinear
from moe_core.routers import Routing


class DecodeLinear(Linear):
    """A linear map that takes the compiled kernel for few tokens."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """x · weightᵀ + bias."""
        out_TO = linear(x_TD, self.weight)
        return out_TO if self.bias is None else out_TO + self.bias


class DecodeDenseMlp(DenseMlp):
    """A dense feed-forward as the one expert of a mixture: one call instead of five."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """down(silu(gate(x)) · up(x))."""
        gate_up_12FD, down_1DF = self.gate_up_proj.weight[None], self.down_proj.weight[None]
        ids_T1, weights_T1 = _the_one_expert(x_TD.shape[0])
        if not experts.supports(x_TD, gate_up_12FD, down_1DF, ids_T1):
            return super().forward(x_TD)
        return experts.swiglu_experts_cpu(x_TD, gate_up_12FD, down_1DF, ids_T1, weights_T1)


class PanelLinear(Linear):
    """A linear map in panels, for any number of tokens."""

    panels: Panels

    def forward(self, x_TD: Tensor) -> Tensor:
        """x · weightᵀ + bias; raises SpecError while gradients are recorded."""
        _refuse_gradients()
        out_TO = self.panels.map(x_TD)
        return out_TO if self.bias is None else out_TO + self.bias


class PanelPackedLinear(PackedLinear):
    """A linear map of 8 or 4 bits in panels; the buffers keep their names and shapes, and no memory."""

    panels: Panels

    def forward(self, x_TK: Tensor) -> Tensor:
        """x · weightᵀ + bias; raises SpecError while gradients are recorded."""
        _refuse_gradients()
        out_TO = self.panels.map(x_TK)
        return out_TO if self.bias is None else out_TO + self.bias


class PanelEmbedding(Embedding):
    """An embedding that is the output map too, in panels: held once, looked up and multiplied where it lies."""

    panels: Panels

    def forward(self, ids_T: Tensor) -> Tensor:
        """Rows of the given tokens: (T, D); raises SpecError while gradients are recorded."""
        _refuse_gradients()
        return self.panels.look_up(ids_T)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """(T, V) in bfloat16; raises SpecError while gradients are recorded."""
        _refuse_gradients()
        return self.panels.map(hidden_TD)


class PanelDenseMlp(DenseMlp):
    """A dense feed-forward in panels, as the one expert of a mixture."""

    panels: ExpertPanels

    def forward(self, x_TD: Tensor) -> Tensor:
        """down(gating(gate(x), up(x))); raises SpecError while gradients are recorded."""
        _refuse_gradients()
        return self.panels.run(x_TD, *_the_one_expert(x_TD.shape[0]), self.gating)


def _refuse_gradients() -> None:
    if torch.is_grad_enabled():
        raise SpecError("weights in panels cannot learn: load the model anew to train it")


class _InPanels:
    """What experts whose weights lie in panels have in common."""

    panels: ExpertPanels
    gating: Gating
    gate_up_bias_E2F: nn.Parameter | None
    down_bias_ED: nn.Parameter | None

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) bfloat16; raises SpecError while gradients are recorded."""
        _refuse_gradients()
        biases = (self.gate_up_bias_E2F, self.down_bias_ED)
        return self.panels.run(hidden_TD, routing.expert_ids_TK, routing.weights_TK, self.gating, *biases)


class PanelExperts(_InPanels, GroupedExperts):
    """bfloat16 experts in panels; the parameters keep their names and shapes, and no memory."""


class PanelPackedExperts(_InPanels, PackedExperts):
    """Experts of 8 or 4 bits in panels; the buffers keep their names and shapes, and no memory."""


# What `attach` makes of maps and experts whose weights it moves.
IN_PANELS = (PanelLinear, PanelPackedLinear, PanelEmbedding, PanelDenseMlp, PanelExperts, PanelPackedExperts)


def attach(model: nn.Module, num_threads: int, *, moves_experts: bool = True) -> str:
    """Make `model`'s maps and experts use the kernels; the instruction set in use, or "torch" without them.

    Weights of a bfloat16 model move into panels, layer by layer, so that they are held once; such a model can answer, but
    neither learn nor be saved. Without `moves_experts` experts stay where they are.
    """
    native = library()
    if native is None:
        return "torch"
    native.set_threads(num_threads)
    experts.register()
    bfloat16 = next(model.parameters()).dtype is torch.bfloat16
    panels = bfloat16 and panels_pay(native)
    plain = [module for module in model.modules() if isinstance(module, Attention)]
    for module in model.modules():
        if isinstance(module, PackedExperts | GroupedExperts) and not moves_experts:
            continue
        if type(module) is PackedExperts and bfloat16:
            _pack_codes(module)
        elif type(module) is GroupedExperts and panels and _fits_panels(module):
            _pack_bfloat16(module)
        elif type(module) is DenseMlp:
            _attach_dense(module, panels=panels)
        elif type(module) is LatentAttention and panels:
            _pack_latent(module)
    maps = [linear_map for attention in plain for linear_map in (attention.qkv_proj, attention.o_proj)]
    if isinstance(model, Decoder):
        maps += [] if model.lm_head is None else [model.lm_head]
        if model.lm_head is None and panels:
            _pack_embedding(model.embed_tokens)
    for linear_map in maps:
        if isinstance(linear_map, PackedLinear):
            if bfloat16:
                _pack_linear_codes(linear_map)
        elif panels:
            _pack_linear(linear_map)
    for module in model.modules():
        # Only the class changes: parameters, their names and their memory stay.
        if type(module) is Linear:
            module.__class__ = DecodeLinear
    return native.isa


def panels_pay(native: Library) -> bool:
    """Whether weights in bfloat16 are better held in panels than in rows.

    Where torch multiplies in tiles and panels do not, it is faster for many rows, and needs rows as they lie.
    """
    return native.isa == "amx" or not has_tiles()


def _fits_panels(module: GroupedExperts) -> bool:
    """Experts on the CPU, with the kernel left to choose."""
    # A model whose panels are mapped has no memory of its own.
    return module.kernel is None and module.down_EDF.device.type in ("cpu", "meta")


def _attach_dense(module: DenseMlp, *, panels: bool) -> None:
    if not panels:
        # Rows know silu alone.
        if module.gating.kind == "silu":
            module.__class__ = DecodeDenseMlp
        return
    gate_up, down = module.gate_up_proj, module.down_proj
    packed = bfloat16_panels(gate_up.weight[None], down.weight[None])
    for linear_map in (gate_up, down):
        _forget(linear_map, "weight")
    module.__class__ = PanelDenseMlp
    assert isinstance(module, PanelDenseMlp)
    module.panels = packed


def _pack_linear(module: Linear) -> None:
    panels = Panels.of_bfloat16(module.weight[None])
    _forget(module, "weight")
    module.__class__ = PanelLinear
    assert isinstance(module, PanelLinear)
    module.panels = panels


def _pack_latent(module: LatentAttention) -> None:
    panels = LatentPanels.of(module)
    _forget(module.kv_b_proj, "weight")
    for linear_map in (module.q_a_proj, module.q_proj, module.kv_a_proj, module.o_proj):
        if linear_map is not None:
            _pack_linear(linear_map)
    module.__class__ = PanelLatentAttention
    assert isinstance(module, PanelLatentAttention)
    module.panels = panels


def _pack_embedding(module: Embedding) -> None:
    panels = Panels.of_bfloat16(module.weight[None])
    _forget(module, "weight")
    module.__class__ = PanelEmbedding
    assert isinstance(module, PanelEmbedding)
    module.panels = panels


def _pack_linear_codes(module: PackedLinear) -> None:
    panels = Panels.of_codes(module.packed(), (1, module.width_out, module.width_in), module.quantisation)
    _forget_buffers(module)
    module.__class__ = PanelPackedLinear
    assert isinstance(module, PanelPackedLinear)
    module.panels = panels


def _forget_buffers(module: nn.Module) -> None:
    for name, buffer in list(module.named_buffers()):
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="meta"))


def logits_of(model: Decoder, hidden_TD: Tensor) -> Tensor:
    """Float32 logits (T, V) by whatever holds the output map of a decoder."""
    head = model.embed_tokens if model.lm_head is None else model.lm_head
    if isinstance(head, PanelEmbedding | PanelLinear | PanelPackedLinear):
        return head.panels.map(hidden_TD, torch.float32)
    return linear_to_float(hidden_TD, model.head_weight_VD)


def _forget(module: nn.Module, name: str) -> None:
    """Keep a parameter's name and shape, and give its memory back; whoever reads it by mistake is told by torch."""
    before = module.get_parameter(name)
    empty = torch.empty(before.shape, dtype=before.dtype, device="meta")
    setattr(module, name, nn.Parameter(empty, requires_grad=False))


def _pack_bfloat16(module: GroupedExperts) -> None:
    panels = bfloat16_panels(module.gate_up_E2FD, module.down_EDF)
    for name in ("gate_up_E2FD", "down_EDF"):
        _forget(module, name)
    module.__class__ = PanelExperts
    assert isinstance(module, PanelExperts)
    module.panels = panels


def _pack_codes(module: PackedExperts) -> None:
    num_ff, width = module.shapes["gate_up"][0] // 2, module.shapes["gate_up"][1]
    gate_up, down = (module.packed(name) for name in MATRICES)
    panels = code_panels(gate_up, down, width, num_ff, module.quantisation)
    _forget_buffers(module)
    module.__class__ = PanelPackedExperts
    assert isinstance(module, PanelPackedExperts)
    module.panels = panels


@cache
def _the_one_expert(num_tokens: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(num_tokens, 1, dtype=torch.int64), torch.ones(num_tokens, 1)
