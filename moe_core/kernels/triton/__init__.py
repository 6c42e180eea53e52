"""Triton kernels for a mixture's experts on GPUs: gathered grouped products, fused SwiGLU, combine, and their gradients."""

from __future__ import annotations
