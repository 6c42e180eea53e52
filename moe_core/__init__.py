"""Mixture-of-experts models: specifications, routers, experts, decoders, checkpoints, training, serving.

`moe_core.spec`, `moe_core.errors` and `moe_core.strict_json` import no torch; the names below do, when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_core.checkpoint.public import load, save
    from moe_core.model.decoder import Decoder
    from moe_core.model.seq2seq import EncoderDecoder

__all__ = ["Decoder", "EncoderDecoder", "load", "save"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("load", "save"):
        from moe_core.checkpoint import public

        return getattr(public, name)
    if name == "Decoder":
        from moe_core.model.decoder import Decoder

        return Decoder
    if name == "EncoderDecoder":
        from moe_core.model.seq2seq import EncoderDecoder

        return EncoderDecoder
    raise AttributeError(f"module 'moe_core' has no attribute {name!r}")
