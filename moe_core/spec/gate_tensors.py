"""The tensors that a gate keeps: their names, shapes and whether they learn. One truth for building, saving and costs.

E experts, K top_k, D model width, V vocabulary, S slots, G groups, N domains of a hierarchical gate.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.gate import Gate, Hash, Hierarchical, LinearGate, NoisyTopk, Soft


@dataclass(frozen=True, slots=True)
class GateTensor:
    """One tensor of a gate, float32; in a table too, where every expert number below 1,024 is exact."""

    name: str
    shape: tuple[int, ...]
    # False for what is not moved by gradients: the balancing bias, a hash table.
    learns: bool = True
    is_table: bool = False

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def gate_tensors(
    gate: Gate,
    capacity: CapacitySpec | None,
    *,
    num_experts: int,
    top_k: int,
    hidden_size: int,
    vocab_size: int,
) -> tuple[GateTensor, ...]:
    """Every tensor of the gate of one layer, the map of hidden states to logits first."""
    tensors: list[GateTensor] = []
    if isinstance(gate, Soft):
        tensors.append(GateTensor("weight", (num_experts * gate.slots_per_expert, hidden_size)))
        if gate.normalise:
            tensors.append(GateTensor("scale", (1,)))
    elif isinstance(gate, Hash):
        if gate.weights == "learned":
            tensors.append(GateTensor("weight", (num_experts, hidden_size)))
        tensors.append(GateTensor("table", (vocab_size, top_k), learns=False, is_table=True))
    else:
        tensors.append(GateTensor("weight", (num_experts, hidden_size)))
    if isinstance(gate, Hierarchical):
        tensors.append(GateTensor("domain_weight", (gate.num_domains, hidden_size)))
        tensors.append(GateTensor("group_weight", (gate.num_groups, hidden_size)))
    if isinstance(gate, LinearGate) and gate.logit_bias:
        tensors.append(GateTensor("bias", (num_experts,)))
    if isinstance(gate, LinearGate | Hierarchical) and gate.selection_bias:
        tensors.append(GateTensor("selection_bias", (num_experts,), learns=False))
    if isinstance(gate, NoisyTopk):
        tensors.append(GateTensor("noise_weight", (num_experts, hidden_size)))
    if capacity is not None and capacity.overflow == "learned":
        tensors.append(GateTensor("overflow_weight", (num_experts, hidden_size)))
    return tuple(tensors)
