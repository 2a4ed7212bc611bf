"""What ``experiments.speed.stores`` measures: equal picks and the cost of a step, of indexes in stores and in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from experiments.speed.exact_measures import enlarged
from experiments.speed.inputs import GivenVectors
from experiments.speed.measures import spread
from experiments.speed.timing import alternate, describe_machine
from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.index import Index, Source
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Pick
from qrag_jax.rundir.log import progress, say

FOLDER = "folder"
POSITIONS: tuple[Literal["none", "relative"], ...] = ("none", "relative")
TIE = 1e-6  # equal inner products may differ so much, and then any of the chunks may be picked
TOGETHER = 25  # questions searched at once
LEFT_OUT = 5  # every fifth document is removed and added again


State = tuple[str, tuple[str, ...], int]


class _Remembering(Retriever):
    """Embeds each state once, for all stores. ``remembered``: a state (question, texts of the picks, budget) -> its embedding."""

    remembered: dict[State, Float[np.ndarray, " D"]]

    def embed_states(
        self, questions: Sequence[str], picked: Sequence[Sequence[str]], budget: int, *, label: str | None = None
    ) -> Float[np.ndarray, "P D"]:
        states = [(question, tuple(texts), budget) for question, texts in zip(questions, picked, strict=True)]
        if new := [state for state in dict.fromkeys(states) if state not in self.remembered]:
            vectors = super().embed_states([state[0] for state in new], [state[1] for state in new], budget, label=label)
            self.remembered.update(zip(new, vectors, strict=True))
        return np.stack([self.remembered[state] for state in states])


class Measures:
    """The index of ``documents`` in a folder, which embeds them, and in each of ``places`` with the same vectors.

    Raises ValueError when there are fewer than ``LEFT_OUT`` documents.
    """

    def __init__(self, retriever: Retriever, documents: Path, places: Sequence[str], scratch: Path) -> None:
        self.retriever, self.documents, self.places, self.scratch = retriever, documents, places, scratch
        self.remembered: dict[State, Float[np.ndarray, " D"]] = {}
        say("building the index in a folder")
        folder = Index.build(retriever, documents, scratch / "documents")
        self.vectors = np.array(folder.rows.block(0, len(folder)))
        texts = [folder.chunk(i).text for i in range(len(folder))]
        self.known = GivenVectors(retriever, dict(zip(texts, self.vectors, strict=True)))
        self.names = list(dict.fromkeys(record.name for record in folder.sources if record.name is not None))
        if len(self.names) < LEFT_OUT:
            raise ValueError(f"documents = {documents}: holds {len(self.names)} documents; at least {LEFT_OUT} are needed")
        self.indexes, self.seconds = self._in_stores(self.known, documents, "documents")
        self.indexes = {FOLDER: folder} | self.indexes

    def _in_stores(self, known: GivenVectors, source: Source, name: str) -> tuple[dict[str, Index], dict[str, float]]:
        """The index of a source in each store, and the seconds of its build."""
        made, seconds = {}, {}
        for number, place in enumerate(self.places):
            say(f"building the index in {place}")
            start = time.perf_counter()
            made[place] = Index.build(known, source, self.scratch / f"{name}-{number}", store=place)
            seconds[place] = time.perf_counter() - start
        return made, seconds

    def report(
        self, asked: Sequence[str], filters: Sequence[str], budget: int, sizes: Sequence[int], noise: float, repeats: int
    ) -> dict[str, Any]:
        """The content of stores.json."""
        states: Float[np.ndarray, "1 D"] = self.retriever.embed_states(asked[:1], [()], 4)
        count = len(self.vectors)
        report: dict[str, Any] = {
            "schema": 2,
            "machine": describe_machine(1024, 3),
            "settings": {"chunks": count, "width": self.vectors.shape[1], "documents": len(self.names), "questions": len(asked)}
            | {"filters": list(filters), "budget": budget, "noise": noise, "repeats": repeats},
            "sizes": [{"chunks": count, "build_s": self.seconds, "step": self._steps(self.indexes, states, repeats)}],
        }
        report["picks"] = [self._picks("built", asked, filters, budget)]
        self.indexes = {place: index.remove(self.names[::LEFT_OUT]) for place, index in self.indexes.items()}
        report["picks"].append(self._picks("documents removed", asked, filters, budget))
        self.indexes = {place: index.sync(self.known, self.documents) for place, index in self.indexes.items()}
        report["picks"].append(self._picks("documents added again", asked, filters, budget))
        for size in sizes:
            texts = [str(i) for i in range(size)]
            rows = np.concatenate(list(enlarged(self.vectors, size, noise)))
            known = GivenVectors(self.retriever, dict(zip(texts, rows, strict=True)))
            indexes = {FOLDER: Index.build(known, texts, self.scratch / f"{size}")}
            more, seconds = self._in_stores(known, texts, str(size))
            report["sizes"].append({"chunks": size, "build_s": seconds, "step": self._steps(indexes | more, states, repeats)})
        return report

    def _steps(self, indexes: Mapping[str, Index], states: Float[np.ndarray, "1 D"], repeats: int) -> dict[str, Any]:
        """Times of a step of one question after three picks."""
        found: dict[str, Any] = {}
        for name in POSITIONS:
            scorers = {place: self._with(name).scorer(index) for place, index in indexes.items()}
            picked = spread(len(indexes[FOLDER]))
            calls: dict[str, Callable[[], object]] = {place: partial(scorer, states, [picked], 1) for place, scorer in scorers.items()}
            found[name] = alternate(calls, repeats)
        return found

    def _picks(self, when: str, asked: Sequence[str], filters: Sequence[str], budget: int) -> dict[str, Any]:
        """Whole searches in each store, compared with those in the folder."""
        found: dict[str, dict[str, Any]] = {
            place: {"searches": 0, "different": 0, "ties": 0, "largest_q_difference": 0.0} for place in self.places
        }
        parts = [asked[start : start + TOGETHER] for start in range(0, len(asked), TOGETHER)]
        ways = [(name, given) for name in POSITIONS for given in (None, *filters)]
        for name, given in progress(ways, desc=f"searching ({when})", leave=False):
            retriever = self._with(name)
            for part in parts:
                searched = {
                    place: retriever.search_batch(part, index, budget, mode="multi", filter=None if given is None else [given])
                    for place, index in self.indexes.items()
                }
                for place in self.places:
                    for own, folders in zip(searched[place], searched[FOLDER], strict=True):
                        _compare(found[place], own, folders)
        return {"when": when, "chunks": len(self.indexes[FOLDER]), "stores": found}

    def _with(self, positions: Literal["none", "relative"]) -> Retriever:
        """The retriever with other positions. Relative ones are whole numbers, which a store can search."""
        of, usual = self.retriever, QHeadConfig()
        qhead = replace(of.config.qhead, positions=positions, position_resolution=usual.position_resolution)
        made = _Remembering(replace(of.config, qhead=qhead), of.embedder, of.params, of.tokenizer)
        made.remembered = self.remembered
        return made


def _compare(row: dict[str, Any], own: Sequence[Pick], folders: Sequence[Pick]) -> None:
    """Counts one search. Where picks differ, so may all later ones: only the first such step says whether it was a tie."""
    row["searches"] += 1
    by_step: Callable[[Pick], int] = lambda pick: pick.step
    for a, b in zip(sorted(own, key=by_step), sorted(folders, key=by_step), strict=True):
        difference = abs(a.q - b.q)
        if a.chunk != b.chunk:
            row["ties" if difference <= TIE else "different"] += 1
            return
        row["largest_q_difference"] = max(row["largest_q_difference"], difference)


def markdown(report: Mapping[str, Any]) -> str:
    """The text of stores.md."""
    settings, machine = report["settings"], report["machine"]
    picks = [
        "| store | index | searches | other picks than the folder's | equal Q, another of the chunks | largest difference of Q |",
        "|---|---|---|---|---|---|",
    ]
    for part in report["picks"]:
        for place, row in part["stores"].items():
            counts = f"{row['searches']:,} | {row['different']} | {row['ties']} | {row['largest_q_difference']:.0e}"
            picks.append(f"| {_kind(place)} | {part['when']}, {part['chunks']:,} chunks | {counts} |")
    steps = ["| chunks | store | build, s | no positions | relative positions |", "|---|---|---|---|---|"]
    for size in report["sizes"]:
        for place in (FOLDER, *size["build_s"]):
            each = (_seconds(size["build_s"].get(place)), *(_times(size["step"][name][place]) for name in POSITIONS))
            steps.append(f"| {size['chunks']:,} | {_kind(place)} | {' | '.join(each)} |")
    lines = [
        "# An index in a vector store, compared with a folder",
        f"{machine['cpu'] or 'CPU of unknown name'}, {machine['cores']} cores. {settings['chunks']:,} chunks of {settings['documents']:,} "
        f"documents, {settings['width']} wide. {settings['questions']} questions, {settings['budget']} picks each, without positions and "
        f"with relative ones, with no filter{''.join(f', with {one}' for one in settings['filters'])}.",
        "## Picks",
        "\n".join(picks),
        f"## A step of one question, three chunks picked; median of {settings['repeats']} (smallest), ms",
        "\n".join(steps),
        "Builds have their vectors ready. Where there are more chunks than in the documents, their vectors are repeated with noise of "
        f"{settings['noise']:g} of their length.",
    ]
    return "\n\n".join(lines) + "\n"


def _kind(place: str) -> str:
    return place.partition(":")[0]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _times(row: Mapping[str, Any]) -> str:
    return f"{row['median_s'] * 1e3:.1f} ({row['min_s'] * 1e3:.1f})"
