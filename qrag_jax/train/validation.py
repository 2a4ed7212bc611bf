"""Validation during training: the search of the final evaluation, on fewer questions. It chooses the checkpoint "best"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qrag_jax.config import RunConfig
from qrag_jax.data.pooled import in_one_haystack
from qrag_jax.evaluate.episodes import read_answers, run_episodes, summary, threshold_of
from qrag_jax.evaluate.results import EpisodeRecord
from qrag_jax.evaluate.sets import EvaluationSet
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rl.learner import Params
from qrag_jax.rundir.checkpoint import Checkpoints
from qrag_jax.rundir.log import RunLog, say
from qrag_jax.rundir.progress import Progress
from qrag_jax.train.model import Model
from qrag_jax.types import QAExample

TITLES = {
    "fact_em": "Fact EM",
    "fact_f1": "Fact F1",
    "fact_f1_stopped": "Fact F1 stopped",
    "answer_em": "answer EM",
    "haystack_fact_em": "Fact EM among all chunks",
}
SHOWN = 3
"""Validation questions whose picks the sinks show."""


@dataclass(frozen=True)
class Validation:
    """Validates a run on ``questions``. Only process 0 calls it."""

    config: RunConfig
    model: Model
    questions: EvaluationSet
    examples: list[QAExample]
    """The questions of all groups."""
    reader: Reader | None
    """The reader, if its answers are the reward: checkpoints are then compared by Answer EM. None: they are compared by Fact EM."""
    log: RunLog
    checkpoints: Checkpoints

    def __call__(self, params: Params, step: int, progress: Progress) -> Progress:
        """Records how good ``params`` are after ``step`` updates; saves them as "best" unless an earlier validation was better."""
        retriever = Retriever(self.config, self.model.embedder, params, self.model.tokenizer)
        # A run that trains among the chunks of its batch also searches those of all validation questions; this chooses nothing.
        pooled = in_one_haystack(self.examples) if self.config.data.haystack == "batch" else []
        records = run_episodes(retriever, [*self.examples, *pooled], self.config.eval.budget, beam=self.config.eval.beam)
        records, in_haystack = records[: len(self.examples)], records[len(self.examples) :]
        threshold = threshold_of(records)
        if self.reader is not None:
            records = read_answers(self.reader, records, self.questions, "retrieved", self.examples)
        found = summary(records, threshold)
        figures = {name: found[name] for name in ("fact_em", "fact_f1", "fact_f1_stopped", "answer_em")}
        if in_haystack:
            figures["haystack_fact_em"] = summary(in_haystack, threshold)["fact_em"]
        self.log.record("validation", step, **figures)
        self.show(step, figures, records)
        target = self.config.train.stop_at
        reached = progress.reached + 1 if target is not None and found["fact_em"] >= target else 0
        progress = replace(progress, threshold=threshold, reached=reached)
        # The stopped F1 breaks ties: it is high only if Q is low once all supporting chunks have been picked.
        score = found["fact_em" if self.reader is None else "answer_em"] + 1e-3 * (found["fact_f1_stopped"] or 0.0)
        if score < progress.best:
            return progress
        self.checkpoints.save_best(step, params, threshold)
        return replace(progress, best=score, best_step=step)

    def show(self, step: int, figures: Mapping[str, float | None], records: Sequence[EpisodeRecord]) -> None:
        """Prints the figures of a validation; gives the sinks their table, Q of the picks, and what was picked for three questions."""
        known = {name: value for name, value in figures.items() if value is not None}
        say(f"validation after update {step}: " + ", ".join(f"{TITLES[name]} {value:.3f}" for name, value in known.items()))
        if not self.log.tracked:
            return
        q = [(chunk in record.support, value) for record in records for chunk, value in zip(record.picked, record.q, strict=True)]
        for name, kind in (("q_supporting", True), ("q_other", False)):
            if values := [value for supports, value in q if supports == kind]:
                self.log.histogram(f"validation/{name}", step, values)
        rows = [[f"{one['step']}", *(show(one.get(name)) for name in known)] for one in self.log.validations()]
        self.log.table("validation/figures", step, ["update", *(TITLES[name] for name in known)], rows)
        self.log.table("validation/picks", step, ["question", "pick", "Q", "supports", "chunk"], list(picks(records[:SHOWN])))


def show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def picks(records: Sequence[EpisodeRecord]) -> Iterator[list[str]]:
    """A row for each pick: question, number of the pick, Q, whether the chunk supports the answer, and its text."""
    for record in records:
        for number, (chunk, q, text) in enumerate(zip(record.picked, record.q, record.texts, strict=True), 1):
            yield [record.question, str(number), show(q), "yes" if chunk in record.support else "no", text]
