"""Chooses the expert kernel: the first registered one that supports the call, else the torch path.

Shapes: T tokens, D model width, E experts, K top_k, F expert width. Where experts come and go (`slots_E`), weights lie in
the N slots of a pool that many layers share: N in the place of E in the shapes of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import util
from typing import Protocol

import torch
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


class PooledKernel(Protocol):
    """The same of weights in a pool: expert e's lie in slot slots_E[e], and E is that many."""

    def __call__(
        self,
        hidden_TD: Tensor,
        gate_up_N2FD: Tensor,
        down_NDF: Tensor,
        expert_ids_TK: Tensor,
        weights_TK: Tensor,
        slots_E: Tensor,
        /,
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
    # None for a kernel that does not read from pools.
    pooled: PooledKernel | None = None


def _always(hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor) -> bool:
    return True


def _on_request(hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor) -> bool:
    return False


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is looked for once and not imported."""
    return util.find_spec("triton") is not None


def _triton_experts(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    slots_E: Tensor | None = None,
) -> Tensor:
    # Imported at the first use: a CPU-only installation may lack triton, and loading it takes half a second.
    from moe_core.kernels.triton.experts import swiglu_experts_triton

    return swiglu_experts_triton(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK, slots_E)


def _triton_supports(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor
) -> bool:
    if not hidden_TD.is_cuda or not has_triton():
        return False
    from moe_core.kernels.triton.experts import supports

    return supports(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK)


# Asked in this order; the torch path takes everything, the reference only comes when it is named.
_KERNELS: list[RegisteredKernel] = [
    RegisteredKernel("triton", _triton_experts, _triton_supports, _triton_experts),
    RegisteredKernel("torch", swiglu_experts_torch, _always, swiglu_experts_torch),
    RegisteredKernel("reference", swiglu_experts_reference, _on_request, swiglu_experts_reference),
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
    slots_E: Tensor | None = None,
) -> Tensor:
    """Run the chosen experts with the best kernel at hand, or with the one named; returns (T, D).

    With `slots_E` (E,) int64 the weights of expert e lie in slot slots_E[e] of a pool; an expert without rows may have none
    (-1). Rows, tiles and order of sums are those of weights that lie by expert, and so is the output, to the bit.
    Raises SpecError for shapes that do not fit, for an unknown kernel name, and for a pool with a kernel that knows none, or
    where a gradient is wanted.
    """
    packed = (hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK)
    _check(*packed, weights_TK)
    if slots_E is None:
        chosen = _named(kernel) if kernel else _best(*packed)
        return chosen.call(*packed, weights_TK)
    # A pool has a slot for each expert of a layer at least: what is supported hangs on one layer's weights.
    num_experts = slots_E.shape[0]
    layer = (hidden_TD, gate_up_E2FD[:num_experts], down_EDF[:num_experts], expert_ids_TK)
    chosen = _named(kernel) if kernel else _best(*layer, pooled=True)
    if chosen.pooled is None:
        raise SpecError(
            f"kernel {chosen.name!r} does not read experts from a pool; let the dispatcher choose"
        )
    _check_pool(slots_E, gate_up_E2FD, hidden_TD)
    return chosen.pooled(*packed, weights_TK, slots_E)


def _best(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    *,
    pooled: bool = False,
) -> RegisteredKernel:
    known = [kernel for kernel in _KERNELS if kernel.pooled or not pooled]
    return next(k for k in known if k.supports(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK))


def _check_pool(slots_E: Tensor, pool_N2FD: Tensor, hidden_TD: Tensor) -> None:
    if slots_E.dtype != torch.int64 or slots_E.ndim != 1 or slots_E.shape[0] > pool_N2FD.shape[0]:
        raise SpecError(
            f"slots {tuple(slots_E.shape)} {slots_E.dtype} must be (E,) int64 with at most as many experts as the pool of "
            f"{pool_N2FD.shape[0]} has slots"
        )
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or pool_N2FD.requires_grad):
        raise SpecError("experts that come and go can answer, not learn; load the model whole to train it")


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
