"""Chooses the expert kernel: the first registered one that supports the call, else the torch path.

Shapes: T tokens, D model width, E experts, K top_k, F expert width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import util
from typing import Protocol

from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.reference import swiglu_experts_reference
from moe_core.kernels.torch_grouped import swiglu_experts_torch


class ExpertsKernel(Protocol):
    """out_TD = sum over k of weights_TK · down(silu(gate(x)) · up(x)) with the experts of expert_ids_TK.

    -1 in the place of an id is no expert: nothing is added, whatever the weight."""

    def __call__(
        self,
        hidden_TD: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        expert_ids_TK: Tensor,
        weights_TK: Tensor,
    ) -> Tensor: ...


class SupportsCall(Protocol):
    """Tells whether a kernel takes these very tensors (dtype, device, strides, autograd, sizes)."""

    def __call__(
        self, hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor
    ) -> bool: ...


@dataclass(frozen=True, slots=True)
class RegisteredKernel:
    """A kernel with its name and its conditions."""

    name: str
    call: ExpertsKernel
    supports: SupportsCall


def _always(hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor) -> bool:
    return True


def _on_request(hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor) -> bool:
    return False


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is looked for once and not imported."""
    return util.find_spec("triton") is not None


def _triton_experts(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor
) -> Tensor:
    # Imported at the first use: a CPU-only installation may lack triton, and loading it takes half a second.
    from moe_core.kernels.triton.experts import swiglu_experts_triton

    return swiglu_experts_triton(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK)


def _triton_supports(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor
) -> bool:
    if not hidden_TD.is_cuda or not has_triton():
        return False
    from moe_core.kernels.triton.experts import supports

    return supports(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK)


# Asked in this order; the torch path takes everything, the reference only comes when it is named.
_KERNELS: list[RegisteredKernel] = [
    RegisteredKernel("triton", _triton_experts, _triton_supports),
    RegisteredKernel("torch", swiglu_experts_torch, _always),
    RegisteredKernel("reference", swiglu_experts_reference, _on_request),
]


def register(kernel: RegisteredKernel) -> None:
    """Put a kernel before the others; a second registration of a name replaces the first."""
    _KERNELS[:] = [kernel, *(known for known in _KERNELS if known.name != kernel.name)]


def kernel_names() -> tuple[str, ...]:
    """Names of the kernels at hand, in the order of preference."""
    return tuple(kernel.name for kernel in _KERNELS)


def swiglu_experts(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    *,
    kernel: str | None = None,
) -> Tensor:
    """Run the chosen experts with the best kernel at hand, or with the one named; returns (T, D).

    Raises SpecError for shapes that do not fit and for an unknown kernel name.
    """
    _check(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK)
    chosen = _named(kernel) if kernel else _best(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK)
    return chosen.call(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK)


def _best(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor
) -> RegisteredKernel:
    return next(k for k in _KERNELS if k.supports(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK))


def _named(name: str) -> RegisteredKernel:
    for known in _KERNELS:
        if known.name == name:
            return known
    raise SpecError(f"no expert kernel is named {name!r}; there are: {', '.join(kernel_names())}")


def _check(x_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> None:
    num_experts, width, num_ff = down_EDF.shape
    fits = (
        gate_up_E2FD.shape == (num_experts, 2 * num_ff, width)
        and x_TD.ndim == 2
        and x_TD.shape[1] == width
        and ids_TK.shape == weights_TK.shape
        and ids_TK.shape[0] == x_TD.shape[0]
    )
    if not fits:
        raise SpecError(
            f"hidden {tuple(x_TD.shape)}, gate_up {tuple(gate_up_E2FD.shape)}, down {tuple(down_EDF.shape)}, "
            f"ids {tuple(ids_TK.shape)} and weights {tuple(weights_TK.shape)} do not fit together: "
            "(T, D), (E, 2F, D), (E, D, F), (T, K), (T, K)"
        )
