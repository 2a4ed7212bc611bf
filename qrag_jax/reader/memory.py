"""Estimates, before loading, how much of each device's memory a reader will use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qrag_jax.models.decoder import DecoderConfig, weight_spec
from qrag_jax.models.decoder_layer import BLOCK
from qrag_jax.models.decoder_loading import decoder_template

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device. ``cache`` holds the keys and values of every slot; ``activations`` is an estimate of the prefill's peak."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    def __str__(self) -> str:
        return f"{_gb(self.total)} per device (weights {_gb(self.weights)}, cache {_gb(self.cache)}, activations {_gb(self.activations)})"


def plan_memory(
    config: DecoderConfig, *, batch: int, prompt_tokens: int, max_new_tokens: int, dtype: Any = jnp.float32, devices: int = 1
) -> MemoryPlan:
    """Memory for ``batch`` prompts of ``prompt_tokens`` tokens with ``max_new_tokens`` new ones, the network split over ``devices``."""
    item, layer = jnp.dtype(dtype).itemsize, config.layer

    def held(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> int:
        split = any(weight_spec(tuple(key.key for key in path), config.vocab_size % devices == 0))
        return leaf.size * item // (devices if split else 1)

    template = decoder_template(config, dtype)
    tokens = batch * prompt_tokens
    queries = prompt_tokens if prompt_tokens <= 2 * BLOCK or prompt_tokens % BLOCK else BLOCK
    # The larger of attention's logits and weights and the two halves of the MLP, and a few hidden vectors.
    attention = 2 * batch * (layer.heads // devices) * queries * prompt_tokens * 4
    mlp = 2 * tokens * (layer.mlp_width // devices) * item
    words = 2 * batch * config.vocab_size * 4
    return MemoryPlan(
        weights=sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(held, template))),
        cache=2 * config.num_hidden_layers * batch * (prompt_tokens + max_new_tokens) * (layer.kv_heads // devices) * layer.head_dim * item,
        activations=max(attention, mlp) + 4 * tokens * config.hidden_size * item + words,
    )


def free_memory(devices: list[jax.Device]) -> int | None:
    """Free bytes of the fullest of ``devices``; CPU devices share the host's memory. None if unknown."""
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return min(int(found["bytes_limit"]) - int(found["bytes_in_use"]) for found in stats)
    if devices[0].platform != "cpu" or not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 // len(devices)


def check_fit(name: str, needed: int, free: int | None, advice: str) -> None:
    """Raises ValueError if ``needed`` bytes per device are more than ``free`` (None: unknown, not checked)."""
    if free is not None and needed > free:
        raise ValueError(f"{name} needs {_gb(needed)} per device, but only {_gb(free)} are free: {advice}")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
