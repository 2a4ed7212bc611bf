"""int8 codes of vectors, with bounds: how far an inner product of codes can be from the one of the vectors.

A vector x is coded as integers c and a scale, x' = scale * c; its ``error`` |x - x'| is measured when it is stored. A query q is coded in
two levels of integers, q' = coarse * h + fine * l, and |q - q'| is measured, too. By Cauchy and Schwarz

    |<q, x> - <q', x'>| <= |q| error + |q - q'| |x'|.

<q', x'> needs products of integers only, which are exact, and reads a quarter of the bytes of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

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
    """P queries in two levels of integers, to be multiplied with codes of rows."""

    def __init__(self, queries: Float[np.ndarray, "P D"]) -> None:
        left, levels, steps = queries.astype(float), [], []
        for _ in range(2):
            steps.append((np.abs(left).max(axis=1) / LEVELS).astype(np.float32))
            levels.append(_nearest(left, steps[-1]))
            left -= steps[-1][:, None].astype(float) * levels[-1]
        self._levels, self._steps = np.stack(levels, axis=1), np.stack(steps, axis=1)
        self._length, self._lost = float(_lengths(queries.astype(float)).max()), float(_lengths(left).max())
        self._packed = cache(lambda query: numkong.dots_pack(self._levels[query]))

    def product(self, codes: Int8[np.ndarray, "R D"], query: int) -> Float32[np.ndarray, " R"]:
        """<q', c> of one query with every row's code, without the rows' scales."""
        whole = np.asarray(numkong.dots_packed(codes, self._packed(query))).astype(np.float32)
        coarse, fine = self._steps[query]
        return whole[:, 0] * coarse + whole[:, 1] * fine

    def products(self, codes: Int8[np.ndarray, "R D"], queries: Sequence[int]) -> Float32[np.ndarray, "R K"]:
        """:meth:`product` of several queries."""
        levels = self._levels[queries].reshape(-1, codes.shape[1])
        whole = np.asarray(numkong.dots_packed(codes, numkong.dots_pack(levels))).astype(np.float32)
        return (whole.reshape(len(codes), -1, 2) * self._steps[queries]).sum(axis=2)

    def margins(self, scales: Float32[np.ndarray, " R"], errors: Float32[np.ndarray, " R"]) -> Float32[np.ndarray, " R"]:
        """How far <q', x'> of each row can be from <q, x>, for every query."""
        longest = LEVELS * self._levels.shape[2] ** 0.5  # |c|
        length = self._length * (1 + ROUNDING)
        return errors * np.float32(length) + scales * np.float32((self._lost + ROUNDING * length) * longest) + TINY


def _nearest(vectors: Float[np.ndarray, "R D"], steps: Float32[np.ndarray, " R"]) -> Int8[np.ndarray, "R D"]:
    return np.rint(vectors / np.where(steps > 0, steps, 1)[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)


def _lengths(vectors: Float[np.ndarray, "R D"]) -> Float[np.ndarray, " R"]:
    return np.sqrt(np.einsum("rd,rd->r", vectors, vectors))
