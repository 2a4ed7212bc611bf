"""Makes the corpora of a test, chooses on validation questions, and scores every method on the test questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.baselines import untrained
from experiments.open.report import Open
from qrag_jax import data
from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.data.multihop.passages import read_passages
from qrag_jax.data.splits import Split
from qrag_jax.evaluate.baselines import Encoder, Similarity
from qrag_jax.evaluate.corpus import UNTIL_STOP, Corpus, Method, Metric, choose, chosen, gather, scores
from qrag_jax.evaluate.episodes import score_episodes
from qrag_jax.evaluate.open_search import baseline_methods, open_threshold, search, trained_methods
from qrag_jax.evaluate.results import write_episodes
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Trajectory
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample

CHOSEN = "Q-RAG, chosen on validation"


@dataclass(frozen=True)
class Test:
    """What is measured. Fields: as those of the command line; ``vocabulary``: the folder of a run whose vocabulary is its own."""

    config: RunConfig
    split: Split
    questions: int | None
    distractors: Path | None
    picks: tuple[int, ...]
    recall: tuple[int, ...]
    beams: tuple[int, ...]
    encoders: tuple[str, ...]
    similarity: Similarity
    validation_questions: int
    vocabulary: Path

    @property
    def cuts(self) -> dict[Metric, tuple[int, ...]]:
        return {"all_support": self.picks, "recall": self.recall}

    def examples(self, split: Split) -> Sequence[QAExample]:
        return data.load(self.config.data, split, seed=self.config.train.seed)


def measure(test: Test, retriever: Retriever | None, episodes: Path) -> Open:
    """Searches the corpus of the test with every method; writes the picks of each method into the folder ``episodes``.

    Raises ValueError on missing or broken data, and when an encoder cannot be loaded.
    """
    more = () if test.distractors is None else read_passages(test.distractors)
    corpus = gather(first(test.examples(test.split), test.questions), more)
    say(f"{len(corpus.questions):,} {test.split} questions in one corpus of {len(corpus.texts):,} chunks")
    encoders = load_encoders(test)
    methods, threshold = baseline_methods(corpus, encoders), None
    choice: dict[int, str] = {}
    if retriever is not None:
        threshold, choice = decide(test, retriever, encoders, len(corpus.texts))
        methods += trained_methods(search(retriever, corpus, test.picks, test.beams), threshold, methods)
        if choice:
            methods.append(chosen(CHOSEN, choice, methods))
    for old in episodes.glob("*.jsonl"):  # of another command in this folder
        old.unlink()
    for method in methods:
        write_picks(episodes, corpus, method, max(*test.picks, *test.recall))
    settings = test.config.data
    return Open(
        benchmark=settings.benchmark,
        task=settings.task,
        split=test.split,
        questions=len(corpus.questions),
        published=benchmarks.find(settings.benchmark).published,
        chunks=len(corpus.texts),
        distractors=len(more),
        embedder=None if retriever is None else retriever.config.model.embedder,
        step=None if retriever is None else retriever.step,
        stop_threshold=threshold,
        encoders=tuple(encoders),
        seed=test.config.train.seed,
        chosen=choice,
        scores=tuple(scores(corpus, methods, test.cuts, seed=test.config.train.seed)),
    )


def first(examples: Sequence[QAExample], count: int | None) -> list[QAExample]:
    """The first ``count`` examples, or all that there are."""
    return [examples[i] for i in range(len(examples) if count is None else min(count, len(examples)))]


def filling(examples: Iterable[QAExample], known: set[str], chunks: int) -> Iterator[str]:
    """New texts from the documents of ``examples``, until ``chunks`` are ``known``."""
    for text in (text for example in examples for text in example.chunks):
        if len(known) >= chunks:
            return
        if text not in known:
            known.add(text)
            yield text


def load_encoders(test: Test) -> dict[str, Encoder]:
    """The encoders of the baselines, by name, with the text lengths of the retriever. Without names: the encoder it started from, unless
    that has random weights."""
    base = test.config.model.embedder
    if base == "tiny" and not test.encoders:
        say("the retriever was trained from scratch, so BM25 is the only baseline; name an encoder with --encoders, such as minilm")
    found = {}
    for name in test.encoders or ((base,) if base != "tiny" else ()):
        config = replace(test.config, model=replace(test.config.model, embedder=name))
        label = Path(name).expanduser().name if Path(name).expanduser().is_dir() else name
        if label in found:
            raise ValueError(f"encoders: two of them are called {label}; rename one folder")
        found[label] = Encoder(untrained(config, test.vocabulary), test.similarity)
    return found


def decide(test: Test, retriever: Retriever, encoders: Mapping[str, Encoder], chunks: int) -> tuple[float | None, dict[int, str]]:
    """The stop threshold, and for each number of picks the method that is best on validation questions.

    Their corpus is filled up to ``chunks`` with training paragraphs, since a threshold for ten paragraphs does not suit thousands. Without
    validation questions, the threshold is the retriever's own and nothing is chosen.
    """
    if not test.validation_questions:
        return retriever.threshold, {}
    asked = first(test.examples("validation"), test.validation_questions)
    trial = gather(asked, filling(test.examples("train"), set(gather(asked).texts), chunks))
    say(f"choosing on {len(trial.questions):,} validation questions in one corpus of {len(trial.texts):,} chunks")
    found = search(retriever, trial, test.picks, test.beams)
    threshold = open_threshold(found, trial)
    baselines = baseline_methods(trial, encoders)
    ways = [method for method in trained_methods(found, threshold, baselines) if method.name != UNTIL_STOP]
    choice = choose(trial, [*ways, *baselines], test.cuts)
    say(f"stop threshold: {'none' if threshold is None else format(threshold, '.3f')}; chosen for each number of picks: {choice}")
    return threshold, choice


def write_picks(folder: Path, corpus: Corpus, method: Method, most: int) -> None:
    """Writes the picks of a method, best first, as episodes/*.jsonl of other evaluations."""
    found = [Trajectory(order, (), (0.0,) * len(order)) for order in method.picks(most)]
    name = "".join(char if char.isalnum() else "-" for char in method.name)
    write_episodes(folder / f"{name}.jsonl", score_episodes(corpus.questions, found))
