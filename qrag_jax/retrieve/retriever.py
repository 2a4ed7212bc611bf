"""The product: a retriever that searches a text, a list of chunks or an index, in any number of steps or in one look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from qrag_jax.config import QHeadConfig, RunConfig
from qrag_jax.export.refusal import Refusal
from qrag_jax.models.embedder import Embedder
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.reader.make import open_reader
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.answering import CitedAnswer, kept_steps, least_to_fit, read_answer
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.clock import SearchClock
from qrag_jax.retrieve.embedding import Source, TextEmbedder
from qrag_jax.retrieve.encoders import CHUNK_TOKENS, PREFIX, load_encoder
from qrag_jax.retrieve.filters import Filter, allowed_chunks
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.picks import as_pick, as_step, position
from qrag_jax.retrieve.questions import check_questions
from qrag_jax.retrieve.ranking import Mode, as_path, check_options, look_once
from qrag_jax.retrieve.scan import Hidden
from qrag_jax.retrieve.scorers import Scorers
from qrag_jax.retrieve.search import Scorer, SearchPath, check_budget, search, stopped
from qrag_jax.retrieve.types import Document, Pick, Step, Trajectory
from qrag_jax.rl.env import StateLayout
from qrag_jax.types import QAExample


class Retriever(TextEmbedder):
    """A trained pair of encoders with its tokenizer, or a pretrained encoder.

    ``threshold``: stop when the best Q is below it (None: not calibrated). ``step``: number of updates that trained the parameters.
    ``encoder``: the name of the pretrained encoder, which no training has changed; None: it is trained. ``refusal``: when the answer is
    "not in the documents" (None: not calibrated). ``devices``: those that hold the rows of an index; None: this process's, where that pays.
    Set to ``jax.devices()`` in each of several processes, an index is searched by all of them, and all must make the same calls.
    """

    def __init__(
        self,
        config: RunConfig,
        embedder: Embedder,
        params: Any,
        tokenizer: TextTokenizer,
        threshold: float | None = None,
        step: int = 0,
        encoder: str | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        super().__init__(config, embedder, params, tokenizer)
        self.threshold = threshold
        self.step = step
        self.encoder = encoder
        self.refusal = refusal
        self.devices: Sequence[jax.Device] | None = None
        self._scorers = Scorers()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Retriever:
        """From a run directory, an export folder, a released checkpoint (its folder or its .pt file), gs://BUCKET/NAME, or
        OWNER/NAME[@REVISION] on the hub, which holds an export or a released checkpoint.

        "encoder:NAME" is :meth:`from_encoder`. What is on the hub is downloaded into its cache once. Raises ValueError, saying what to do,
        when there is no such model.
        """
        from qrag_jax.export.hub import load_model

        if str(path).startswith(PREFIX):
            return cls.from_encoder(str(path).removeprefix(PREFIX))
        export = load_model(path)
        params = jax.device_put(export.params)  # once, not at every call
        return cls(export.config, export.embedder(), params, export.tokenizer, export.threshold, export.step, refusal=export.refusal)

    @classmethod
    def from_encoder(cls, name: str, *, chunk_tokens: int = CHUNK_TOKENS) -> Retriever:
        """A pretrained encoder without any training: minilm, a folder of sentence-transformers, or a hub name.

        It searches in one look: by its own similarity, by words, or by both (the default). Chunks have up to ``chunk_tokens`` tokens. An
        index that it builds with ``retriever_path="encoder:NAME"`` is opened again with :meth:`of_index`. Raises ValueError as
        :func:`~qrag_jax.retrieve.encoders.load_encoder` does.
        """
        config, embedder, params, tokenizer = load_encoder(name, chunk_tokens)
        return cls(config, embedder, jax.device_put(params), tokenizer, encoder=name)

    @classmethod
    def of_index(cls, index: Index, place: str | Path | None = None) -> Retriever:
        """The retriever that an index was built with, from the place that the index recorded, or from ``place`` if that has moved.

        Raises ValueError when the index recorded no place or nothing is there any more.
        """
        home = index.home if place is None else str(place)
        if home.startswith(PREFIX):
            return cls.from_encoder(home.removeprefix(PREFIX), chunk_tokens=index.meta.model.chunk_tokens)
        return cls.from_pretrained(home)

    @property
    def least_q(self) -> float | None:
        """The Q that a pick must reach to fit a question: that of ``refusal``, else the stop threshold; None: neither is known."""
        return self.threshold if self.refusal is None else self.refusal.least_q

    @property
    def usual_mode(self) -> Mode:
        """multi for a trained retriever, hybrid for a plain encoder."""
        return "multi" if self.encoder is None else "hybrid"

    def search(
        self,
        question: str,
        source: Source,
        budget: int = 4,
        *,
        mode: Mode | None = None,
        beam: int = 1,
        stop: bool = False,
        filter: Filter | None = None,
    ) -> list[Pick]:
        """The ``budget`` chunks picked for a question, in document order.

        Args:
            question: the question.
            source: a text (``str``), or a file or a folder of files (``Path``), cut into chunks here; the chunks of a document in order;
                or an index.
            budget: how many chunks to pick.
            mode: how to search (:data:`~qrag_jax.retrieve.ranking.Mode`); None: :attr:`usual_mode`.
            beam: how many paths to keep at each step ("Plan Q-RAG"); 1 is greedy.
            stop: pick fewer when the best Q falls below the calibrated threshold.
            filter: pick only from documents whose name and metadata match (:data:`~qrag_jax.retrieve.filters.Filter`).

        ``beam`` and ``stop`` are for mode multi. Raises ValueError when the question or the source is empty, the budget is below 1, the
        index was built with another model, ``stop`` is set but the retriever has no threshold, or the mode does not suit the retriever.
        """
        return self.search_batch([question], source, budget, mode=mode, beam=beam, stop=stop, filter=filter)[0]

    def search_batch(
        self,
        questions: Sequence[str],
        source: Source,
        budget: int = 4,
        *,
        mode: Mode | None = None,
        beam: int = 1,
        stop: bool = False,
        filter: Filter | None = None,
    ) -> list[list[Pick]]:
        """:meth:`search` for many questions over one source, which is read once per step for all of them."""
        if isinstance(questions, str):
            raise ValueError(f"questions = {questions!r}: must be a list of questions; search takes one")
        document = self.document(source)
        mode = mode or self.usual_mode
        *_, paths = self._paths(questions, [document] * len(questions), budget, mode=mode, beam=beam, stop=stop, filter=filter)
        found = []
        for path, *_rest in paths:
            kept = stopped(path.picked, path.q, self.threshold) if stop and self.threshold is not None else path.picked
            picks = (as_pick(document, path, t, self.qhead(mode)) for t in range(len(kept)))
            found.append(sorted(picks, key=lambda pick: pick.chunk))
        return found

    def stream(
        self,
        question: str,
        source: Source,
        budget: int = 4,
        *,
        mode: Mode | None = None,
        beam: int = 1,
        stop: bool = False,
        runners_up: int = 4,
        bins: int = 0,
        filter: Filter | None = None,
    ) -> Iterator[Step]:
        """Yields each step of a search as soon as it is made; with ``beam`` above 1, all steps of the best path at the end; in the modes
        of one look, all picks at once, best first.

        ``stop`` ends the search after the first step whose Q is below the threshold. ``bins`` adds the curve of Q along the document, in
        that number of stretches. Raises ValueError as :meth:`search` does, before the first step.
        """
        document, mode = self.document(source), mode or self.usual_mode
        found = self._paths(
            [question], [document], budget, mode=mode, beam=beam, stop=stop, runners_up=runners_up, bins=bins, filter=filter
        )

        qhead, most, threshold = self.qhead(mode), beam + runners_up - 1, self.threshold if mode == "multi" else None

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
                    seconds = spent / (ready - shown)
                    step = as_step(document, path, number, qhead, seconds=seconds, runners_up=most, threshold=threshold)
                    yield step
                    if stop and step.stop:
                        return
                if ready > shown:
                    spent, shown = 0.0, ready
                if paths is None:
                    return

        return steps()

    def answer(
        self,
        question: str,
        source: Source,
        *,
        reader: Reader | str,
        budget: int = 4,
        mode: Mode | None = None,
        beam: int = 1,
        stop: bool = False,
        filter: Filter | None = None,
        least_q: float | None = None,
        hear: Callable[[str], None] | None = None,
    ) -> CitedAnswer:
        """Searches, and lets a frozen LLM answer from what was found, with numbered citations.

        ``reader``: "openai:URL,MODEL" or "flax:NAME" (opened anew at each call), or a reader that is open. ``hear``: is given each new
        piece of the answer as it is written. The other arguments are those of :meth:`search`. In mode multi, if the Q of no pick reaches
        ``least_q`` (None: :attr:`least_q`), the answer is "not in the documents" and the reader is not asked. Raises what
        :meth:`search` and :func:`~qrag_jax.retrieve.answering.read_answer` raise.
        """
        opened = open_reader(reader) if isinstance(reader, str) else reader
        mode = mode or self.usual_mode
        steps = list(self.stream(question, source, budget, mode=mode, beam=beam, stop=stop, runners_up=0, filter=filter))
        least = least_to_fit(mode, self.least_q, least_q)
        return read_answer(question, kept_steps(steps, stop), opened, mode=mode, least_q=least, hear=hear)

    def run(self, examples: Sequence[QAExample], budget: int, *, beam: int = 1, label: str | None = None) -> list[Trajectory]:
        """Searches the document of each question. Documents may share texts: each distinct text is embedded once.

        ``label`` shows a progress bar of the embedding. A document with fewer chunks than ``budget`` is picked empty.
        """
        if not examples:
            raise ValueError("examples is empty: nothing to search")
        chunk = {text: Chunk(text) for example in examples for text in example.chunks}
        documents = self._embedded([tuple(chunk[text] for text in example.chunks) for example in examples], label)
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
                Trajectory(path.picked, path.q, tuple(position(document, path, t, self.config.qhead) for t in range(len(path.picked))))
                for (path, *_rest), document in zip(paths, documents, strict=True)
            ]

    def _paths(
        self,
        questions: Sequence[str],
        documents: Sequence[Document],
        budget: int,
        *,
        mode: Mode = "multi",
        beam: int = 1,
        stop: bool = False,
        runners_up: int = 0,
        bins: int = 0,
        filter: Filter | None = None,
        label: str | None = None,
    ) -> Iterator[list[list[SearchPath]]]:
        """The engine behind every search: checks the arguments, then calls :func:`qrag_jax.retrieve.search.search`, or looks once."""
        if cut := check_questions(questions, self.tokenizer, self.config.data.question_tokens):
            self._tell_once(cut, "".join(questions))
        check_budget(budget)
        check_options(mode, beam, stop, self.encoder, self.threshold)
        allowed = None if not filter else allowed_chunks(filter, documents[0].sources)
        if mode != "multi":
            return self._once(questions, documents, budget, mode, allowed, runners_up, bins)
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

    def _once(
        self,
        questions: Sequence[str],
        documents: Sequence[Document],
        budget: int,
        mode: Mode,
        allowed: Bool[np.ndarray, " N"] | None,
        runners_up: int,
        bins: int,
    ) -> Iterator[list[list[SearchPath]]]:
        """Yields once: what one look finds for each question."""
        near = {id(document): self.scorer(document, allowed, self.qhead(mode)) for document in documents if mode != "bm25"}
        asked = self.embed_states(questions, [()] * len(questions), 1) if near else None
        looks = look_once(questions, documents, near, asked, allowed, mode, budget + runners_up, bins)
        yield [[as_path(seen, budget)] for seen in looks]

    def fits(self, picks: Iterable[Pick]) -> bool:
        """Whether the Q of any pick reaches :attr:`least_q`. If not, nothing that fits the question was found. Raises ValueError when
        the retriever was not calibrated."""
        if (least := self.least_q) is None:
            raise ValueError("this retriever has no calibrated threshold; run python -m experiments.calibrate on it first")
        return any(pick.q >= least for pick in picks)

    def scorer(self, document: Document, allowed: Bool[np.ndarray, " N"] | None = None, qhead: QHeadConfig | None = None) -> Scorer:
        """What :meth:`~qrag_jax.retrieve.scorers.Scorers.of` makes for a document, on :attr:`devices`. ``qhead`` None: the retriever's own
        positions."""
        return self._scorers.of(document, qhead or self.config.qhead, Hidden(allowed, document.equals), self.devices)

    def qhead(self, mode: Mode) -> QHeadConfig:
        """The positions of a mode: those of the retriever, or none."""
        return self.config.qhead if mode == "multi" else replace(self.config.qhead, positions="none")
