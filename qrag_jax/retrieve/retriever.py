"""The product: a trained retriever that searches a text, a list of chunks or an index in any number of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qrag_jax.config import RunConfig
from qrag_jax.models.embedder import Embedder, embed_actions, embed_states
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.clock import SearchClock
from qrag_jax.retrieve.device_scan import DeviceScorer
from qrag_jax.retrieve.embed import embed_by_length, embed_texts, in_blocks
from qrag_jax.retrieve.filters import Filter, allowed_chunks
from qrag_jax.retrieve.records import notices
from qrag_jax.retrieve.scan import Hidden, HostScorer, runs
from qrag_jax.retrieve.search import Scorer, SearchPath, check_budget, search, stopped
from qrag_jax.retrieve.sources import ChunkStream, check_encodable
from qrag_jax.retrieve.types import Candidate, Document, MemoryDocument, Pick, PoolRows, Step, Trajectory
from qrag_jax.rl.env import StateLayout, state_row
from qrag_jax.rundir.log import say
from qrag_jax.types import PAD, QAExample

STATES = (1, 8, 64)  # states embedded at once
FEW = 8  # so many states are padded to the longest that is possible: few shapes, so few compilations
HOST_ROWS = 2**14  # documents of up to so many chunks are scored on the host, where their vectors are

Source = str | Path | Iterable[Any] | Document
"""A ``str`` is a text; a ``Path`` is a text file or a folder of them. Other values are the chunks of a document in order (texts, or
documents of LangChain, LlamaIndex or Haystack), or an index."""


@partial(jax.jit, static_argnames="embedder")
def _embed_actions(params: Any, ids: Int[Array, "R L"], *, embedder: Embedder) -> Float[Array, "R D"]:
    return embed_actions(embedder, params, ids)


@partial(jax.jit, static_argnames="layout")
def _state_rows(
    question_ids: Int[Array, "R Lq"], chunk_rows: Int[Array, "R T Lc"], taken: Bool[Array, "R T"], *, layout: StateLayout
) -> Int[Array, "R Ls"]:
    return jax.vmap(partial(state_row, layout=layout))(question_ids, chunk_rows, taken)


@partial(jax.jit, static_argnames="embedder")
def _embed_states(params: Any, ids: Int[Array, "R Ls"], *, embedder: Embedder) -> Float[Array, "R D"]:
    return embed_states(embedder, params, ids)


class Retriever:
    """A trained pair of encoders with its tokenizer.

    ``threshold``: stop when the best Q is below it (None: not calibrated). ``step``: number of updates that trained the parameters.
    """

    def __init__(
        self, config: RunConfig, embedder: Embedder, params: Any, tokenizer: TextTokenizer, threshold: float | None = None, step: int = 0
    ) -> None:
        self.config = config
        self.embedder = embedder
        self.params = params
        self.tokenizer = tokenizer
        self.threshold = threshold
        self.step = step
        self._told: set[str] = set()  # what the user was told already

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Retriever:
        """From a run directory, an export folder, a released checkpoint (its folder or its .pt file), gs://BUCKET/NAME, or
        OWNER/NAME[@REVISION] on the hub, which holds an export or a released checkpoint.

        What is on the hub is downloaded into its cache once. Raises ValueError, saying what to do, when there is no such model.
        """
        from qrag_jax.export.hub import load_model

        export = load_model(path)
        params = jax.device_put(export.params)  # once, not at every call
        return cls(export.config, export.embedder(), params, export.tokenizer, export.threshold, export.step)

    def search(
        self, question: str, source: Source, budget: int = 4, *, beam: int = 1, stop: bool = False, filter: Filter | None = None
    ) -> list[Pick]:
        """The ``budget`` chunks picked for a question, in document order.

        Args:
            question: the question.
            source: a text (``str``), or a text file or a folder of .txt and .md files (``Path``), cut into chunks here; the chunks of a
                document in order; or an index.
            budget: how many chunks to pick.
            beam: how many paths to keep at each step ("Plan Q-RAG"); 1 is greedy.
            stop: pick fewer when the best Q falls below the calibrated threshold.
            filter: pick only from documents whose name and metadata match (:data:`~qrag_jax.retrieve.filters.Filter`).

        Raises ValueError when the question or the source is empty, the budget is below 1, the index was built with another
        model, or ``stop`` is set but the retriever has no threshold.
        """
        return self.search_batch([question], source, budget, beam=beam, stop=stop, filter=filter)[0]

    def search_batch(
        self, questions: Sequence[str], source: Source, budget: int = 4, *, beam: int = 1, stop: bool = False, filter: Filter | None = None
    ) -> list[list[Pick]]:
        """:meth:`search` for many questions over one source, which is read once per step for all of them."""
        if isinstance(questions, str):
            raise ValueError(f"questions = {questions!r}: must be a list of questions; search takes one")
        document = self.document(source)
        *_, paths = self._paths(questions, [document] * len(questions), budget, beam=beam, stop=stop, filter=filter)
        found = []
        for path, *_rest in paths:
            kept = stopped(path.picked, path.q, self.threshold) if stop and self.threshold is not None else path.picked
            found.append(sorted((self._pick(document, path, t) for t in range(len(kept))), key=lambda pick: pick.chunk))
        return found

    def stream(
        self,
        question: str,
        source: Source,
        budget: int = 4,
        *,
        beam: int = 1,
        stop: bool = False,
        runners_up: int = 4,
        bins: int = 0,
        filter: Filter | None = None,
    ) -> Iterator[Step]:
        """Yields each step of a search as soon as it is made; with ``beam`` above 1, all steps of the best path at the end.

        ``stop`` ends the search after the first step whose Q is below the threshold. ``bins`` adds the curve of Q along the document, in
        that number of stretches. Raises ValueError as :meth:`search` does, before the first step.
        """
        document = self.document(source)
        found = self._paths([question], [document], budget, beam=beam, stop=stop, runners_up=runners_up, bins=bins, filter=filter)

        def steps() -> Iterator[Step]:
            spent, shown, path = 0.0, 0, SearchPath()
            while True:
                with SearchClock() as clock:
                    paths = next(found, None)
                if paths is not None:
                    spent += clock.searching
                    ((path, *_rest),) = paths
                ready = len(path.picked) if beam == 1 or paths is None else 0
                for number in range(shown, ready):
                    step = self._step(document, path, number, spent / (ready - shown), beam + runners_up)
                    yield step
                    if stop and step.stop:
                        return
                if ready > shown:
                    spent, shown = 0.0, ready
                if paths is None:
                    return

        return steps()

    def run(self, examples: Sequence[QAExample], budget: int, *, beam: int = 1, label: str | None = None) -> list[Trajectory]:
        """Searches the document of each question. Documents may share texts: each distinct text is embedded once.

        ``label`` shows a progress bar of the embedding. A document with fewer chunks than ``budget`` is picked empty.
        """
        if not examples:
            raise ValueError("examples is empty: nothing to search")
        documents = self._embedded([tuple(map(Chunk, example.chunks)) for example in examples], label)
        *_, found = self.trajectories([example.question for example in examples], documents, budget, beam=beam, label=label)
        return found

    def trajectories(
        self, questions: Sequence[str], documents: Sequence[Document], budget: int, *, beam: int = 1, label: str | None = None
    ) -> Iterator[list[Trajectory]]:
        """Yields the best path of each question, in the document beside it, as it is after each pick: what a search with that budget finds.

        Questions may share a document. ``label`` shows a progress bar of the embedding.
        """
        for paths in self._paths(questions, documents, budget, beam=beam, label=label):
            yield [
                Trajectory(path.picked, path.q, tuple(self._position(document, path, t) for t in range(len(path.picked))))
                for (path, *_rest), document in zip(paths, documents, strict=True)
            ]

    def document(self, source: Source, *, label: str | None = None) -> Document:
        """Prepares a source for searching: an index is checked; texts and files are cut into chunks; chunks are embedded.

        ``label`` shows a progress bar of the embedding.
        """
        if isinstance(source, Document):
            source.check(self)
            return source
        stream = ChunkStream(source, self.tokenizer, self.config.data.chunk_tokens, self.config.data.chunk_by)
        chunks = tuple(stream)
        for notice in notices(stream.read, stream.skipped):
            self._tell_once(notice)
        return replace(self._embedded([chunks], label)[0], sources=tuple(stream.read))

    def _embedded(self, documents: Sequence[Sequence[Chunk]], label: str | None = None) -> list[MemoryDocument]:
        """Documents in memory; each distinct text of all of them is embedded once."""
        pool: dict[str, int] = {}
        rows = [np.array([pool.setdefault(chunk.text, len(pool)) for chunk in chunks], np.int32) for chunks in documents]
        vectors = self.embed_chunks(list(pool), label=label)
        return [MemoryDocument(chunks, PoolRows(vectors, index), self) for chunks, index in zip(documents, rows, strict=True)]

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]:
        """Un-rotated action embeddings, one per text."""
        embed = lambda rows: _embed_actions(self.params, rows, embedder=self.embedder)
        return embed_texts(embed, self.tokenizer, texts, self.config.data.chunk_tokens, label=label)

    def embed_states(
        self, questions: Sequence[str], picked: Sequence[Sequence[str]], budget: int, *, label: str | None = None
    ) -> Float[np.ndarray, "P D"]:
        """State embeddings. A state is a question and the texts of its picked chunks, in the order of ``data.state_order``. ``budget`` sets
        the length of the longest state. ``label`` shows a progress bar, if there are more than a few."""
        data = self.config.data
        layout = StateLayout.make(data, budget, self.tokenizer)
        asked = self.tokenizer.rows(questions, data.question_tokens)
        taken = np.array([[t < len(texts) for t in range(budget - 1)] for texts in picked], bool).reshape(len(picked), budget - 1)
        rows = np.full((*taken.shape, data.chunk_tokens), PAD, np.int32)
        rows[taken] = self.tokenizer.rows([text for texts in picked for text in texts], data.chunk_tokens)
        self._tell_of_cut_states(asked, rows, layout)
        states = in_blocks(partial(_state_rows, layout=layout), STATES, asked, rows, taken)
        embed = lambda rows: _embed_states(self.params, rows, embedder=self.embedder)
        if len(states) <= FEW:
            return in_blocks(embed, STATES, states)
        cut = lambda block, width: states[block, :width]
        return embed_by_length(embed, cut, (states >= 0).sum(1), layout.tokens, STATES, label=label, unit="state")

    def _tell_of_cut_states(self, asked: Int[np.ndarray, "P Lq"], rows: Int[np.ndarray, "P T Lc"], layout: StateLayout) -> None:
        """Prints one line, the first time that a state is longer than allowed."""
        inside = np.minimum(np.maximum((rows >= 0).sum(-1) - layout.prefix, 0), layout.chunk_tokens)
        longest = int(((asked >= 0).sum(-1) + inside.sum(-1)).max())
        if longest > layout.tokens:
            self._tell_once(
                f"a state (the question and the picks so far) of {longest} tokens was cut to the {layout.tokens} that the retriever reads: "
                "its last picks are read in part or not at all; ask for fewer picks (a lower budget)",
                "cut states",
            )

    def _tell_once(self, line: str, kind: str | None = None) -> None:
        """Prints a line unless it (or a line of its ``kind``) was printed before."""
        if (kind or line) not in self._told:
            self._told.add(kind or line)
            say(line)

    def _paths(
        self,
        questions: Sequence[str],
        documents: Sequence[Document],
        budget: int,
        *,
        beam: int = 1,
        stop: bool = False,
        runners_up: int = 0,
        bins: int = 0,
        filter: Filter | None = None,
        label: str | None = None,
    ) -> Iterator[list[list[SearchPath]]]:
        """The engine behind every search: checks the arguments, then calls :func:`qrag_jax.retrieve.search.search`."""
        self._check_questions(questions)
        check_budget(budget)
        if beam < 1:
            raise ValueError(f"beam = {beam}: must be >= 1, the paths kept at each step")
        if stop and self.threshold is None:
            raise ValueError("stop = True: this retriever has no calibrated threshold; run python -m experiments.calibrate on it first")
        allowed = None if not filter else allowed_chunks(filter, documents[0].sources)
        most = max(map(len, documents), default=budget) if allowed is None else int(allowed.sum())
        picks = min(budget, most)
        states = picks if beam == 1 else picks + 1  # a beam also looks at the states after its last picks
        layout = StateLayout.make(self.config.data, states, self.tokenizer)
        if layout.tokens > self.embedder.config.max_tokens:
            raise ValueError(
                f"budget = {budget}: a state (the question and the picks so far) may have {layout.tokens} tokens, and the retriever reads "
                f"{self.embedder.config.max_tokens}; lower the budget"
            )

        def encode(paths: Sequence[tuple[int, tuple[int, ...]]]) -> np.ndarray:
            order = sorted if self.config.data.state_order == "document" else list
            texts = [[documents[number].chunk(i).text for i in order(picks)] for number, picks in paths]
            step = None if label is None else f"{label}, step {max(map(len, texts)) + 1}"
            return self.embed_states([questions[number] for number, _ in paths], texts, states, label=step)

        scorers = {id(document): self.scorer(document, allowed) for document in documents}
        return search(encode, [scorers[id(document)] for document in documents], picks, beam=beam, runners_up=runners_up, bins=bins)

    def _check_questions(self, questions: Sequence[str]) -> None:
        """Raises ValueError on a question that is no text; says how much of the long ones is not read."""
        for question in questions:
            if not isinstance(question, str):
                raise ValueError(f"question = {question!r}: must be a text (str)")
            if not question.strip():
                raise ValueError("question is empty")
            check_encodable(question, "question")
        room = self.tokenizer.room(self.config.data.question_tokens)
        sizes = [len(ids) for ids in self.tokenizer.lookup(questions)]
        if (most := max(sizes, default=0)) > room:
            which = "the question is" if len(sizes) == 1 else f"{sum(size > room for size in sizes):,} of {len(sizes):,} questions are"
            self._tell_once(
                f"cut: {which} longer than the {room} tokens that the retriever reads; up to {most - room} tokens at the end are not read: "
                "ask a shorter question",
                "".join(questions),
            )

    def fits(self, picks: Iterable[Pick]) -> bool:
        """Whether the Q of any pick reaches the stop threshold. If not, nothing that fits the question was found. Raises ValueError when
        the retriever has no calibrated threshold."""
        if self.threshold is None:
            raise ValueError("this retriever has no calibrated threshold; run python -m experiments.calibrate on it first")
        return any(pick.q >= self.threshold for pick in picks)

    def scorer(self, document: Document, allowed: Bool[np.ndarray, " N"] | None = None) -> Scorer:
        """The scorer of a document: without an accelerator, or if the document is small, the host reads the rows in place; otherwise rows
        are split over the local devices."""
        hidden = Hidden(allowed, document.equals)
        if jax.default_backend() == "cpu" or len(document) <= HOST_ROWS:
            return HostScorer(document.rows, self.config.qhead, hidden, document.restarts)
        return DeviceScorer(document.rows, self.config.qhead, hidden=hidden, restarts=document.restarts)

    def _position(self, document: Document, path: SearchPath, t: int) -> float:
        return runs(path.picked[:t], len(document), self.config.qhead, document.restarts).position(path.picked[t])

    def _pick(self, document: Document, path: SearchPath, t: int) -> Pick:
        chunk = document.chunk(path.picked[t])
        also = tuple(map(document.chunk, document.equals(path.picked[t])))
        return Pick(
            path.picked[t],
            chunk.text,
            path.q[t],
            self._position(document, path, t),
            chunk.start,
            chunk.end,
            chunk.source,
            t,
            chunk.metadata,
            also,
        )

    def _step(self, document: Document, path: SearchPath, t: int, seconds: float, kept: int) -> Step:
        seen = path.looks[t]
        others = [(i, q, document.chunk(i)) for i, q in zip(seen.chunks, seen.q, strict=True) if i != path.picked[t]][: kept - 1]
        below = t > 0 and self.threshold is not None and path.q[t] < self.threshold
        runners = tuple(Candidate(i, chunk.text, q, chunk.start, chunk.end, chunk.source) for i, q, chunk in others)
        return Step(t, self._pick(document, path, t), runners, below, seconds, seen.curve)
