"""A gate of the native step asked by itself: which experts, with which weights."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from moe_core.engine.native_prior import NativePrior
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.plan import GatePlan, LayerPlan, StepPlan
from moe_core.model.domain_prior import DomainPrior
from moe_core.spec import MoeSpec


def natively_chosen(
    moe: MoeSpec,
    tensors: Mapping[str, Tensor],
    x_TD: Tensor,
    *,
    prior: DomainPrior | None = None,
    domain_T: Tensor | None = None,
    token_ids_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ids and weights (T, K) of inputs in bfloat16, in the first expert layer."""
    native, tables, num_tokens = library(), NativePrior.of(prior), len(x_TD)
    assert native is not None
    assert x_TD.dtype is torch.bfloat16
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if moe.twins is not None:
        tensors["roots"] = torch.tensor(moe.twins.roots)
    domains = [-1] * num_tokens if domain_T is None else domain_T.tolist()
    rows_T = torch.tensor([0 if tables is None else tables.row(domain) for domain in domains])
    words_T = torch.zeros(num_tokens, dtype=torch.int64) if token_ids_T is None else token_ids_T.contiguous()
    layer = LayerPlan(num_experts=moe.num_experts, top_k=moe.top_k, gate=GatePlan.of(moe, tensors))
    step = StepPlan(ids=words_T.data_ptr(), prior_row=rows_T.data_ptr(), num_tokens=num_tokens)
    if tables is not None:
        tables.tell(step)
    ids_TK = torch.full((num_tokens, moe.top_k), -7)
    weights_TK = torch.full((num_tokens, moe.top_k), -7.0)
    native.choose(
        ctypes.addressof(layer), ctypes.addressof(step), x_TD.contiguous().data_ptr(), x_TD.shape[1],
        ids_TK.data_ptr(), weights_TK.data_ptr(),
    )  # fmt: skip
    return ids_TK, weights_TK
