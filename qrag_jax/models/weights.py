"""Weight-name tables: one declarative list per backbone, read in both directions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
LARGEST_SIZE = 2**20
LARGEST = {
    "num_hidden_layers": 256,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**26,
}
"""The largest sizes of a config.json that are read, above those of any published network; the others: :data:`LARGEST_SIZE`."""


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
    """The positive whole numbers that a backbone requires.

    Raises ValueError naming every missing or malformed key, and, before anything is allocated, sizes that no network has.
    """
    bad = [f"{name} = {config.get(name)!r}" for name in names if type(config.get(name)) is not int or config[name] < 1]
    if bad:
        raise ValueError(f"config.json: {', '.join(bad)}: must be whole numbers above 0")
    for name in names:
        if config[name] > (most := LARGEST.get(name, LARGEST_SIZE)):
            raise ValueError(f"config.json: {name} = {config[name]}: must be at most {most:,}")
    return {name: config[name] for name in names}


def number(config: Mapping[str, Any], name: str, default: float) -> float:
    """A finite number of a ``config.json``; ``default`` if it has none. Raises ValueError naming the key."""
    value = config.get(name, default)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"config.json: {name} = {value!r}: must be a finite number")
    return float(value)


def refuse_not_finite(name: str, value: np.ndarray) -> None:
    """Raises ValueError, naming the tensor, when it holds NaN or infinity."""
    # Minimum and maximum pass NaN on, and need no memory.
    if value.size and not (np.isfinite(value.min()) and np.isfinite(value.max())):
        raise ValueError(f"{name} holds NaN or infinity ({np.count_nonzero(~np.isfinite(value)):,} of {value.size:,} numbers)")


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
    Raises ValueError that lists every missing, unexpected and misshapen tensor, and every one with NaN or infinity, at once;
    :data:`HARMLESS` ones are ignored.
    """
    params: dict[str, Any] = {}
    missing, misshapen, infinite, known = [], [], [], set()
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
        with np.errstate(over="ignore"):  # a float64 above float32's largest number is refused below
            value = np.ascontiguousarray(value, dtype=node.dtype)
        try:
            refuse_not_finite(weight.hf, value)
        except ValueError as error:
            infinite.append(str(error))
            continue
        target = params
        for key in weight.flax[:-1]:
            target = target.setdefault(key, {})
        target[weight.flax[-1]] = place(weight.flax, value)
    unexpected = sorted(name for name in tensors if name not in known and not HARMLESS.match(name))
    problems = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape or type", misshapen), ("not finite", infinite))
        if names
    ]
    if problems:
        raise ValueError("weights do not fit the model. " + "; ".join(problems))
    return params


def from_flax(table: Iterable[Weight], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flax parameters -> named float32 tensors: inverse of :func:`to_flax`. Raises ValueError, naming the tensor, on NaN and infinity."""
    return {weight.hf: _tensor(weight, params) for weight in table}


def write_flax(path: Path, table: Iterable[Weight], params: Mapping[str, Any]) -> None:
    """Writes the tensors of :func:`from_flax` as a safetensors file, one after the other: ``safetensors.save_file`` would copy them all."""
    weights = sorted(table, key=lambda weight: weight.hf)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        shape = _leaf(weight, params).shape
        begin, end = end, end + 4 * math.prod(shape)
        stored = shape[::-1] if weight.transpose else shape
        header[weight.hf] = {"dtype": "F32", "shape": list(stored), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights:
            file.write(_tensor(weight, params).astype("<f4", copy=False).data)


def _leaf(weight: Weight, params: Mapping[str, Any]) -> Any:
    node: Any = params
    for key in weight.flax:
        node = node[key]
    return node


def _tensor(weight: Weight, params: Mapping[str, Any]) -> np.ndarray:
    value = np.asarray(_leaf(weight, params), np.float32)
    value = np.ascontiguousarray(value.T if weight.transpose else value)
    refuse_not_finite(weight.hf, value)
    return value
