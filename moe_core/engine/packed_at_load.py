"""Weights in 8 or 4 bits of a version that lies in 16: packed when an engine loads it.

Latent attention and gated heads have maps that cannot be packed: they stay in 16 bits.

With a panel folder only the first start packs; the panels lie in a file of their own, as those of other weights do.
"""

from __future__ import annotations

from moe_core.errors import SpecError
from moe_core.kernels.cpu.library import library
from moe_core.model.decoder import Decoder
from moe_core.spec import ModelSpec, ServeSpec
from moe_core.spec.foresee import packing_at_load
from moe_core.spec.operations import QuantiseSpec


def served_spec(stored: ModelSpec, spec: ServeSpec) -> ModelSpec:
    """The model that an engine computes of one that is stored so. Raises SpecError where it cannot be packed."""
    wanted = _wanted(stored, spec)
    if wanted is None:
        return stored
    # Half a second of imports that other starts do without.
    from moe_core.operations.parts import foretold_spec

    return foretold_spec(stored, wanted)


def served_model(stored: Decoder, spec: ServeSpec) -> Decoder:
    """The decoder that an engine computes with. Raises SpecError where it cannot be packed."""
    wanted = _wanted(stored.spec, spec)
    if wanted is None:
        return stored
    from moe_core.operations.quantise import pack

    if native := library():
        native.set_threads(spec.num_threads)
    return pack(stored, wanted)


def _wanted(stored: ModelSpec, spec: ServeSpec) -> QuantiseSpec | None:
    if spec.weights == "stored":
        return None
    packed = stored.moe.quantisation if stored.moe else None
    if stored.moe is None or packed is not None:
        state = f"is packed in {packed.bits} bits already" if packed else "has no experts"
        raise SpecError(
            f"weights {spec.weights!r} are packed from experts in 16 bits, and this version {state}; leave weights 'stored'"
        )
    return packing_at_load(stored, spec.weights)
