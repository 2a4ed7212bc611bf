"""Trees of arrays in a folder, by orbax: written whole by one process, or by several, each of which writes its own parts.

The files of both ways are alike. Each holds whole arrays, in chunks; an array that is split over devices has a chunk for each part. So any
number of processes can read them, each what it needs: whole arrays, or the parts of its own devices.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath


class ArrayFiles:
    """Writes and reads the arrays of a tree. Random keys are in the files as plain integers."""

    def __init__(self) -> None:
        # One process writes whole arrays alone, even if others train with it (by default, orbax would wait for all of them).
        alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
        self._whole = ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)
        # Of the copies of an array that is not split, one process writes the first.
        handlers = ocp.type_handlers.create_type_handler_registry((jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)))
        self._parts = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)

    def write(self, folder: Path, tree: Any) -> None:
        """Writes host arrays into a new folder."""
        with _quiet():
            self._whole.save(folder, args=ocp.args.StandardSave(tree))

    def begin_parts(self, folder: Path, tree: Any) -> Callable[[], None]:
        """Starts to write what this process's devices hold of ``tree``, device arrays, into a folder that is there. All processes call it.

        Returns when the parts are copied to the host: the arrays may change then. The function that it returns waits until they are on
        disk. When this is so in all processes, the first one calls :meth:`finish_parts`.
        """
        own = jax.tree.map(_copy_on_cpu, unkey(tree))
        # In a thread of its own, because a notebook's thread already runs an event loop.
        with ThreadPoolExecutor(1) as thread, _quiet():
            start = self._parts.async_save(epath.Path(folder), args=ocp.args.PyTreeSave(own))
            writing = thread.submit(asyncio.run, start).result() or []

        def finish() -> None:
            with _quiet():
                for part in writing:
                    part.result()

        return finish

    def finish_parts(self, folder: Path) -> None:
        """Makes one tree of the parts of all processes. Copies no large array."""
        with _quiet():
            self._parts.finalize(epath.Path(folder))

    def read(self, folder: Path, template: Any) -> Any:
        """The tree in the shapes of ``template``, arrays or their shapes: host arrays, or device arrays where it has shardings.

        This process reads the parts of its own devices only. Raises ValueError, naming the folder, on other shapes.
        """
        plain = jax.tree.map(_blank, template)
        try:
            found = self._whole.restore(folder, args=ocp.args.StandardRestore(plain))
        except Exception as error:  # orbax raises many kinds; the files are undamaged, so each means that the model is another one
            raise ValueError(f"{folder.parent}: cannot be restored ({type(error).__name__}: {error})") from error
        for (path, value), like in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(plain), strict=True):
            if (value.shape, value.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"{folder.parent}: {jax.tree_util.keystr(path)} is {value.dtype}{list(value.shape)}, "
                    f"expected {like.dtype}{list(like.shape)}"
                )
        return jax.tree.map(lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x, found, template)


def own_parts(folder: Path) -> Path:
    """Where this process's parts are, below the folder of a tree."""
    return folder / f"ocdbt.process_{jax.process_index()}"


def is_split(tree: Any) -> bool:
    """Whether arrays (or shapes) of the tree lie on several devices."""
    return any(getattr(getattr(x, "sharding", None), "num_devices", 1) > 1 for x in jax.tree.leaves(tree))


def on_host(tree: Any) -> Any:
    """A copy in host arrays. (A host array may be a view of a device buffer that the next update overwrites.)"""
    return jax.tree.map(np.array, unkey(tree))


def unkey(tree: Any) -> Any:
    """Random keys as plain integers, the form in which files hold them."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def digests(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """Path below ``folder`` -> sha256, of each file."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences orbax, which logs the tracebacks of its own threads for an error that it also raises.

    After an error it stays silent, because its threads go on for a while.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "concurrent.futures")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _copy_on_cpu(x: jax.Array) -> jax.Array:
    """A copy if the array is on a CPU: orbax would write from its buffers, which the next update overwrites."""
    if x.addressable_shards[0].data.device.platform != "cpu":
        return x
    parts = [jax.device_put(np.array(shard.data), shard.device) for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _blank(x: Any) -> Any:
    """What files hold of ``x``, an array or a shape: its shape with its sharding, if it has one; else a host array that takes no memory."""
    like = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x if hasattr(x, "dtype") else np.asarray(x)
    if is_split(x):
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=x.sharding)
    return np.broadcast_to(np.zeros((), like.dtype), like.shape)
