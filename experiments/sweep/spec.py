"""The specification of a sweep: a YAML or TOML file, which is checked completely before anything starts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from qrag_jax.config import RunConfig
from qrag_jax.config.parse import decode
from qrag_jax.config.presets import preset
from qrag_jax.config.trees import parse_toml, parse_yaml

FORMAT = {"format": "qrag-jax-sweep", "version": 1}
REQUIRED = ("benchmark", "task", "method", "space")
MAY_GROW = ("trials", "parallel")
"""Settings that may change between two calls on the same folder."""
MOST_TRIALS = 100_000
MOST_CORNERS = 10_000
"""At most this many combinations are checked before the start; the others are checked when their turn comes."""


@dataclass(frozen=True)
class Settings:
    """The keys of a specification, except ``fixed``, ``space`` and ``run_dir``."""

    benchmark: str
    task: str
    method: Literal["grid", "random", "tpe"]
    preset: str = "tiny"
    trials: int | None = None
    """Total number of trials. For a grid: the number of its points to try, in order (none: all)."""
    seed: int = 0
    """Seed of the choice of trials; the seed of training is train.seed."""
    objective: Literal["fact_em", "answer_em"] = "fact_em"
    """The validation metric. A trial counts with its best value over the run, the one that also chooses the best checkpoint."""
    prune: bool = False
    """Stop trials that are behind others after a validation; ``pruner`` says which."""
    pruner: Literal["median", "asha", "hyperband"] = "median"
    """median: those whose best score so far is below the median of the finished trials at the same update. asha: at updates prune_warmup,
    3 and 9 times that, and so on, all but the best third of the trials that came so far. hyperband: asha with several warm-ups at once."""
    prune_startup: int = 4
    """Median: the number of trials that must finish before any trial is stopped."""
    prune_warmup: int | None = None
    """No trial is stopped before this update; none: a quarter of train.steps, for asha and hyperband a ninth."""
    parallel: int = 1
    """Number of parallel trials on this machine, each on its own device; 1: a trial has all devices."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("seed", 0), ("prune_startup", 1), ("prune_warmup", 0), ("parallel", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} = {value}: must be >= {least}")
        if self.pruner != "median" and not self.prune:
            raise ValueError(f"pruner = {self.pruner!r}: is used with prune: true; add that")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"trials: missing; method {self.method} needs their number")


@dataclass(frozen=True)
class Dimension:
    """A field that a sweep varies: one of ``values``, or a number in [low, high], on a logarithmic scale or in steps."""

    name: str
    whole: bool = False
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    @property
    def labels(self) -> tuple[Any, ...]:
        """``values`` in a form that Optuna can store: lists as JSON text."""
        return tuple(json.dumps(value) if isinstance(value, list) else value for value in self.values)

    def value(self, label: Any) -> Any:
        """The value in the configuration for a label, or for a number of the range."""
        return self.values[self.labels.index(label)] if self.values else label

    def ends(self) -> tuple[Any, ...]:
        """All labels, or both ends of the range."""
        return self.labels or (self.low, self.high)

    def count(self) -> int | None:
        """The number of labels, or of steps in the range; None if they cannot be counted."""
        step = self.step or (1 if self.whole else None)
        if self.values or step is None:
            return len(self.values) or None
        return round((self.high - self.low) / step) + 1

    def points(self) -> tuple[Any, ...]:
        """Everything that :meth:`count` counts."""
        if self.values:
            return self.labels
        step = self.step or 1
        return tuple(self.low + i * step if self.whole else float(f"{self.low + i * step:.12g}") for i in range(self.count() or 0))

    def to_tree(self) -> dict[str, Any]:
        """The dimension as written in a specification."""
        if self.values:
            return {"values": list(self.values)}
        tree: dict[str, Any] = {"low": self.low, "high": self.high}
        return tree | ({"log": True} if self.log else {}) | ({"step": self.step} if self.step is not None else {})


@dataclass(frozen=True)
class Spec:
    """``base``: the preset with the fixed values; ``space``: the fields that vary."""

    settings: Settings
    base: RunConfig
    space: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        size = self.size()
        if self.settings.method == "grid" and size is None:
            for dimension in self.space:
                if dimension.count() is None:
                    raise ValueError(f"space.{dimension.name}: method grid needs values, or low, high and step")
        wanted = self.settings.trials or (size if self.settings.method == "grid" else 0) or 0
        if wanted > MOST_TRIALS:
            raise ValueError(f"{wanted:,} trials: must be at most {MOST_TRIALS:,}; give fewer values, larger steps, or fewer trials")
        for dimension in self.space:
            if self.settings.method == "grid" and (dimension.count() or 0) > MOST_TRIALS:
                raise ValueError(f"space.{dimension.name}: has {dimension.count():,} points; a grid has at most {MOST_TRIALS:,}")
        if self.settings.trials is not None and size is not None and self.settings.trials > size:
            raise ValueError(f"trials = {self.settings.trials}: must be <= {size}, the number of combinations in the space")
        for labels in itertools.islice(self.corners(), MOST_CORNERS):
            config = self.config(labels)
            if self.settings.objective == "answer_em" and config.rl.reward == "support":
                raise ValueError("objective = 'answer_em': needs rl.reward answer_em, answer_f1 or mixed, and a reader (eval.reader)")

    def size(self) -> int | None:
        """Number of combinations in the space; None if it is infinite."""
        counts = [dimension.count() for dimension in self.space]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    @property
    def trials(self) -> int:
        count = self.settings.trials or self.size()
        assert count is not None
        return count

    def corners(self) -> Iterator[dict[str, Any]]:
        names = [dimension.name for dimension in self.space]
        return (dict(zip(names, found, strict=True)) for found in itertools.product(*(d.ends() for d in self.space)))

    def grid(self) -> Iterator[dict[str, Any]]:
        """The combinations of a grid as labels; the last field changes fastest."""
        names = [dimension.name for dimension in self.space]
        return (dict(zip(names, found, strict=True)) for found in itertools.product(*(d.points() for d in self.space)))

    def values(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the varied fields for their labels."""
        return {dimension.name: dimension.value(labels[dimension.name]) for dimension in self.space}

    def config(self, labels: Mapping[str, Any]) -> RunConfig:
        """The configuration of a trial. Raises ValueError on bad values."""
        return override(self.base, self.values(labels))

    def to_tree(self) -> dict[str, Any]:
        return {
            **FORMAT,
            "settings": dataclasses.asdict(self.settings),
            "base": json.loads(self.base.to_json()),
            "space": {dimension.name: dimension.to_tree() for dimension in self.space},
        }

    @classmethod
    def from_tree(cls, tree: Any) -> Spec:
        """Inverse of :meth:`to_tree`. Raises ValueError on anything else."""
        if not isinstance(tree, dict) or {name: tree.get(name) for name in FORMAT} != FORMAT:
            raise ValueError(f"is not a sweep of this version ({FORMAT})")
        if missing := [name for name in ("settings", "base", "space") if not isinstance(tree.get(name), dict)]:
            raise ValueError(f"{missing[0]}: missing")
        return cls(decode(Settings, tree["settings"]), decode(RunConfig, tree["base"]), _space(tree["space"]))


def shown(value: Any) -> str:
    """A value as text for tables and pictures: floats with four digits, lists as JSON."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def read_spec(path: Path) -> tuple[Spec, str]:
    """A specification and its run_dir (default: runs/sweep-NAME). Raises ValueError naming file, field and allowed values."""
    try:
        return _spec(_parse(path), path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(path: Path) -> Any:
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ValueError("must end in .yaml, .yml or .toml")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    return parse_toml(text) if path.suffix == ".toml" else parse_yaml(text)


def _spec(tree: Any, path: Path) -> tuple[Spec, str]:
    known = (*(field.name for field in dataclasses.fields(Settings)), "fixed", "space", "run_dir")
    if not isinstance(tree, dict):
        raise ValueError(f"must be a mapping of keys to values; known keys: {', '.join(known)}")
    if unknown := [name for name in tree if name not in known]:
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if missing := [name for name in REQUIRED if name not in tree]:
        raise ValueError(f"{missing[0]}: missing")
    rest = dict(tree)
    run_dir, fixed, space = rest.pop("run_dir", f"runs/sweep-{path.stem}"), rest.pop("fixed", {}), rest.pop("space")
    if not isinstance(run_dir, str) or not run_dir:
        raise ValueError(f"run_dir = {run_dir!r}: must be the name of a folder")
    for name, part in (("fixed", fixed), ("space", space)):
        if not isinstance(part, dict):
            raise ValueError(f"{name} = {part!r}: must be a mapping from dotted field names, such as optim.learning_rate")
    if not space:
        raise ValueError("space: is empty; name at least one field to vary")
    if twice := sorted(set(fixed) & set(space)):
        raise ValueError(f"{twice[0]}: is in fixed and in space; put it in only one of them")
    settings = decode(Settings, rest)
    dimensions = _space(space)
    for name in fixed:
        _hint(f"fixed.{name}", name)
    # Some fixed values are valid only together with values of the space, so they are checked together.
    start = preset(settings.preset, settings.benchmark, settings.task)
    first = {dimension.name: dimension.value(dimension.ends()[0]) for dimension in dimensions}
    return Spec(settings, override(start, {**fixed, **first}), dimensions), run_dir


def override(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """``config`` with other values, by dotted names. Raises ValueError on values that the configuration refuses."""
    tree = json.loads(config.to_json())
    for name, value in values.items():
        section, _, field = name.partition(".")
        tree[section][field] = value
    return decode(RunConfig, tree)


def _hint(where: str, name: Any) -> Any:
    """The type of a field by its dotted name."""
    sections = get_type_hints(RunConfig)
    section, _, field = str(name).partition(".")
    if section not in sections:
        raise ValueError(f"{where}: no such field; write SECTION.FIELD; sections: {', '.join(sections)}")
    hints = get_type_hints(sections[section])
    if field not in hints:
        raise ValueError(f"{where}: no such field; fields of {section}: {', '.join(hints)}")
    if name in ("data.benchmark", "data.task"):
        raise ValueError(f"{where}: set it with the key {field!r} of the specification, since presets depend on it")
    return hints[field]


def _space(tree: Mapping[Any, Any]) -> tuple[Dimension, ...]:
    return tuple(_dimension(name, part) for name, part in tree.items())


def _dimension(name: Any, tree: Any) -> Dimension:
    where = f"space.{name}"
    hint = _hint(where, name)
    forms = "{values: [...]}, {low, high}, {low, high, log: true} or {low, high, step}"
    if not isinstance(tree, dict) or not (set(tree) == {"values"} or {"low", "high"} <= set(tree) <= {"low", "high", "step", "log"}):
        raise ValueError(f"{where} = {tree!r}: must be {forms}")
    if "values" in tree:
        values = tree["values"]
        if not isinstance(values, list) or not values or any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"{where}.values = {values!r}: must be a list of different values")
        return Dimension(name, values=tuple(values))
    kinds = {kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)}
    if kinds not in ({int}, {float}):
        raise ValueError(f"{where}: is not a number, so it cannot have a range; use {{values: [...]}}")
    return _range(where, name, tree, whole=kinds == {int})


def _range(where: str, name: str, tree: Mapping[str, Any], whole: bool) -> Dimension:
    log = tree.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"{where}.log = {log!r}: must be true or false")
    kinds: Sequence[type] = (int,) if whole else (int, float)
    for key in ("low", "high", "step"):
        if key in tree and (type(tree[key]) not in kinds or not math.isfinite(tree[key])):
            raise ValueError(f"{where}.{key} = {tree[key]!r}: must be a {'whole ' if whole else ''}number")
    low, high = tree["low"], tree["high"]
    if not low < high:
        raise ValueError(f"{where}.low = {low}: must be below high = {high}")
    if log and (low <= 0 or "step" in tree):
        raise ValueError(f"{where}.log = true: needs low > 0 and no step")
    step = tree.get("step", 1 if whole and not log else None)
    if step is not None and not (step > 0 and abs((high - low) / step - round((high - low) / step)) < 1e-9):
        raise ValueError(f"{where}.step = {step}: must divide high - low = {high - low}")
    return Dimension(name, whole=whole, low=low, high=high, step=step, log=log)
