"""Rotary frequencies as a ``config.json`` asks for them: unscaled, or stretched to a longer context than the model was first trained on.

Scalings: linear (Chen et al. 2023, arXiv 2306.15595), yarn (Peng et al. 2023, arXiv 2309.00071, section 3) and llama3 (Llama 3.1's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

THETA = 10_000.0  # the architectures' default when config.json names none


@dataclass(frozen=True)
class Rope:
    """Angle per position of each of the H / 2 coordinate pairs of a head, and the factor on cosine and sine."""

    frequencies: tuple[float, ...]
    magnitude: float = 1.0


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_type``, ``rope_theta`` and the fields of the scaling, whichever transformers wrote the file.

    Version 5 keeps theta and scaling together in ``rope_parameters``; earlier ones keep ``rope_theta`` and ``rope_scaling`` apart, and call
    the type "type" in places.
    """
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    found["rope_type"] = found.get("rope_type", found.pop("type", "default"))
    theta = found.get("rope_theta", config.get("rope_theta"))
    found["rope_theta"] = THETA if theta is None else theta
    return found


def read_rope(config: Mapping[str, Any], head_dim: int) -> Rope:
    """Raises ValueError by name on a scaling that is not implemented and on a field that is missing or no positive number."""
    given = rope_parameters(config)
    kind = given["rope_type"]
    if kind not in SCALINGS:
        raise ValueError(f"config.json: rope_type = {kind!r} is not supported; supported: {', '.join(SCALINGS)}")
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ValueError(f"config.json: partial_rotary_factor = {partial!r} is not supported; supported: 1.0")
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim = {head_dim}: must be even for rotary positions")
    # The original length may be in the scaling or be the model's own; this is the order in which transformers looks.
    lengths = (config.get("original_max_position_embeddings"), given.get("original_max_position_embeddings"))
    original = next((length for length in lengths if length is not None), config.get("max_position_embeddings"))
    given["original_max_position_embeddings"] = original
    if kind == "yarn" and given.get("factor") is None:
        given["factor"] = _positive(config, "max_position_embeddings") / _positive(given, "original_max_position_embeddings")
    plain = _positive(given, "rope_theta") ** (-np.arange(0, head_dim, 2) / head_dim)
    frequencies, magnitude = SCALINGS[kind](given, plain)
    return Rope(tuple(map(float, frequencies)), magnitude)


def _positive(given: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value: Any = default if given.get(name) is None else given[name]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"config.json: rope {name} = {value!r}: must be a number above 0")
    return float(value)


def _unscaled(given: Mapping[str, Any], plain: np.ndarray) -> tuple[np.ndarray, float]:
    return plain, 1.0


def _linear(given: Mapping[str, Any], plain: np.ndarray) -> tuple[np.ndarray, float]:
    return plain / _positive(given, "factor"), 1.0


def _llama3(given: Mapping[str, Any], plain: np.ndarray) -> tuple[np.ndarray, float]:
    """Pairs that turn less than ``low`` times in the original context are slowed, those above ``high`` kept, the rest blended."""
    low, high = _positive(given, "low_freq_factor"), _positive(given, "high_freq_factor")
    if high <= low:
        raise ValueError(f"config.json: rope high_freq_factor = {high}: must be above low_freq_factor = {low}")
    turns = _positive(given, "original_max_position_embeddings") * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / _positive(given, "factor")), 1.0


def _yarn(given: Mapping[str, Any], plain: np.ndarray) -> tuple[np.ndarray, float]:
    """Pairs that turn more than ``beta_fast`` times in the original context are kept, those below ``beta_slow`` slowed, by pair index."""
    factor, context = _positive(given, "factor"), _positive(given, "original_max_position_embeddings")
    width = 2 * len(plain)
    pair = lambda turns: width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(given["rope_theta"]))
    first, last = pair(_positive(given, "beta_fast", 32.0)), pair(_positive(given, "beta_slow", 1.0))
    if given.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    slowed = np.clip((np.arange(len(plain)) - first) / (last - first or 0.001), 0, 1)
    if given.get("attention_factor") is not None:
        magnitude = _positive(given, "attention_factor")
    else:
        grown = lambda scale: 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
        scale, over = given.get("mscale"), given.get("mscale_all_dim")
        magnitude = grown(scale) / grown(over) if scale and over else grown(1.0)
    return plain * (1 - slowed + slowed / factor), magnitude


SCALINGS: dict[str, Callable[[Mapping[str, Any], np.ndarray], tuple[np.ndarray, float]]] = {
    "default": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
