"""Our experts and our dispatch inside other libraries; each module asks for its library only when it is imported."""

from __future__ import annotations
