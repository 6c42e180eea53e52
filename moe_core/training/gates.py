"""What a tuning run teaches of gates: their maps, tensors that learn beside these, and the balancing bias.

Shapes: T tokens, L expert layers, E experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from moe_core.model.decoder import Decoder
from moe_core.routers import load_of
from moe_core.routers.loss_free import moved_bias, remembered
from moe_core.routers.start import DRAWN
from moe_core.training.forward import Pass

BIAS = "selection_bias"


def seed_of(seed: int, *place: object) -> int:
    """A seed for one place of a run, so that what is drawn there hangs on nothing that came before."""
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def maps_of(model: Decoder) -> dict[str, Tensor]:
    """The maps from hidden state to logits by the names of the workbench: one a layer, of a hierarchy one a level."""
    return {
        f"{layer}.router" + ("" if name == "weight" else f".{name}"): tensor
        for layer, name, tensor in _learning(model)
        if name in DRAWN
    }


def other_tensors(model: Decoder) -> dict[str, Tensor]:
    """Tensors of gates that learn by gradients beside the maps, by layer and name."""
    return {f"{layer}.router.{name}": tensor for layer, name, tensor in _learning(model) if name not in DRAWN}


def _learning(model: Decoder) -> Iterator[tuple[int, str, Tensor]]:
    spec = model.spec
    for mlp in model.moe_layers():
        for tensor in mlp.moe.gate_tensors(spec.hidden_size, spec.vocab_size):
            if tensor.learns:
                yield mlp.layer, tensor.name, mlp.router.tensors[tensor.name]


class BalanceBias:
    """The bias that picks experts: moved against their load after each step, or taken from gates that solve it.

    With costs the load that moves it is work: choices times what one costs. Gates that solve it even choices.
    """

    def __init__(self, model: Decoder, rate: float, cost_E: Tensor | None) -> None:
        self.rate, self.cost_E = rate, cost_E
        self.biases = {
            mlp.layer: mlp.router.tensors[BIAS] for mlp in model.moe_layers() if BIAS in mlp.router.tensors
        }

    @torch.no_grad()
    def move(self, passes: Sequence[Pass]) -> None:
        """One step, by the choices of all lanes as gates wanted them."""
        for layer, bias_E in self.biases.items():
            routings = [passed.routings[layer] for passed in passes]
            found = [routing.statistics[BIAS] for routing in routings if BIAS in routing.statistics]
            if found:
                bias_E.copy_(remembered(bias_E, torch.stack(found).mean(0)))
            elif self.rate:
                loads = [load_of(passed.routings[layer], passed.real_T) for passed in passes]
                load_E = torch.stack(loads).sum(0).float()
                work_E = load_E if self.cost_E is None else load_E * self.cost_E
                bias_E.copy_(moved_bias(bias_E[None], work_E[None], self.rate)[0])

    def tensors(self) -> dict[str, Tensor]:
        """The biases by layer, for a checkpoint."""
        return {f"{layer}.{BIAS}": bias_E.detach().clone() for layer, bias_E in self.biases.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for layer, bias_E in self.biases.items():
            bias_E.copy_(tensors[f"{layer}.{BIAS}"])
