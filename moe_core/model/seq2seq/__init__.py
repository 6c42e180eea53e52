"""Encoder–decoders: a small sibling of the decoder, with the same maps, norms, routers and experts."""

from __future__ import annotations

from moe_core.model.seq2seq.model import EncoderDecoder

__all__ = ["EncoderDecoder"]
