"""Answers questions from one index, for many callers at once: the one door of HTTP, MCP and the page."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from qrag_jax.config.parse import require
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.answering import kept_steps, least_to_fit, read_answer
from qrag_jax.retrieve.batching import TOGETHER, Batcher
from qrag_jax.retrieve.filters import Filter
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.log import say
from qrag_jax.serve.limits import Limits, Overloaded, Stopping, TooLate
from qrag_jax.serve.request import Answered, Found, Health, Request
from qrag_jax.serve.searching import USUAL_BUDGET, Searches
from qrag_jax.serve.watching import Watcher

TEXTS = 20_000  # whose tokens are kept, so that memory does not grow with the questions


class Service:
    """Searches ``index`` with ``retriever``, and lets ``reader`` answer. Every method may be called in any thread.

    Questions that are there at the same time share passes over the index (:class:`~qrag_jax.serve.searching.Searches`). When the index
    on disk changes, questions that come later are asked to the new one. ``modes``: how questions may be searched, the usual one first;
    empty: the retriever's usual ones. :meth:`start` compiles
    and begins; :meth:`stop` ends. Raises ValueError on settings that the retriever cannot serve.
    """

    def __init__(
        self, index: Index, retriever: Retriever, reader: Reader | None = None, limits: Limits | None = None, modes: Sequence[Mode] = ()
    ) -> None:
        index.check(retriever)
        self.limits = limits or Limits()
        self.retriever, self.reader = retriever, reader
        self.searches = Searches(retriever, Batcher(retriever, index, self.limits.budget, modes))
        self.budget, self.modes = self.searches.batcher.budget, self.searches.batcher.modes
        self._watcher = Watcher(index, self._replacement, self._replace)
        self._readers = threading.BoundedSemaphore(self.limits.answers)
        self._changed = threading.Condition()
        self._accepted, self._stopping = 0, False

    @property
    def index(self) -> Index:
        """The index that new questions are asked to."""
        return self.searches.batcher.index

    def start(self) -> Service:
        """Compiles, and begins to search; returns itself."""
        self.retriever.tokenizer.cache_size = TEXTS
        say(f"compiling searches of up to {self.budget} picks, by {', '.join(self.modes)}, {TOGETHER} questions at a time")
        start = time.monotonic()
        self.searches.batcher.prepare()
        say(f"ready after {time.monotonic() - start:.1f} s")
        self.searches.start()
        self._watcher.start()
        return self

    def stop(self, seconds: float = math.inf) -> bool:
        """Accepts nothing more, and waits up to ``seconds`` until what was accepted is answered. Returns whether it is."""
        until = time.monotonic() + seconds
        with self._changed:
            self._stopping = True
            while self._accepted and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, 1.0))
            done = not self._accepted
        if done:
            self.searches.close()
        self._watcher.stop()
        return done

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop(self.limits.seconds)

    @contextmanager
    def accept(self) -> Iterator[Request]:
        """A request, which lasts as long as the block. Raises Overloaded or Stopping if it cannot be accepted now."""
        with self._changed:
            if self._stopping:
                raise Stopping
            if self._accepted >= self.limits.requests:
                raise Overloaded(self.limits.requests, self.searches.wait_seconds())
            self._accepted += 1
        try:
            yield Request(self.limits.seconds)
        finally:
            with self._changed:
                self._accepted -= 1
                self._changed.notify_all()
                if self._stopping and not self._accepted:
                    self.searches.close()

    def stream(
        self,
        question: str,
        *,
        budget: int | None = None,
        mode: Mode | None = None,
        filter: Filter | None = None,
        stop: bool = False,
        request: Request | None = None,
    ) -> Iterator[Step | Found]:
        """Yields each step of a search as it is made, and at the end a :class:`Found` with all of them.

        Args:
            question: the question, of at most ``limits.characters`` characters.
            budget: how many chunks to pick; None: 4, or the most that are served.
            mode: how to search; None: the first of ``modes``.
            filter: pick only from documents whose name and metadata match.
            stop: end at the first pick below the stop threshold.
            request: what :meth:`accept` gave; None: it is accepted here.

        Raises ValueError on bad input, and Refused if it cannot be answered.
        """
        require(isinstance(question, str), "question", question, "a text")
        require(len(question) <= self.limits.characters, "question", question, f"a text of at most {self.limits.characters:,} characters")
        if request is None:
            with self.accept() as accepted:
                yield from self._stream(question, self._usual(budget), mode, filter, stop, accepted)
        else:
            yield from self._stream(question, self._usual(budget), mode, filter, stop, request)

    def search(
        self,
        question: str,
        *,
        budget: int | None = None,
        mode: Mode | None = None,
        filter: Filter | None = None,
        stop: bool = False,
        request: Request | None = None,
    ) -> Found:
        """:meth:`stream` to its end."""
        *_, found = self.stream(question, budget=budget, mode=mode, filter=filter, stop=stop, request=request)
        assert isinstance(found, Found)
        return found

    def answer(
        self,
        question: str,
        *,
        budget: int | None = None,
        mode: Mode | None = None,
        filter: Filter | None = None,
        stop: bool = False,
        least_q: float | None = None,
        hear_step: Callable[[Step], None] | None = None,
        hear: Callable[[str], None] | None = None,
        request: Request | None = None,
    ) -> Answered:
        """The reader's answer from what a search found, with numbered citations.

        ``least_q``: as for :meth:`~qrag_jax.retrieve.retriever.Retriever.answer`. ``hear_step`` is given each step of the search, and
        ``hear`` each new piece of the answer, as it is made. The other arguments are those of :meth:`stream`. Raises ValueError on bad
        input and without a reader, Refused if it cannot be answered, ReaderError if the reader fails.
        """
        if self.reader is None:
            raise ValueError("no reader: the service was started without --reader, so it searches and does not answer")
        if request is None:
            with self.accept() as accepted:
                return self._answer(question, self.reader, budget, mode, filter, stop, least_q, hear_step, hear, accepted)
        return self._answer(question, self.reader, budget, mode, filter, stop, least_q, hear_step, hear, request)

    def documents(self) -> Sequence[SourceRecord]:
        """The records of the documents, in the order of their chunks; those with the same name are parts of one document."""
        return self.index.sources

    def health(self) -> Health:
        live = self.searches.live
        index = self.index
        return Health(live, live and not self._stopping, self._watcher.stale, index.version, len(index), self._accepted)

    def _usual(self, budget: int | None) -> int:
        return min(USUAL_BUDGET, self.budget) if budget is None else budget

    def _stream(
        self, question: str, budget: int, mode: Mode | None, filter: Filter | None, stop: bool, request: Request
    ) -> Iterator[Step | Found]:
        yield from self.searches.stream(lambda batcher: batcher.begin(question, budget, mode=mode, stop=stop, filter=filter), request)

    def _answer(
        self,
        question: str,
        reader: Reader,
        budget: int | None,
        mode: Mode | None,
        filter: Filter | None,
        stop: bool,
        least_q: float | None,
        hear_step: Callable[[Step], None] | None,
        hear: Callable[[str], None] | None,
        request: Request,
    ) -> Answered:
        least = least_to_fit(mode or self.modes[0], self.retriever.least_q, least_q)
        found = None
        for event in self.stream(question, budget=budget, mode=mode, filter=filter, stop=stop, request=request):
            if isinstance(event, Found):
                found = event
            elif hear_step is not None:
                hear_step(event)
        assert found is not None

        def heard(piece: str) -> None:
            request.check()  # ends the reader's work when nobody waits for it
            if hear is not None:
                hear(piece)

        if not self._readers.acquire(timeout=request.left):
            raise TooLate(request.seconds)
        try:
            request.check()
            answer = read_answer(question, kept_steps(found.steps, stop), reader, mode=found.mode, least_q=least, hear=heard)
        finally:
            self._readers.release()
        return Answered(found, answer)

    def _replacement(self, index: Index) -> Batcher:
        """Ready to search another version of the index. Raises ValueError if it cannot be searched."""
        index.check(self.retriever)
        batcher = Batcher(self.retriever, index, self.budget, self.modes)
        batcher.prepare()
        return batcher

    def _replace(self, batcher: Batcher) -> None:
        self.searches.batcher = batcher
        say(f"{batcher.index.path}: has changed; questions are now asked to its {len(batcher.index):,} chunks")
