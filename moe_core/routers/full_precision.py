"""Gates keep float32 where autocast narrows the model around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def in_full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast on a device of this type; where there was none, one that does nothing.

    Widening what goes into a product is not enough: autocast narrows it again.
    """
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
