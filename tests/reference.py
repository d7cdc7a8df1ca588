"""The sampling law in float64, as plain as it can be written."""

from __future__ import annotations

import numpy as np


def warp(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Temperature, then the smallest set of likeliest tokens whose mass reaches top_p. One row."""
    scaled = logits / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    num_kept = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-12)) + 1
    kept = np.zeros_like(p)
    kept[order[:num_kept]] = p[order[:num_kept]]
    return kept / kept.sum()
