"""Expert kernels: the plain truth in `reference`, the torch path, and the choice between them in `dispatch`."""

from __future__ import annotations
