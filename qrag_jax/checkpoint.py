"""Train states on disk, by orbax: the last one, to go on from, and the best on validation, to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from qrag_jax.files import read_json, write_json

FORMAT = {"format": "qrag-jax-checkpoint", "version": 1}


class Checkpoints:
    """``checkpoints/last`` and ``checkpoints/best`` of a run directory. Orbax writes a step aside and renames it when whole."""

    def __init__(self, run_dir: Path) -> None:
        root = (run_dir / "checkpoints").resolve()
        marker = root / "format.json"
        if marker.exists():
            if (found := read_json(marker)) != FORMAT:
                raise ValueError(f"{marker}: {found} is not {FORMAT}; these checkpoints come from another program or a newer version")
        elif root.exists() and any(root.iterdir()):
            raise ValueError(f"{root}: holds files that are not checkpoints of qrag-jax; choose another run directory")
        else:
            write_json(marker, FORMAT)
        # One process saves alone, whatever others train beside it (orbax would have all of them come).
        alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
        self._managers = {}
        for name, keep in (("last", 2), ("best", 1)):
            (root / name).mkdir(exist_ok=True)  # orbax does not, for a process alone
            self._managers[name] = ocp.CheckpointManager(
                root / name,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
                ),
            )

    def save(self, name: str, step: int, state: Any, info: dict[str, Any]) -> None:
        """Keeps ``state`` (host arrays) and ``info`` (JSON) as ``name``, 'last' or 'best', at ``step`` updates."""
        manager = self._managers[name]
        if step in manager.all_steps():
            return
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(_unkey(state)), info=ocp.args.JsonSave(info)))
        manager.wait_until_finished()

    def step(self, name: str) -> int | None:
        """Updates behind the newest checkpoint of that name, or None."""
        return self._managers[name].latest_step()

    def restore(self, name: str, template: Any) -> tuple[Any, dict[str, Any]]:
        """The newest state of that name (host arrays), in the shapes of ``template``, and its info.

        Raises ValueError when there is none, it cannot be read, or its shapes are others.
        """
        manager = self._managers[name]
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{manager.directory}: holds no checkpoint")
        plain = _unkey(template)
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), plain)
        try:
            found = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore()))
        except Exception as error:  # orbax raises many kinds; all mean that this checkpoint does not fit
            raise ValueError(f"{manager.directory}/{step}: cannot be restored ({type(error).__name__}: {error})") from error
        return _rekey(found["state"], template), dict(found["info"])

    def close(self) -> None:
        for manager in self._managers.values():
            manager.close()


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _unkey(tree: Any) -> Any:
    """Random keys as plain integers, which is what files hold."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x)) if _is_key(x) else x, tree)


def _rekey(tree: Any, template: Any) -> Any:
    return jax.tree.map(lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x, tree, template)
