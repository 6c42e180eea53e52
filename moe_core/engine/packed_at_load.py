"""Weights in 8 or 4 bits of a version that lies in 16: packed when an engine loads it.

Experts' neurons are levelled first, as `quantise` does where it is told to: the function stays, and packing loses less.
Latent attention and gated heads have maps that cannot be packed: they stay in 16 bits.

With a panel folder only the first start packs; the panels lie in a file of their own, as those of other weights do.
"""

from __future__ import annotations

from moe_core.kernels.cpu.native import library
from moe_core.model.decoder import Decoder
from moe_core.spec import ModelSpec, ServeSpec
from moe_core.spec.served import packing_for


def served_spec(stored: ModelSpec, spec: ServeSpec) -> ModelSpec:
    """The model that an engine computes of one that is stored so. Raises SpecError where it cannot be packed."""
    wanted = packing_for(stored, spec.weights)
    if wanted is None:
        return stored
    # Half a second of imports that other starts do without.
    from moe_core.operations.parts import foretold_spec

    return foretold_spec(stored, wanted)


def served_model(stored: Decoder, spec: ServeSpec) -> Decoder:
    """The decoder that an engine computes with. Raises SpecError where it cannot be packed."""
    wanted = packing_for(stored.spec, spec.weights)
    if wanted is None:
        return stored
    from moe_core.operations.level import level_all
    from moe_core.operations.quantise import pack

    if native := library():
        native.set_threads(spec.num_threads)
    # It was loaded for this engine alone, so that neurons may be levelled where they lie.
    level_all(stored.moe_layers())
    return pack(stored, wanted)
