"""The one-machine stack: finds or starts PostgreSQL and Valkey, and supervises web, reconciler and worker.

Importable before Django is set up: nothing in here imports Django at module level.
"""
