"""A search step written in simpler ways, with relative integer positions: what ``experiments.speed`` compares the scan with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from experiments.speed.timing import cores
from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.scan import rotations
from qrag_jax.retrieve.types import Rows

INTEGER = QHeadConfig()


def positions(picked: Sequence[int], length: int) -> Int[np.ndarray, " N"]:
    """Relative integer positions (eq. 6) of every chunk, by the definition."""
    cuts = np.sort(np.asarray(picked, np.int64))
    index = np.arange(length)
    interval = np.searchsorted(cuts, index, side="right")
    k, n = index - np.append(0, cuts)[interval], np.diff([0, *cuts, length])[interval]
    return interval * int(INTEGER.delta) + int(INTEGER.span) * k // np.maximum(n - 1, 1)


def table(at: Int[np.ndarray, " N"], width: int) -> np.ndarray:
    """exp(i p w) for every position p up to the largest: a table of rotations for the naive versions."""
    return rotations(np.arange(at.max() + 1.0), width, INTEGER).conj()


def textbook_step(vectors: Float[np.ndarray, "N D"], state: Float[np.ndarray, " D"], picked: Sequence[int]) -> Float[np.ndarray, " N"]:
    """Q computed literally by eq. 5 and 6, on whole arrays: an angle for every chunk and pair, every embedding rotated, inner products."""
    width = vectors.shape[1] // INTEGER.halves
    frequency = (INTEGER.theta ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    angle = positions(picked, len(vectors))[:, None].astype(np.float32) * np.tile(frequency, INTEGER.halves)
    cos, sin = np.cos(angle), np.sin(angle)
    x0, x1 = vectors[:, ::2], vectors[:, 1::2]
    rotated = np.empty_like(vectors)
    rotated[:, ::2] = x0 * cos - x1 * sin
    rotated[:, 1::2] = x0 * sin + x1 * cos
    return rotated @ state


def numpy_step(rows: Rows, state: Float[np.ndarray, " D"], picked: Sequence[int]) -> Float[np.ndarray, " N"]:
    """:func:`textbook_step` with rotations from a table, in complex numbers, block by block: the fastest version in NumPy."""
    at, q = positions(picked, len(rows)), np.empty(len(rows), np.float32)
    turns = table(at, rows.width)
    for start, end in rows.parts():
        turned = rows.block(start, end).view(np.complex64) * turns[at[start:end]]
        np.dot(turned.view(np.float32), state, out=q[start:end])
    return q


def torch_step(rows: Rows) -> Callable[[Float[np.ndarray, " D"], Sequence[int]], Float[np.ndarray, " N"]]:
    """:func:`numpy_step` in PyTorch, with the same memory and the same blocks."""
    import torch

    torch.set_num_threads(cores())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about tensors of read-only memory; nothing writes to them
        blocks = [torch.view_as_complex(torch.from_numpy(rows.block(*part)).reshape(part[1] - part[0], -1, 2)) for part in rows.parts()]

    def step(state: Float[np.ndarray, " D"], picked: Sequence[int]) -> Float[np.ndarray, " N"]:
        with torch.inference_mode():
            numbers = positions(picked, len(rows))
            turns, at, vector = torch.from_numpy(table(numbers, rows.width)), torch.from_numpy(numbers), torch.from_numpy(state)
            found = [
                torch.view_as_real(block * turns[at[start:end]]).reshape(end - start, -1) @ vector
                for block, (start, end) in zip(blocks, rows.parts(), strict=True)
            ]
            return torch.cat(found).numpy()

    return step


def plain_dot(rows: Rows, state: Float[np.ndarray, " D"]) -> Float[np.ndarray, " N"]:
    """<s, e> without rotation: the lower limit of every exhaustive search."""
    q = np.empty(len(rows), np.float32)
    for start, end in rows.parts():
        np.dot(rows.block(start, end), state, out=q[start:end])
    return q
