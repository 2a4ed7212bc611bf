"""Weight-name tables: one declarative list per backbone, read in both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from qrag_jax.models.pickles import StoredTensor

T = TypeVar("T")

# Prefixes of an encoder inside a task model's checkpoint.
PREFIXES = ("", "bert.", "roberta.", "new.", "model.")
# Poolers, task heads and buffers do not affect a token's hidden vector.
HARMLESS = re.compile(
    r"pooler\.|cls\.|lm_head\.|classifier\.|qa_outputs\.|score\.|embeddings\.(position_ids|token_type_ids)$|.*rotary_emb\.inv_freq$"
)


@dataclass(frozen=True)
class Weight:
    """One tensor: its Hugging Face name, its path in the flax parameters, and whether the matrix is stored transposed."""

    hf: str
    flax: tuple[str, ...]
    transpose: bool = False


def dense(hf: str, *flax: str, bias: bool = True) -> Iterator[Weight]:
    """torch.nn.Linear [out, in] <-> flax Dense [in, out]."""
    yield Weight(f"{hf}.weight", (*flax, "kernel"), transpose=True)
    if bias:
        yield Weight(f"{hf}.bias", (*flax, "bias"))


def norm(hf: str, *flax: str, bias: bool = True) -> Iterator[Weight]:
    """torch LayerNorm / RMSNorm <-> flax scale and bias."""
    yield Weight(f"{hf}.weight", (*flax, "scale"))
    if bias:
        yield Weight(f"{hf}.bias", (*flax, "bias"))


def refuse_unsupported(config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError, naming the key, when ``config`` sets one of ``supported`` to a value that is not implemented."""
    for key, values in supported.items():
        if key in config and config[key] not in values:
            raise ValueError(f"config.json: {key} = {config[key]!r} is not supported; supported: {', '.join(map(repr, values))}")


def sizes(config: Mapping[str, Any], *names: str) -> dict[str, int]:
    """The positive whole numbers that a backbone requires. Raises ValueError naming every missing or malformed key."""
    bad = [f"{name} = {config.get(name)!r}" for name in names if type(config.get(name)) is not int or config[name] < 1]
    if bad:
        raise ValueError(f"config.json: {', '.join(bad)}: must be whole numbers above 0")
    return {name: config[name] for name in names}


def strip_prefix(table: Sequence[Weight], tensors: Mapping[str, T]) -> dict[str, T]:
    """``tensors`` under the names of ``table``: without the prefix of :data:`PREFIXES` that matches most of the table."""
    prefix = max(PREFIXES, key=lambda candidate: sum(candidate + weight.hf in tensors for weight in table))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def to_flax(
    table: Iterable[Weight],
    tensors: Mapping[str, np.ndarray | StoredTensor],
    template: Mapping[str, Any],
    place: Callable[[tuple[str, ...], np.ndarray], Any] = lambda path, value: value,
) -> dict[str, Any]:
    """Named tensors -> flax parameters of the shapes and types of ``template`` (a tree of arrays or ShapeDtypeStructs).

    Each is asked for once and handed to ``place`` with its flax path, so ``tensors`` may read from disk and ``place`` may move to a device.
    Raises ValueError that lists every missing, unexpected, misshapen and non-finite tensor at once; :data:`HARMLESS` ones are ignored.
    """
    params: dict[str, Any] = {}
    missing, misshapen, broken, known = [], [], [], set()
    for weight in table:
        known.add(weight.hf)
        if weight.hf not in tensors:
            missing.append(weight.hf)
            continue
        tensor = np.asarray(tensors[weight.hf])
        value = tensor.T if weight.transpose else tensor
        node: Any = template
        for key in weight.flax:
            node = node[key]
        if value.shape != node.shape:
            stored = node.shape[::-1] if weight.transpose else node.shape
            misshapen.append(f"{weight.hf} is {tuple(tensor.shape)}, config.json implies {tuple(stored)}")
            continue
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            misshapen.append(f"{weight.hf} holds {tensor.dtype}, not floating-point numbers")
            continue
        if not is_finite(tensor):
            broken.append(weight.hf)
            continue
        target = params
        for key in weight.flax[:-1]:
            target = target.setdefault(key, {})
        target[weight.flax[-1]] = place(weight.flax, np.ascontiguousarray(value, dtype=node.dtype))
    unexpected = sorted(name for name in tensors if name not in known and not HARMLESS.match(name))
    problems = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape or type", misshapen),
            ("NaN or infinity in", broken),
        )
        if names
    ]
    if problems:
        raise ValueError("weights do not fit the model. " + "; ".join(problems))
    return params


def from_flax(table: Iterable[Weight], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flax parameters -> named float32 tensors: the inverse of :func:`to_flax`. Raises ValueError that lists every non-finite tensor."""
    tensors = {}
    for weight in table:
        node: Any = params
        for key in weight.flax:
            node = node[key]
        value = np.asarray(node, np.float32)
        tensors[weight.hf] = np.ascontiguousarray(value.T if weight.transpose else value)
    if broken := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(f"NaN or infinity in {', '.join(broken)}; such weights are not written")
    return tensors


def is_finite(tensor: np.ndarray) -> bool:
    """Whether a tensor that is not empty holds neither NaN nor infinity. Takes no memory, since NaN is its own minimum."""
    with np.errstate(invalid="ignore"):
        return math.isfinite(float(tensor.min())) and math.isfinite(float(tensor.max()))
