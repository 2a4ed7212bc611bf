"""The thread that searches. Questions that are there at the same time share passes over the index."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from qrag_jax.retrieve.batching import TOGETHER, Asked, Batcher, Part
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Step
from qrag_jax.serve.limits import Gone, TooLate
from qrag_jax.serve.request import Found, Request

USUAL_BUDGET = 4
PATIENCE = 1.0  # seconds between two looks whether a request is over


@dataclass
class _Job:
    """A question in line or in search. ``events``: its steps, and at the end a Found or an error."""

    arguments: Callable[[Batcher], Asked]
    request: Request
    events: queue.SimpleQueue[Step | Found | BaseException] = field(default_factory=queue.SimpleQueue)
    batcher: Batcher | None = None
    asked: Asked | None = None
    steps: list[Step] = field(default_factory=list)


class Searches:
    """Searches by ``batcher``, which may be replaced: then questions that come later are asked to the new one.

    ``on_pass`` is told of each pass: its number of questions, and its seconds; ``on_steps``: its requests, their new steps, and its parts.
    """

    def __init__(self, retriever: Retriever, batcher: Batcher) -> None:
        self.retriever, self.batcher = retriever, batcher
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="search", daemon=True)
        self._closed, self._seconds = False, 1.0
        self.on_pass: Callable[[int, float], None] | None = None
        self.on_steps: Callable[[Sequence[Request], Sequence[Sequence[Step]], Sequence[Part]], None] | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the questions that wait. Nothing may be asked any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def live(self) -> bool:
        return self._thread.is_alive()

    def wait_seconds(self) -> int:
        """About how long a new question would wait, from the time of the latest searches."""
        return math.ceil(self._seconds * (1 + len(self._waiting) // TOGETHER))

    def stream(self, arguments: Callable[[Batcher], Asked], request: Request) -> Iterator[Step | Found]:
        """Yields each step of a search as it is made, and at the end a :class:`Found`. ``arguments`` begins it, in the search thread.

        Raises what ``arguments`` raises, and Gone or TooLate.
        """
        job = _Job(arguments, request)
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

    def _work(self) -> None:
        """The loop of the search thread: new questions begin between two passes."""
        active: list[_Job] = []
        while True:
            with self._changed:
                while not self._waiting and not active:
                    if self._closed:
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
            job.batcher = self.batcher
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
