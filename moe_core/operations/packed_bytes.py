"""What packing saves and costs: bytes of every tensor, and the error of a map."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.operations.parts import tensors_of

SIXTEEN_BITS = 2
# Scales and biases are small; anything else that is a float is an expert weight that was left out.
SMALL = re.compile(r"_scales\Z|_bias_(E2F|EF|ED)\Z")


def check_finite(weight: Tensor, sentence: str, **where: object) -> None:
    """Raise SpecError, with the sentence of that code, for weights that are NaN or infinite: no code stands for them."""
    # One pass in the usual case: NaN goes through to both ends, and infinity is one.
    if not weight.numel() or all(end.isfinite() for end in weight.detach().aminmax()):
        return
    raise SpecError.of(sentence, count=int((~weight.isfinite()).sum()), **where)


def lost_and_total(exact: Tensor, kept: Tensor) -> tuple[float, float]:
    """Squared norms of what packing changed, and of the map."""
    exact = exact.float()
    return float((kept - exact).square().sum()), float(exact.square().sum())


def bytes_report(model: nn.Module, num_weights: int) -> dict[str, Any]:
    """Bytes of every tensor as it is stored, and of the experts, which have so many weights, against 16 bits a weight."""
    stored = tensors_of(model)
    size = {name: tensor.numel() * tensor.element_size() for name, tensor in stored.items()}
    experts = {name: tensor for name, tensor in stored.items() if ".mlp.experts." in name}
    expert_bytes = sum(size[name] for name in experts)
    sixteen = num_weights * SIXTEEN_BITS
    left = [name for name, t in experts.items() if t.is_floating_point() and not SMALL.search(name)]
    names = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in stored.items()}
    return {
        "expert_bytes": expert_bytes,
        "expert_bytes_16_bit": sixteen,
        "saved": 1.0 - expert_bytes / sixteen,
        "bits_per_weight": 8 * expert_bytes / num_weights,
        "bytes_total": sum(size.values()),
        "not_packed": left,
        "tensors": {name: {"dtype": names[name], "bytes": size[name]} for name in stored},
    }
