"""Answers questions from one index, for many callers at once: the one door of HTTP, MCP and the page."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from qrag_jax.config.parse import require
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.answering import CitedAnswer, kept_steps, least_to_fit, read_answer
from qrag_jax.retrieve.batching import TOGETHER, Asked, Batcher, Part
from qrag_jax.retrieve.filters import Filter
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.log import say
from qrag_jax.serve.limits import Gone, Limits, Overloaded, Stopping, TooLate
from qrag_jax.serve.watching import Watcher

TEXTS = 20_000  # whose tokens are kept, so that memory does not grow with the questions
USUAL_BUDGET = 4
PATIENCE = 1.0  # seconds between two looks whether a request is over


class Request:
    """An accepted request: it must end ``until`` then (:func:`time.monotonic`), and costs nothing more once ``gone`` is set."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.gone = threading.Event()

    @property
    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def check(self) -> None:
        """Raises Gone or TooLate."""
        if self.gone.is_set():
            raise Gone
        if time.monotonic() > self.until:
            raise TooLate(self.seconds)


@dataclass(frozen=True)
class Found:
    """The search of a question. ``steps``: in the order of picking; with ``stop``, the last may be below the stop ``threshold`` (None:
    there is none). ``least_q``: what a pick must reach to fit the question (None: not known). ``chunks``: how many were searched, in
    ``version`` of the index. ``notes``: what the one who asked should know, such as that the question was cut."""

    question: str
    mode: Mode
    steps: tuple[Step, ...]
    threshold: float | None
    least_q: float | None
    chunks: int
    version: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """The answer to a question, and the search that it comes from."""

    found: Found
    answer: CitedAnswer


@dataclass(frozen=True)
class Health:
    """``live``: questions can be searched. ``ready``: new ones are accepted. ``stale``: why the index on disk, which has changed, is not
    the one that is searched; None: it is."""

    live: bool
    ready: bool
    stale: str | None
    version: str
    chunks: int
    requests: int


@dataclass
class _Job:
    """A question in line or in search. ``events``: its steps, and at the end a Found or an error."""

    arguments: Callable[[Batcher], Asked]
    request: Request
    events: queue.SimpleQueue[Step | Found | BaseException] = field(default_factory=queue.SimpleQueue)
    batcher: Batcher | None = None
    asked: Asked | None = None
    steps: list[Step] = field(default_factory=list)


class Service:
    """Searches ``index`` with ``retriever``, and lets ``reader`` answer. Every method may be called in any thread.

    Questions that are there at the same time share passes over the index (:class:`~qrag_jax.retrieve.batching.Batcher`). When the index
    on disk changes, questions that come later are asked to the new one. ``modes``: how questions may be searched, the usual one first;
    empty: the retriever's usual ones. ``on_pass`` is told of each pass: its number of questions, and its seconds;
    ``on_steps``: its requests, their new steps, and its parts. :meth:`start` compiles
    and begins; :meth:`stop` ends. Raises ValueError on settings that the retriever cannot serve.
    """

    def __init__(
        self, index: Index, retriever: Retriever, reader: Reader | None = None, limits: Limits | None = None, modes: Sequence[Mode] = ()
    ) -> None:
        index.check(retriever)
        self.limits = limits or Limits()
        self.retriever, self.reader = retriever, reader
        self._batcher = Batcher(retriever, index, self.limits.budget, modes)
        self.budget, self.modes = self._batcher.budget, self._batcher.modes
        self._watcher = Watcher(index, self._replacement, self._replace)
        self._readers = threading.BoundedSemaphore(self.limits.answers)
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="search", daemon=True)
        self._accepted, self._stopping, self._seconds = 0, False, 1.0
        self.on_pass: Callable[[int, float], None] | None = None
        self.on_steps: Callable[[Sequence[Request], Sequence[Sequence[Step]], Sequence[Part]], None] | None = None

    @property
    def index(self) -> Index:
        """The index that new questions are asked to."""
        return self._batcher.index

    def start(self) -> Service:
        """Compiles, and begins to search; returns itself."""
        self.retriever.tokenizer.cache_size = TEXTS
        say(f"compiling searches of up to {self.budget} picks, by {', '.join(self.modes)}, {TOGETHER} questions at a time")
        start = time.monotonic()
        self._batcher.prepare()
        say(f"ready after {time.monotonic() - start:.1f} s")
        self._thread.start()
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
            self._changed.notify_all()
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
                raise Overloaded(self.limits.requests, math.ceil(self._seconds * (1 + len(self._waiting) // TOGETHER)))
            self._accepted += 1
        try:
            yield Request(self.limits.seconds)
        finally:
            with self._changed:
                self._accepted -= 1
                self._changed.notify_all()

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
        live = self._thread.is_alive()
        index = self.index
        return Health(live, live and not self._stopping, self._watcher.stale, index.version, len(index), self._accepted)

    def _usual(self, budget: int | None) -> int:
        return min(USUAL_BUDGET, self.budget) if budget is None else budget

    def _stream(
        self, question: str, budget: int, mode: Mode | None, filter: Filter | None, stop: bool, request: Request
    ) -> Iterator[Step | Found]:
        job = _Job(lambda batcher: batcher.begin(question, budget, mode=mode, stop=stop, filter=filter), request)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
        over = False
        try:
            while not over:
                event = self._next(job)
                over = not isinstance(event, Step)
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            if not over:  # the caller takes no more steps
                request.gone.set()

    def _next(self, job: _Job) -> Step | Found | BaseException:
        while True:
            try:
                return job.events.get(timeout=PATIENCE)
            except queue.Empty:
                job.request.check()  # the pass takes longer than the request may
                if not self._thread.is_alive():
                    raise RuntimeError("the search thread has ended") from None

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

    def _work(self) -> None:
        """The loop of the search thread: new questions begin between two passes."""
        active: list[_Job] = []
        while True:
            with self._changed:
                while not self._waiting and not active:
                    if self._stopping and not self._accepted:
                        return
                    self._changed.wait(1.0)
                self._drop_waiting()
                while self._waiting and len(active) < TOGETHER:
                    active.append(self._waiting.popleft())
            active = [job for job in active if self._begun(job)]
            for batcher in dict.fromkeys(job.batcher for job in active):
                if batcher is not None:
                    self._step(batcher, [job for job in active if job.batcher is batcher])
            active = [job for job in active if job.asked is not None]

    def _drop_waiting(self) -> None:
        for job in [job for job in self._waiting if self._is_over(job)]:
            self._waiting.remove(job)

    def _is_over(self, job: _Job) -> bool:
        """Whether nobody waits for a job any more; says so to it."""
        try:
            job.request.check()
        except (Gone, TooLate) as error:
            self._end(job, error)
            return True
        return False

    def _begun(self, job: _Job) -> bool:
        if self._is_over(job):
            return False
        if job.asked is None:
            job.batcher = self._batcher
            try:
                job.asked = job.arguments(job.batcher)
            except Exception as error:
                self._end(job, error)
        return job.asked is not None

    def _step(self, batcher: Batcher, jobs: Sequence[_Job]) -> None:
        """One pass for jobs of the same index. If it fails, each is tried alone, so that a question fails only by itself."""
        start = time.monotonic()
        try:
            found = batcher.step([job.asked for job in jobs if job.asked is not None])
        except Exception as error:
            if len(jobs) == 1:
                self._end(jobs[0], error)
            else:
                for job in jobs:
                    self._step(batcher, [job])
            return
        seconds = time.monotonic() - start
        self._seconds += 0.1 * (USUAL_BUDGET * seconds - self._seconds)
        if self.on_pass is not None:
            self.on_pass(len(jobs), seconds)
        if self.on_steps is not None:
            self.on_steps([job.request for job in jobs], found, batcher.parts)
        for job, steps in zip(jobs, found, strict=True):
            asked = job.asked
            assert asked is not None
            job.steps += steps
            for step in steps:
                job.events.put(step)
            if asked.done:
                limits = (self.retriever.threshold, self.retriever.least_q) if asked.mode == "multi" else (None, None)
                index = batcher.index
                about = (tuple(job.steps), *limits, len(index), index.version, tuple(asked.notes))
                self._end(job, Found(asked.question, asked.mode, *about))

    def _end(self, job: _Job, outcome: Found | BaseException) -> None:
        job.asked = None
        job.events.put(outcome)

    def _replacement(self, index: Index) -> Batcher:
        """Ready to search another version of the index. Raises ValueError if it cannot be searched."""
        index.check(self.retriever)
        batcher = Batcher(self.retriever, index, self.budget, self.modes)
        batcher.prepare()
        return batcher

    def _replace(self, batcher: Batcher) -> None:
        self._batcher = batcher
        say(f"{batcher.index.path}: has changed; questions are now asked to its {len(batcher.index):,} chunks")
