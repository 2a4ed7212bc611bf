"""Slow, plain oracles of the algorithm, written from the paper's equations with Python loops; they share no code with qrag_jax.rl."""

from __future__ import annotations

import math

import numpy as np


def positions(picked: list[int], length: int, delta: int, span: int, integer: bool) -> list[float]:
    """Eq. 6 chunk by chunk: interval borders are the document's start, the picks, and its end."""
    borders = [0, *sorted(picked), length]
    out = []
    for i in range(length):
        j = sum(1 for p in picked if p <= i)
        start, end = borders[j], borders[j + 1]
        if integer:
            steps = end - start - 1
            out.append(j * delta + (span * (i - start) // steps if steps else 0))
        else:
            out.append(j * delta + span * (i - start) / (end - start))
    return out


def rotate(x: np.ndarray, position: float, halves: int, theta: float) -> np.ndarray:
    """Each half: pairs (x0, x1) turned by position * theta^(-2k/width)."""
    out = np.array(x, np.float64)
    width = len(x) // halves
    for half in range(halves):
        for k in range(width // 2):
            angle = position * theta ** (-2 * k / width)
            a = half * width + 2 * k
            x0, x1 = out[a], out[a + 1]
            out[a] = x0 * math.cos(angle) - x1 * math.sin(angle)
            out[a + 1] = x0 * math.sin(angle) + x1 * math.cos(angle)
    return out


def soft_value(q_halves: np.ndarray, available: list[bool], alpha: float, top_k: int, soft: bool = True) -> float:
    """Sum over halves of alpha log sum exp(q / alpha) over the half's best ``top_k`` available actions."""
    total = 0.0
    for half in q_halves.T:
        best = sorted((float(q) for q, ok in zip(half, available, strict=True) if ok), reverse=True)
        best = best[: top_k or len(best)]
        if not best:
            continue
        total += best[0] + alpha * math.log(sum(math.exp((q - best[0]) / alpha) for q in best)) if soft else best[0]
    return total


def lambda_returns(r: list[float], discount: list[float], v_next: list[float], lam: float) -> list[float]:
    """G_t by its definition as a mixture of n-step returns, truncated at the last step."""
    steps = len(r)
    out = []
    for t in range(steps):
        total, weight, gain, product = 0.0, 1.0, 0.0, 1.0
        for n in range(t, steps):
            gain += product * r[n]
            product *= discount[n]
            n_step = gain + product * v_next[n]
            share = weight * (1 - lam) if n < steps - 1 else weight
            total += share * n_step
            weight *= lam
        out.append(total)
    return out


def reward(picked: list[int], support: set[int], penalize: bool) -> list[float]:
    out, done = [], False
    for t in range(len(picked)):
        complete = bool(support) and support <= set(picked[: t + 1])
        out.append((0.5 + 0.5 * len(support) / (t + 1) if penalize else 1.0) if complete and not done else 0.0)
        done = done or complete
    return out


def state_row(question: list[int], chunks: list[list[int]], prefix: int, separator: list[int], chunk_tokens: int, tokens: int) -> list[int]:
    """The question's row, then each chunk without its opening tokens, cut to leave room for the separator."""
    row = list(question)
    for chunk in chunks:
        body = chunk[prefix : len(chunk) - len(separator)]
        row += body[: chunk_tokens - len(separator)] + separator
    return row[:tokens]


def binary_loss(q: np.ndarray, mask: list[bool], support: set[int], alpha: float) -> float:
    """Beam Retriever's loss, chunk by chunk: ``q[t]`` are the values in the state of the first t supporting chunks."""
    total, order = 0.0, sorted(support)
    for t, row in enumerate(q):
        left = set(order[t:])
        if not left:
            break
        losses = []
        for i, value in enumerate(row):
            if mask[i] and i not in order[:t]:
                p = 1 / (1 + math.exp(-value / alpha))
                losses.append(-math.log(p if i in left else 1 - p))
        total += sum(losses) / len(losses)
    return total


def softmax_loss(q: np.ndarray, mask: list[bool], support: set[int], alpha: float) -> float:
    """-log of the share that the missing supporting chunks have of exp(q / alpha), state by state."""
    total, order = 0.0, sorted(support)
    for t, row in enumerate(q):
        if not order[t:]:
            break
        weights = {i: math.exp(value / alpha) for i, value in enumerate(row) if mask[i] and i not in order[:t]}
        total -= math.log(sum(weights[i] for i in order[t:]) / sum(weights.values()))
    return total


LOSSES = {"binary": binary_loss, "softmax": softmax_loss}
