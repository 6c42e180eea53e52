"""What stands between the two halves of a gated feed-forward: silu, gelu, or one of two clamped forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from moe_core.spec import ModelSpec
from moe_core.spec.model import Activation


@dataclass(frozen=True, slots=True)
class Gating:
    """A function of gate and up, elementwise.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (silu, gelu); OpenAI 2025, gpt-oss model card (clamped);
    StepFun 2026, "Step 3.5 Flash", arXiv 2602.10604 (clamped_silu).
    """

    kind: Activation | Literal["clamped_silu"] = "silu"
    alpha: float = 1.702
    limit: float = 7.0

    @classmethod
    def of(cls, spec: ModelSpec, clamp: float = 0.0) -> Gating:
        """The gating that a model asks for, in a layer with this bound on it (0 for none)."""
        if clamp:
            return cls("clamped_silu", limit=clamp)
        return cls(spec.activation, spec.swiglu_alpha, spec.swiglu_limit)

    def __call__(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """act(gate) · up, in the dtype of the inputs."""
        if self.kind == "silu":
            return silu(gate_TF) * up_TF
        if self.kind == "gelu":
            return gelu(gate_TF) * up_TF
        if self.kind == "clamped_silu":
            return silu(gate_TF).clamp(max=self.limit) * up_TF.clamp(min=-self.limit, max=self.limit)
        gate_TF = gate_TF.clamp(max=self.limit)
        up_TF = up_TF.clamp(min=-self.limit, max=self.limit)
        return (up_TF + 1) * (gate_TF * torch.sigmoid(gate_TF * self.alpha))


PLAIN = Gating()
