"""Experts whose weights are held in mxfp4, as gpt-oss releases them: a quarter of bfloat16's memory, and nothing lost.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, U experts in use.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.experts.grouped import GroupedExperts
from moe_core.kernels import dispatch
from moe_core.kernels.mxfp4 import GROUP, Mxfp4, dequantise_mxfp4, quantise_mxfp4
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.routers import Routing


class Mxfp4Experts(nn.Module):
    """All routed experts of a layer as codes and exponents; biases stay in floats. It can answer, not learn."""

    def __init__(self, experts: GroupedExperts, gate_up: Mxfp4, down: Mxfp4) -> None:
        super().__init__()
        self.gating = experts.gating
        self.gate_up_bias_E2F, self.down_bias_ED = experts.gate_up_bias_E2F, experts.down_bias_ED
        for name, weight in (("gate_up", gate_up), ("down", down)):
            self.register_buffer(f"{name}_codes", weight.codes)
            self.register_buffer(f"{name}_exponents", weight.exponents)
        # As in `GroupedExperts`; "torch" widens always.
        self.kernel: str | None = experts.kernel
        # "mxfp8" rounds activations to eight bits too, for chips that multiply those with four.
        self.activations: Literal["plain", "mxfp8"] = "plain"

    @classmethod
    def of(cls, experts: GroupedExperts) -> Mxfp4Experts | None:
        """The same experts in mxfp4; None where their weights would not stay exactly what they are."""
        weights = [_exact(weight) for weight in (experts.gate_up_E2FD, experts.down_EDF)]
        gate_up, down = weights
        return None if gate_up is None or down is None else cls(experts, gate_up, down)

    @property
    def num_experts(self) -> int:
        """How many experts the layer holds."""
        return self.get_buffer("down_codes").shape[0]

    @property
    def gate_up_E2FD(self) -> Tensor:
        """Experts in mxfp4 have no weights that could learn: raises SpecError."""
        raise self._packed_away()

    @property
    def down_EDF(self) -> Tensor:
        """Experts in mxfp4 have no weights that could learn: raises SpecError."""
        raise self._packed_away()

    def weight(self, name: str) -> Mxfp4:
        """A map as it is held: "gate_up" (E, 2F, D), "down" (E, D, F)."""
        return Mxfp4(self.get_buffer(f"{name}_codes"), self.get_buffer(f"{name}_exponents"))

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) in the dtype of the input.

        A GPU computes from the codes; elsewhere the experts in use are widened, and only those.
        """
        ids_TK, weights_TK = routing.expert_ids_TK, routing.weights_TK
        if self._on_codes(hidden_TD, ids_TK):
            from moe_core.kernels.triton.mxfp4 import mxfp4_experts

            held = (self.weight("gate_up"), self.weight("down"), ids_TK, weights_TK, self.gating)
            return mxfp4_experts(
                hidden_TD, *held, self.gate_up_bias_E2F, self.down_bias_ED, activations=self.activations
            )
        used_U, place_N = torch.unique(ids_TK.clamp(min=0), return_inverse=True)
        here_TK = torch.where(ids_TK < 0, -1, place_N.view(ids_TK.shape))
        gate_up, down = (
            dequantise_mxfp4(self.weight(name)[used_U], hidden_TD.dtype) for name in ("gate_up", "down")
        )
        biases = [
            None if bias is None else bias[used_U] for bias in (self.gate_up_bias_E2F, self.down_bias_ED)
        ]
        return gated_experts_torch(hidden_TD, gate_up, down, here_TK, weights_TK, self.gating, *biases)

    def _on_codes(self, hidden_TD: Tensor, expert_ids_TK: Tensor) -> bool:
        """Whether a kernel takes the codes as they lie."""
        if not hidden_TD.is_cuda or self.kernel not in (None, "triton") or not dispatch.has_triton():
            return False
        from moe_core.kernels.triton.mxfp4 import supports

        return supports(hidden_TD, expert_ids_TK, self.gating)

    def _packed_away(self) -> SpecError:
        return SpecError(
            "the experts are held in mxfp4 for answering and cannot be changed; load the model again to change it"
        )


def _exact(weight_ERC: Tensor) -> Mxfp4 | None:
    """A weight in mxfp4, one expert at a time; None where anything would be rounded."""
    if weight_ERC.shape[-1] % GROUP:
        return None
    parts = []
    for weight_RC in weight_ERC.detach():
        part = quantise_mxfp4(weight_RC)
        if not torch.equal(dequantise_mxfp4(part, weight_RC.dtype), weight_RC):
            return None
        parts.append(part)
    codes, exponents = (
        torch.stack([getattr(part, name) for part in parts]) for name in ("codes", "exponents")
    )
    return Mxfp4(codes, exponents)


@torch.no_grad()
def hold_in_mxfp4(model: nn.Module) -> int:
    """Hold those layers' experts in mxfp4 whose weights are just that, as gpt-oss' are; how many layers they were.

    The model answers the same; it can neither learn nor be saved afterwards.
    """
    found = 0
    for module in model.modules():
        experts = getattr(module, "experts", None)
        if type(experts) is not GroupedExperts:
            continue
        held = Mxfp4Experts.of(experts)
        if held is not None:
            module.experts = held
            found += 1
    return found
