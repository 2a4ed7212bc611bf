"""What HTTP takes and gives, as JSON: the models behind the OpenAPI description."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qrag_jax.retrieve.answering import Citation
from qrag_jax.retrieve.places import place
from qrag_jax.retrieve.ranking import SCORES, Mode
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.types import Step
from qrag_jax.serve.request import Answered, Found
from qrag_jax.serve.service import Service

Value = str | int | float | bool | None


class SearchRequest(BaseModel):
    """A question, and how to search for it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: str = Field(description="The question.", examples=["Where is the milk?"])
    budget: int | None = Field(None, description="How many chunks to pick. Left out: 4.", examples=[4])
    mode: Mode | None = Field(
        None,
        description="multi: in several steps. single: one look by the encoder's similarity. bm25: by words. hybrid: single and bm25. "
        "Left out: multi if the retriever is trained, else hybrid.",
    )
    filter: dict[str, Value] | list[str] | None = Field(
        None,
        description="Pick only from documents whose name (source) and metadata match; in a text, * is any text. All must match.",
        examples=[{"source": "reports/*", "year": 2024}],
    )
    stop: bool = Field(False, description="Stop at the first pick below the stop threshold.")


class AnswerRequest(SearchRequest):
    """A question to answer from what a search finds."""

    least_q: float | None = Field(
        None, description='In mode multi: if no pick reaches this Q, the answer is "not in the documents". Left out: the calibrated limit.'
    )


class StepOut(BaseModel):
    """One pick of a search."""

    step: int = Field(description="Counted from 0.")
    chunk: int = Field(description="The number of the chunk in the index.")
    q: float = Field(description="Its score: a Q, a similarity, a BM25 score, or a sum of reciprocal ranks.")
    place: str = Field(description="Where it stands, in words, such as 'report.pdf, page 3'.")
    source: str | None = Field(description="The name of its document.")
    start: int | None = Field(description="Its first character in the document.")
    end: int | None = Field(description="The character after its last one.")
    text: str
    metadata: dict[str, Any]
    also: list[str] = Field(description="Other places that have the same text.")
    below_threshold: bool = Field(description="Whether its Q is below the stop threshold.")
    seconds: float

    @classmethod
    def of(cls, step: Step) -> StepOut:
        pick = step.pick
        return cls(
            step=step.number,
            chunk=pick.chunk,
            q=pick.q,
            place=place(pick),
            source=pick.source,
            start=pick.start,
            end=pick.end,
            text=pick.text,
            metadata=dict(pick.metadata),
            also=[place(one) for one in pick.also],
            below_threshold=step.stop,
            seconds=round(step.seconds, 6),
        )


class SearchResponse(BaseModel):
    """What a search found."""

    question: str
    mode: Mode
    score: str = Field(description="What the field q of a step is.")
    threshold: float | None = Field(description="The stop threshold; null if there is none.")
    least_q: float | None = Field(description="The Q that a pick must reach to fit the question; null if it is not known.")
    fits: bool | None = Field(description="Whether any pick reaches least_q; null without it.")
    steps: list[StepOut] = Field(description="In the order of picking.")
    notes: list[str] = Field(description="What to know about this search, such as that the question was cut.")
    chunks: int = Field(description="How many chunks were searched.")
    version: str = Field(description="Of the index; it changes when documents change.")
    seconds: float

    @classmethod
    def of(cls, found: Found) -> SearchResponse:
        return cls(
            question=found.question,
            mode=found.mode,
            score=SCORES[found.mode],
            threshold=found.threshold,
            least_q=found.least_q,
            fits=None if found.least_q is None else any(step.pick.q >= found.least_q for step in found.steps),
            steps=[StepOut.of(step) for step in found.steps],
            notes=list(found.notes),
            chunks=found.chunks,
            version=found.version,
            seconds=round(sum(step.seconds for step in found.steps), 6),
        )


class CitationOut(BaseModel):
    """A passage that the reader was given."""

    number: int = Field(description="The number n of [n] in the answer.")
    chunk: int
    place: str


class AnswerResponse(BaseModel):
    """An answer with its citations."""

    text: str = Field(description="The answer; [n] is the citation with number n.")
    found: bool = Field(description="False if the documents do not hold the answer.")
    judge: str | None = Field(description="Who said that it is not found: stop rule, reader or search.")
    citations: list[CitationOut] = Field(description="What the answer cites.")
    also_read: list[CitationOut] = Field(description="What the reader was given, and the answer does not cite.")
    left_out: list[int] = Field(description="Chunks that were found, and had no room in the reader's context.")
    removed: list[int] = Field(description="Numbers that the answer cited and no passage has; they are taken out of the text.")
    prompt_tokens: int | None
    completion_tokens: int | None
    finish: str | None = Field(description='"length": the answer was cut off at its longest length.')
    seconds: float = Field(description="Of the reader.")
    search: SearchResponse

    @classmethod
    def of(cls, answered: Answered) -> AnswerResponse:
        answer = answered.answer
        return cls(
            text=answer.text,
            found=answer.found,
            judge=answer.judge,
            citations=_cited(answer.citations),
            also_read=_cited(answer.also_read),
            left_out=[pick.chunk for pick in answer.left_out],
            removed=list(answer.removed),
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            finish=answer.finish,
            seconds=round(answer.reader_seconds, 6),
            search=SearchResponse.of(answered.found),
        )


def _cited(some: Sequence[Citation]) -> list[CitationOut]:
    return [CitationOut(number=one.number, chunk=one.pick.chunk, place=one.place) for one in some]


class DocumentOut(BaseModel):
    """A document of the index."""

    name: str | None
    chunks: int
    characters: int
    parts: int = Field(description="Such as pages, or sections below a heading.")
    metadata: dict[str, Any] = Field(description="What all its parts have in common.")

    @classmethod
    def all(cls, records: Sequence[SourceRecord]) -> list[DocumentOut]:
        """The documents that the records of an index are parts of."""
        groups = groupby(records, key=lambda record: record.name or id(record))
        return [cls._of(list(parts)) for _, parts in groups]

    @classmethod
    def _of(cls, parts: Sequence[SourceRecord]) -> DocumentOut:
        shared = [item for item in parts[0].metadata.items() if all(part.metadata.get(item[0]) == item[1] for part in parts)]
        sums = {"chunks": sum(part.chunks for part in parts), "characters": sum(part.characters for part in parts)}
        return cls(name=parts[0].name, **sums, parts=len(parts), metadata=dict(shared))


class DocumentsResponse(BaseModel):
    """The documents of the index, or some of them."""

    total: int = Field(description="How many documents the index has.")
    documents: list[DocumentOut]
    version: str = Field(description="Of the index.")


class HealthResponse(BaseModel):
    """Whether the server works, and what it serves."""

    live: bool = Field(description="Questions can be searched.")
    ready: bool = Field(description="New questions are accepted.")
    stale: str | None = Field(description="Why the index on disk is not the one that is searched; null: it is.")
    version: str = Field(description="Of the index.")
    chunks: int
    requests: int = Field(description="Accepted and not yet answered.")
    modes: list[Mode] = Field(description="How questions can be searched; the first is the usual one.")
    budget: int = Field(description="The most picks of a question.")
    characters: int = Field(description="The longest question.")
    answers: bool = Field(description="Whether there is a reader, which writes answers.")
    key: bool = Field(description="Whether requests need a key.")

    @classmethod
    def of(cls, service: Service, key: bool) -> HealthResponse:
        health = service.health()
        return cls(
            **vars(health),
            modes=list(service.modes),
            budget=service.budget,
            characters=service.limits.characters,
            answers=service.reader is not None,
            key=key,
        )


class ErrorResponse(BaseModel):
    """Why a request was not answered."""

    status: int
    error: str = Field(description="One line: the field, its value, what is allowed, and what to do.")
