"""Means along the sphere, as coefficients of the tensors: all of it follows from inner products.

With x = Σ c_i x_i, lengths and angles of x need the Gram matrix G_ij = <x_i, x_j> alone, so that a
mean of tensors of any size is decided on an n by n matrix.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_COLLINEAR = 0.9995  # above this cosine the arc is a line, as in mergekit
_NUM_ROUNDS = 50
_SMALL = 1e-12


def slerp_coefficients(gram: Vector, t: float) -> Vector:
    """Of two tensors [2]: the point at `t` of the way along the arc (Shoemake 1985)."""
    return _between(gram, np.array([1.0, 0.0]), np.array([0.0, 1.0]), t)


def repeated_coefficients(gram: Vector, weights: Vector) -> Vector:
    """Of n tensors [n]: each is blended into the mean of those before it, by its share."""
    mean: Vector = np.eye(len(weights))[0]
    total = float(weights[0])
    for place in range(1, len(weights)):
        total += float(weights[place])
        if weights[place]:
            mean = _between(gram, mean, np.eye(len(weights))[place], float(weights[place]) / total)
    return mean


def spherical_coefficients(gram: Vector, weights: Vector) -> Vector:
    """Of n tensors [n]: the Karcher mean of their directions, as long as they are on average.

    The direction whose weighted squared angles to all others are least, found by averaging in the
    tangent space (Buss and Fillmore 2001).
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    shares = np.where(norms > _SMALL, weights, 0)
    if not shares.any():
        return np.zeros(len(weights))
    shares = shares / shares.sum()
    scale = 1 / np.maximum(norms, _SMALL)
    unit = np.eye(len(weights)) * scale  # row i: the coefficients of direction i
    mean = _normalized(gram, shares @ unit)
    for _ in range(_NUM_ROUNDS):
        cosines = np.clip(unit @ gram @ mean, -1, 1)
        angles = np.arccos(cosines)
        stretch = np.where(angles > 1e-6, angles / np.maximum(np.sin(angles), _SMALL), 1.0)
        tangent = (shares * stretch) @ (unit - cosines[:, None] * mean)
        step = _length(gram, tangent)
        if step < _SMALL:
            break
        mean = _normalized(gram, np.cos(step) * mean + np.sin(step) / step * tangent)
    found: Vector = float(weights / weights.sum() @ norms) * mean
    return found


def _between(gram: Vector, first: Vector, second: Vector, t: float) -> Vector:
    product = _length(gram, first) * _length(gram, second)
    cosine = float(np.clip(first @ gram @ second / product, -1, 1)) if product > _SMALL else 1.0
    if abs(cosine) > _COLLINEAR:
        return (1 - t) * first + t * second
    angle = float(np.arccos(cosine))
    found: Vector = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    return found


def _normalized(gram: Vector, coefficients: Vector) -> Vector:
    length = _length(gram, coefficients)
    found: Vector = coefficients / length if length > _SMALL else coefficients
    return found


def _length(gram: Vector, coefficients: Vector) -> float:
    return math.sqrt(max(float(coefficients @ gram @ coefficients), 0.0))
