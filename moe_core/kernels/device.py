"""Where a model computes: the GPU where torch has one, else the CPU."""

from __future__ import annotations

from typing import Literal

import torch

from moe_core.errors import SpecError

DeviceName = Literal["auto", "cpu", "cuda"]


def chosen_device(wanted: DeviceName) -> torch.device:
    """The device for "auto", "cpu" or "cuda" ("cuda" is torch's name for ROCm devices too).

    Raises SpecError for "cuda" where torch finds none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SpecError(
            'device ("cuda") is asked for and torch finds no GPU: check the driver and that torch is not a CPU build, '
            'or choose "cpu" or "auto"'
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
