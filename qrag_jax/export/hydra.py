"""The few values that are needed of a Hydra config.yaml as the reference code saves it: plain YAML with ``${a.b}`` left unresolved."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qrag_jax.config.trees import parse_yaml

INNERMOST = re.compile(r"\$\{([^${}]*)\}")
_ABSENT = object()


def boolean(value: Any) -> bool:
    """True or false, and nothing that Python takes for them."""
    if not isinstance(value, bool):
        raise TypeError
    return value


class HydraConfig:
    """Looks values up by dotted path, following interpolations. Nothing is instantiated: ``_target_`` is a text like any other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tree = parse_yaml(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file; the config.yaml saved with the checkpoint is needed (--config)") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {(str(error) or repr(error)).splitlines()[0]}") from error
        if not isinstance(self._tree, dict):
            raise ValueError(f"{path}: must be a mapping of settings")

    def get(self, name: str, kind: Callable[[Any], Any], default: Any = _ABSENT) -> Any:
        """The value at ``name`` ("envs.max_steps") as ``kind``. Raises ValueError, naming file and path, when it is absent or no such."""
        value = self._find(name, ())
        if value is _ABSENT:
            if default is _ABSENT:
                raise ValueError(f"{self.path}: {name} is missing")
            return default
        try:
            return kind(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: {name} = {value!r}: must be of type {getattr(kind, '__name__', kind)}") from error

    def first(self, names: Sequence[str], kind: Callable[[Any], Any]) -> Any:
        """The value at the first of ``names`` that is there. Raises ValueError, naming all, when none is."""
        for name in names:
            if (value := self.get(name, kind, None)) is not None:
                return value
        raise ValueError(f"{self.path}: {' or '.join(names)} is missing")

    def _find(self, name: str, seen: tuple[str, ...]) -> Any:
        if name in seen:
            raise ValueError(f"{self.path}: {' -> '.join((*seen, name))}: the interpolation goes in a circle")
        node: Any = self._tree
        parts = name.split(".")
        for i, part in enumerate(parts):
            if not isinstance(node, Mapping) or part not in node:
                return _ABSENT
            node = self._resolve(node[part], (*seen, ".".join(parts[: i + 1])))
        return node

    def _resolve(self, value: Any, seen: tuple[str, ...]) -> Any:
        while isinstance(value, str) and (match := INNERMOST.search(value)):
            found = self._find(match[1], seen)
            if found is _ABSENT:
                raise ValueError(f"{self.path}: {seen[-1]} refers to {match[0]}, which is missing")
            if match[0] == value:
                return found
            value = value[: match.start()] + str(found) + value[match.end() :]
        return value
