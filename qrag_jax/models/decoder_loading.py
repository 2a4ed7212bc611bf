"""A decoder's parameters from disk to devices, tensor by tensor: the host never holds the whole network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from qrag_jax.models.decoder import AXIS, Decoder, DecoderConfig, decoder_weights, split_over, weight_spec
from qrag_jax.models.folder import read_object, read_tensors, safetensors_files
from qrag_jax.models.gguf_weights import GgufTensors, gguf_config
from qrag_jax.models.weights import to_flax


class ShardedTensors(Mapping[str, np.ndarray]):
    """The tensors of one or more safetensors files. Each is read when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in files:
            try:
                file = safe_open(path, framework="np")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: not a readable safetensors file: {' '.join(str(error).split())}") from error
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._files[name].get_tensor(name)
        except (SafetensorError, TypeError, KeyError, AttributeError) as error:  # a type that NumPy lacks
            raise ValueError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True)
class DecoderSource:
    """A decoder on disk: what it is, and its tensors, not yet read."""

    path: Path
    config: DecoderConfig
    tensors: Mapping[str, np.ndarray]


def open_decoder(path: Path) -> DecoderSource:
    """A Hugging Face model folder or a GGUF file. Raises ValueError naming it and what is missing or not implemented."""
    if path.is_file():
        tensors = GgufTensors(path)
        return DecoderSource(path, gguf_config(tensors), tensors)
    try:
        config = DecoderConfig.from_hf(read_object(path / "config.json"))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: config.json: {error!r}" if isinstance(error, KeyError) else f"{path}: {error}") from error
    files = safetensors_files(path)
    return DecoderSource(path, config, ShardedTensors(files) if files else read_tensors(path))


def decoder_template(config: DecoderConfig, dtype: Any) -> dict[str, Any]:
    """The tree of shapes of a decoder's parameters, all of type ``dtype``."""
    decoder = Decoder(config)
    tree = jax.eval_shape(lambda: decoder.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def check_mesh(config: DecoderConfig, mesh: Mesh | None) -> None:
    """Raises ValueError when ``mesh`` has no axis "model", or the network does not divide over it."""
    if mesh is None:
        return
    if AXIS not in mesh.axis_names:
        raise ValueError(f"mesh: its axes are {', '.join(map(str, mesh.axis_names))}; the network is split over one called {AXIS!r}")
    split_over(config, mesh.shape[AXIS])


def load_params(source: DecoderSource, *, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> dict[str, Any]:
    """Parameters of type ``dtype`` on the default device, or split over the axis "model" of ``mesh``.

    Raises ValueError that lists every tensor that is missing, unexpected or misshapen, and when the network does not divide over the mesh.
    """
    config = source.config
    check_mesh(config, mesh)

    def place(path: tuple[str, ...], value: np.ndarray) -> jax.Array:
        if mesh is None:
            return jax.device_put(value)
        # Auto axes let the compiler shard intermediates; explicit axes would require a sharding for each of them here.
        automatic = Mesh(mesh.devices, mesh.axis_names)
        return jax.device_put(value, NamedSharding(automatic, weight_spec(path, config.vocab_size % mesh.shape[AXIS] == 0)))

    try:
        return to_flax(decoder_weights(config), source.tensors, decoder_template(config, dtype), place)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error
