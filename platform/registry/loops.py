"""The store is swept: what nothing refers to goes after its time of grace."""

from __future__ import annotations

import logging

from common.loops import loop
from registry.collector import collect

log = logging.getLogger(__name__)


@loop("store", every_s=3600)
def sweep_store() -> None:
    """Remove the remains of broken uploads and objects that lost their last version; says what went."""
    collected = collect()
    if collected.removed or collected.num_parts:
        log.info(
            "the store gave up %d objects and %d parts, %d bytes",
            len(collected.removed),
            collected.num_parts,
            collected.num_bytes,
        )
