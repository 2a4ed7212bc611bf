"""What a reader will take of each device's memory, before anything is loaded."""

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
    """Bytes a device. ``cache`` holds the keys and values of every slot; ``activations`` is an estimate of the prefill's peak."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    def __str__(self) -> str:
        return f"{_gb(self.total)} a device (weights {_gb(self.weights)}, cache {_gb(self.cache)}, activations {_gb(self.activations)})"


def plan_memory(
    config: DecoderConfig, *, batch: int, prompt_tokens: int, max_new_tokens: int, dtype: Any = jnp.float32, devices: int = 1
) -> MemoryPlan:
    """What ``batch`` prompts of ``prompt_tokens`` tokens take, continued by ``max_new_tokens``, the network split over ``devices``."""
    item, layer = jnp.dtype(dtype).itemsize, config.layer

    def held(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> int:
        split = any(weight_spec(tuple(key.key for key in path), config.vocab_size % devices == 0))
        return leaf.size * item // (devices if split else 1)

    template = decoder_template(config, dtype)
    tokens = batch * prompt_tokens
    queries = prompt_tokens if prompt_tokens <= 2 * BLOCK or prompt_tokens % BLOCK else BLOCK
    # Logits and weights of attention, or the two halves of the MLP, whichever is more, and a handful of hidden vectors.
    attention = 2 * batch * (layer.heads // devices) * queries * prompt_tokens * 4
    mlp = 2 * tokens * (layer.mlp_width // devices) * item
    words = 2 * batch * config.vocab_size * 4
    return MemoryPlan(
        weights=sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(held, template))),
        cache=2 * config.num_hidden_layers * batch * (prompt_tokens + max_new_tokens) * (layer.kv_heads // devices) * layer.head_dim * item,
        activations=max(attention, mlp) + 4 * tokens * config.hidden_size * item + words,
    )


def free_memory(devices: list[jax.Device]) -> int | None:
    """Bytes that the fullest of ``devices`` still has; CPU devices share the host's memory. None where that is unknown."""
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return min(int(found["bytes_limit"]) - int(found["bytes_in_use"]) for found in stats)
    if devices[0].platform != "cpu" or not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 // len(devices)


def check_fit(name: str, needed: int, free: int | None, advice: str) -> None:
    """Raises ValueError when ``needed`` bytes a device are more than ``free`` (None: unknown, not checked)."""
    if free is not None and needed > free:
        raise ValueError(f"{name} needs {_gb(needed)} a device, {_gb(free)} are free: {advice}")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
