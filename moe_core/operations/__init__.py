"""Operations on experts: each takes a loaded model and a specification, and returns a model and a report.

The model that is given is left as it was; a report is plain data for JSON.
"""

from __future__ import annotations

from moe_core.operations.upcycle import upcycle

__all__ = ["upcycle"]
