"""The questions that are evaluated: one set for each row of results.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qrag_jax import data
from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.config.lengths import format_tokens, parse_tokens
from qrag_jax.config.retarget import others, parts
from qrag_jax.data.babilong import rows as babilong_rows
from qrag_jax.data.multihop.hotpotqa import load_fullwiki
from qrag_jax.data.ruler import files as ruler_files
from qrag_jax.data.ruler import tasks as ruler
from qrag_jax.data.splits import Split
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample

# Endings of a benchmark's name if other questions than its usual test are read: the records that BABILong and RULER publish, HotpotQA's
# fullwiki file.
OFFICIAL, FULLWIKI = "-official", "-fullwiki"
GROUP = 256  # number of questions whose paragraphs are embedded together


@dataclass(frozen=True)
class EvaluationSet:
    """Questions of one kind, searched with ``budget`` picks. ``groups`` are embedded one after another; the questions of a group share
    their haystack. A group is made only when it is needed, because documents of 10M tokens are large. ``context_tokens`` is None if
    documents have their own length."""

    name: str
    benchmark: str
    task: str
    context_tokens: int | None
    budget: int
    examples: Sequence[QAExample]
    groups: tuple[range, ...]
    split: Split = "test"

    @property
    def known_benchmark(self) -> str:
        """The benchmark's name in the table of facts, without an ending."""
        return self.benchmark.removesuffix(OFFICIAL).removesuffix(FULLWIKI)

    @property
    def names(self) -> dict[str, Any]:
        """The first fields of a row of results.json."""
        return {"benchmark": self.benchmark, "task": self.task, "split": self.split, "context_tokens": self.context_tokens}

    def __iter__(self) -> Iterator[list[QAExample]]:
        return ([self.examples[i] for i in group] for group in self.groups)


def final_sets(config: RunConfig) -> list[EvaluationSet]:
    """The sets of a run's final evaluation, on ``config.eval.split``: its benchmark at every context length of ``config.eval.tokens``, or
    once if documents have their own length; then the same for ``config.eval.benchmarks``, with the paper's number of picks for each.

    Reads the data, so that missing files are found before training. Raises ValueError on missing or broken data, and on a context
    length of fewer chunks than the budget.
    """
    sets = []
    elsewhere = others(config.data, config.eval.benchmarks)
    for settings in [*parts(config.data), *elsewhere]:
        budget = benchmarks.picks(settings.benchmark) if settings in elsewhere else config.eval.budget
        one = replace(config, data=settings, eval=replace(config.eval, budget=budget))
        lengths = map(parse_tokens, config.eval.tokens) if benchmarks.made_to_length(settings.benchmark) else (None,)
        sets += [evaluation_set(one, config.eval.split, tokens, config.eval.episodes) for tokens in lengths]
    return sets


def validation_set(config: RunConfig) -> EvaluationSet:
    """Validation questions in documents as long as those of training."""
    return evaluation_set(config, "validation", None, config.train.eval_episodes)


def evaluation_set(config: RunConfig, split: Split, tokens: int | None, episodes: int) -> EvaluationSet:
    """At most ``episodes`` questions. If ``tokens`` is None, documents have ``config.data.chunks`` chunks, or their own length."""
    settings = config.data
    name = f"{settings.benchmark}-{settings.task}"
    if not benchmarks.made_to_length(settings.benchmark):
        examples = data.load(settings, split, seed=config.train.seed, haystacks=1)
        groups = _own_lengths(min(episodes, len(examples)))
    else:
        chunks = settings.chunks if tokens is None else data.context_chunks(settings.benchmark, settings.task, tokens)
        haystacks = min(config.eval.haystacks, episodes)
        examples = data.load(settings, split, seed=config.train.seed, chunks=chunks, haystacks=haystacks)
        groups = tuple(range(first, episodes, haystacks) for first in range(haystacks))
    if tokens is not None:
        name += f"-{format_tokens(tokens)}"
    # A document made to length is too short for all questions; documents with their own length give what they have.
    if benchmarks.made_to_length(settings.benchmark) and len(examples[0].chunks) < config.eval.budget:
        raise ValueError(
            f"eval.budget = {config.eval.budget}: must be <= {len(examples[0].chunks)}, the chunks of a document of {name} ({split})"
        )
    return EvaluationSet(name, settings.benchmark, settings.task, tokens, config.eval.budget, examples, groups, split)


def official_sets(config: RunConfig) -> list[EvaluationSet]:
    """The files that a benchmark's authors publish for evaluation alone. BabiLong and RULER: the rows of the run's task (or of all needle
    tasks), with one set for each length found in ``config.data.data_dir``. HotpotQA: the fullwiki questions.

    Raises ValueError for other benchmarks and splits, and on missing or broken files.
    """
    if config.data.benchmark not in ("babilong", "ruler", "hotpotqa"):
        raise ValueError(
            "official: only babilong (its rows), ruler (its records) and hotpotqa (the fullwiki file) have official files, "
            f"{config.data.benchmark} has none"
        )
    if config.eval.split != "test":
        raise ValueError(f"eval.split = {config.eval.split!r}: official records are for the test alone; leave it at test")
    if config.data.benchmark == "hotpotqa":
        examples = load_fullwiki(config.data, seed=config.train.seed)
        name, groups = f"hotpotqa{FULLWIKI}", _own_lengths(min(config.eval.episodes, len(examples)))
        task = config.data.task
        return [EvaluationSet(f"{name}-{task}", name, task, None, config.eval.budget, examples, groups)]
    folder = babilong_rows.FOLDER if config.data.benchmark == "babilong" else ruler_files.FOLDER
    if config.data.data_dir is None:
        raise ValueError(f"data.data_dir: official records are files, so give the folder that holds {folder}/")
    return (
        _babilong_sets(config, config.data.data_dir) if config.data.benchmark == "babilong" else _ruler_sets(config, config.data.data_dir)
    )


def _babilong_sets(config: RunConfig, data_dir: str) -> list[EvaluationSet]:
    sets = []
    for length in babilong_rows.find_rows(data_dir, config.data.task):
        name = f"babilong{OFFICIAL}-{config.data.task}-{length.lower()}"
        rows = babilong_rows.load_rows(data_dir, config.data.task, length, skip_bad=config.data.skip_bad)
        examples = rows[: config.eval.episodes]
        if len(examples) < len(rows):
            say(f"{name}: the first {len(examples):,} of {len(rows):,} rows; eval.episodes {len(rows)} takes all")
        groups = tuple(range(i, i + 1) for i in range(len(examples)))
        tokens = babilong_rows.tokens(length)
        sets.append(EvaluationSet(name, f"babilong{OFFICIAL}", config.data.task, tokens, config.eval.budget, examples, groups))
    return sets


def _ruler_sets(config: RunConfig, data_dir: str) -> list[EvaluationSet]:
    sets = []
    for settings in parts(config.data):
        for length in ruler_files.official_lengths(data_dir, ruler.full_name(settings.task)):
            examples = ruler.load_official(data_dir, settings.task, length)
            groups = tuple(range(i, i + 1) for i in range(len(examples)))
            name = f"ruler{OFFICIAL}-{settings.task}-{length}"
            sets.append(EvaluationSet(name, f"ruler{OFFICIAL}", settings.task, length, config.eval.budget, examples, groups))
    return sets


def _own_lengths(count: int) -> tuple[range, ...]:
    """Groups of ``count`` questions that have their own documents."""
    return tuple(range(start, min(start + GROUP, count)) for start in range(0, count, GROUP))
