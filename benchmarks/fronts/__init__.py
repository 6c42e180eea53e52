"""Thin HTTP fronts for peers that have no server of their own; they run in the peers' environments, without ours."""
