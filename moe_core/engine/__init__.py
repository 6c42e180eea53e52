"""The serving engine: continuous batching over a paged key/value cache.

A step is: end what was cancelled or waited too long → plan (`scheduler`) → run the model (`runner`, `attention`,
`kv_cache`) → count (`routing_counts`, `stats`) → sample (`sampler`) → tell (`events`, `detokenizer`).
`engine` is that list; `loop` gives it a thread; `server` puts HTTP on a unix socket in front.
"""

from __future__ import annotations
