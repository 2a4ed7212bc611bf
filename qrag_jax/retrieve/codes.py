"""int8 codes of vectors, with bounds: how far an inner product of codes can be from the one of the vectors.

A vector x is coded as integers c and a scale, x' = scale * c; its ``error`` |x - x'| is measured when it is stored. A query q is coded in
the same way, and |q - q'| is measured, too. By Cauchy and Schwarz

    |<q, x> - <q', x'>| <= |q| error + |q - q'| |x'|.

<q', x'> needs products of integers only, which are exact, and reads a quarter of the bytes of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numkong
import numpy as np
from jaxtyping import Float, Float32, Int8

LEVELS = 127
"""The largest integer of a code. The steps of a row go up to its largest magnitude."""
ROUNDING = 2e-6  # relative error of the float32 arithmetic around the integers; below 1e-6 by counting operations
TINY = np.finfo(np.float32).tiny  # numbers below may count as 0
BLOCK = 2048  # rows in float64 at once


@dataclass(frozen=True)
class Codes:
    """R coded rows. ``scales`` * ``codes`` differs from the rows by vectors of length ``errors`` at most."""

    codes: Int8[np.ndarray, "R D"]
    scales: Float32[np.ndarray, " R"]
    errors: Float32[np.ndarray, " R"]

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "R D"]) -> Codes:
        scales = (np.abs(vectors).max(axis=1, initial=0) / LEVELS).astype("<f4")
        codes = _nearest(vectors, scales)
        errors = np.empty(len(vectors), "<f4")
        for start in range(0, len(vectors), BLOCK):
            part = slice(start, start + BLOCK)
            lost = _lengths(vectors[part] - scales[part, None].astype(float) * codes[part])
            errors[part] = np.nextafter(lost.astype("<f4"), np.float32(np.inf))
        return cls(codes, scales, errors)


class CodedQueries:
    """P coded queries, to be multiplied with codes of rows."""

    def __init__(self, queries: Float[np.ndarray, "P D"]) -> None:
        exact = queries.astype(float)
        self._steps = (np.abs(exact).max(axis=1) / LEVELS).astype(np.float32)
        self._codes = _nearest(exact, self._steps)
        self._length = float(_lengths(exact).max())
        self._lost = float(_lengths(exact - self._steps[:, None].astype(float) * self._codes).max())

    def product(self, codes: Int8[np.ndarray, "R D"], query: int) -> Float[np.ndarray, " R"]:
        """<q', c> of one query with every row's code, without the rows' scales."""
        return np.asarray(numkong.cdist(codes, self._codes[query : query + 1], "dot"))[:, 0] * self._steps[query]

    def products(self, codes: Int8[np.ndarray, "R D"], queries: Sequence[int]) -> Float[np.ndarray, "R K"]:
        """:meth:`product` of several queries."""
        return np.asarray(numkong.dots_packed(codes, numkong.dots_pack(self._codes[queries]))) * self._steps[queries]

    def margins(self, scales: Float32[np.ndarray, " R"], errors: Float32[np.ndarray, " R"]) -> Float32[np.ndarray, " R"]:
        """How far <q', x'> of each row can be from <q, x>, for every query."""
        longest = LEVELS * self._codes.shape[1] ** 0.5  # |c|
        length = self._length * (1 + ROUNDING)
        return errors * np.float32(length) + scales * np.float32((self._lost + ROUNDING * length) * longest) + TINY


def _nearest(vectors: Float[np.ndarray, "R D"], steps: Float32[np.ndarray, " R"]) -> Int8[np.ndarray, "R D"]:
    return np.rint(vectors / np.where(steps > 0, steps, 1)[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)


def _lengths(vectors: Float[np.ndarray, "R D"]) -> Float[np.ndarray, " R"]:
    return np.sqrt(np.einsum("rd,rd->r", vectors, vectors))
