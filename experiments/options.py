"""Options that several commands share: they have the same names, the same defaults and the same meaning in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from qrag_jax.config import EvalConfig, RunConfig, presets
from qrag_jax.config.retarget import retarget

EVAL_SHORT = {
    "--eval": "--eval.benchmarks",
    "--eval-tokens": "--eval.tokens",
    "--eval-episodes": "--eval.episodes",
    "--split": "--eval.split",
    "--beam": "--eval.beam",
    "--haystacks": "--eval.haystacks",
    **{f"--reader{rest}": f"--eval.reader{rest}" for rest in ("", "-context", "-tokens", "-timeout", "-concurrency", "-devices", "-dtype")},
}
"""Short name -> field of the configuration, wherever a test is described."""


def long_names(words: Sequence[str], short: dict[str, str]) -> list[str]:
    """A command line with the short names spelled out."""
    parts = [word.partition("=") for word in words]
    return [short.get(name, name) + equals + value for name, equals, value in parts]


def short_names(short: dict[str, str]) -> str:
    """The short names and their fields, for the help."""
    return "Short names:\n" + "\n".join(f"  {name} = {field}" for name, field in short.items())


OWN = tyro.conf.arg(help_behavior_hint="(default: that of the retriever or preset)")


@dataclass(frozen=True)
class Questions:
    """Which questions are asked."""

    benchmark: Annotated[str | None, OWN] = None
    """The benchmark."""
    task: Annotated[str | None, OWN] = None
    """The task. With another benchmark, the default is that benchmark's usual task."""
    data_dir: Annotated[tyro.conf.DisallowNone[str | None], OWN] = None
    """Folder with the benchmark's files, or the .jsonl file of your own questions. "none": stories and needles are generated and hidden in
    Python's documentation."""
    skip_bad: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave out bad records of the benchmark's files; otherwise the first one is an error."""

    def of(self, config: RunConfig, chunks: int | None = None, seed: int | None = None) -> RunConfig:
        """``config`` with these questions; None keeps its own value. Raises ValueError on an unknown benchmark or task."""
        skip_bad = True if self.skip_bad else None
        return retarget(
            config, benchmark=self.benchmark, task=self.task, data_dir=self.data_dir, skip_bad=skip_bad, chunks=chunks, seed=seed
        )

    def of_preset(self, name: str, seed: int | None = None) -> RunConfig:
        """The settings of a preset, a file, or the folder of a run or of an export, for these questions.

        Raises ValueError as :meth:`of` and :func:`qrag_jax.config.presets.preset` do.
        """
        base = presets.preset(name) if presets.is_run(name) else presets.preset(name, self.benchmark, self.task)
        return self.of(base, seed=seed)


if TYPE_CHECKING:
    EvalOptions = EvalConfig
else:
    _HINTS = get_type_hints(EvalConfig)
    EvalOptions = make_dataclass(
        "EvalOptions",
        [(one.name, Annotated[tyro.conf.DisallowNone[_HINTS[one.name] | None], OWN], None) for one in fields(EvalConfig)],
        bases=(EvalConfig,),
        frozen=True,
        namespace={"__post_init__": lambda self: None, "__doc__": "The test. Omitted options keep the retriever's own values."},
    )
"""The section ``eval`` of a configuration as typed; None for options that were not given. It is checked later, once the retriever's own
values have filled the gaps."""


def given(options: EvalOptions) -> dict[str, Any]:
    """The fields that were typed."""
    return {name: value for name, value in vars(options).items() if value is not None}
