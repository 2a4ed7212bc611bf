"""RULER (Hsieh et al. 2024, arXiv 2404.06654): eight needle tasks in haystacks of any length, and questions among paragraphs.

Documents have exactly the requested number of chunks. Needles are at random places; the support consists of the needles that answer the
question. Haystacks are the official ones: a repeated line of noise, essays, or needles. Essays are used only for the test: training and
validation use books instead, or Python's documentation if there are no books. ``ruler/files.py`` reads RULER's own files.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qrag_jax.config import DataConfig, benchmarks, lengths
from qrag_jax.data.documents import Documents, NoiseSource, TextHaystack, choose_noise
from qrag_jax.data.mixture import Mixture
from qrag_jax.data.ruler.files import official_path, read_official
from qrag_jax.data.ruler.needles import NIAH, NOISE_LINE, NeedleHaystack, NiahQuestions, WordKeys
from qrag_jax.data.ruler.qa import QA_TASKS, load_qa
from qrag_jax.data.ruler.qa_files import read_official_qa
from qrag_jax.data.splits import Split, check_split, stable_fraction
from qrag_jax.data.text.haystack import HAYSTACK_SENTENCES, book_sentences, load_haystack
from qrag_jax.types import QAExample

_WORD = re.compile(r"\b[a-z]{3,12}\b")
ALL_NEEDLES = "niah"
"""The eight needle tasks, to train one retriever for all of them; they are evaluated one by one."""
TRAINING_PARTS = {"niah_multikey_2": 5, "niah_multikey_3": 5}
"""Parts of the training questions of all tasks together, of 16; the other six tasks have one each. In these two every other chunk is a
needle too, and only many questions teach to tell them apart."""
CHUNK_TOKENS = {"niah_multikey_2": 18, "niah_multikey_3": 68, "qa_sh": 150, "qa_mh": 120}
"""Tokens per chunk, for chunks other than sentences (25): needles as in RULER's own files, paragraphs by their words and punctuation."""


class Ruler(Documents):
    """Needles among lines, essays or other needles; or the paragraphs that answer a question, among other paragraphs."""

    BENCHMARK, NOISE, EXAMPLE = "ruler", 112, 113


def full_name(task: str) -> str:
    """'niah_mk3' -> 'niah_multikey_3'; a full name stays. Raises ValueError on an unknown task."""
    benchmarks.task("ruler", task)
    return benchmarks.find("ruler").aliases.get(task, task)


def context_chunks(task: str, tokens: int) -> int:
    """Number of chunks that fill a context of ``tokens`` tokens."""
    per_chunk = CHUNK_TOKENS.get(full_name(task))
    return lengths.context_chunks(tokens) if per_chunk is None else math.ceil(tokens / per_chunk)


def load(
    config: DataConfig,
    split: Split,
    *,
    seed: int,
    chunks: int | None = None,
    group: int | None = None,
    haystacks: int | None = None,
) -> Ruler | Mixture:
    """The examples of a split. A document has ``chunks`` chunks; None: ``config.chunks``.

    Give exactly one of ``group`` (training: the number of consecutive examples that share ``config.shared_noise`` pieces of noise) and
    ``haystacks`` (evaluation: the number of haystacks, to which examples are assigned in turn). Raises ValueError on an unknown task, on
    missing or broken files, and on documents with too little room for a question or with more chunks than there are paragraphs.
    """
    check_split(split)
    noise = choose_noise(group, haystacks, config.shared_noise)
    task = full_name(config.task)
    if task == ALL_NEEDLES:
        return _all_needles(config, split, seed=seed, chunks=chunks, group=group, haystacks=haystacks)
    chunks = config.chunks if chunks is None else chunks
    if task in QA_TASKS:
        paragraphs, texts = load_qa(task, config.data_dir, split, seed=seed)
        if group is None and chunks > len(texts.pieces):
            raise ValueError(
                f"chunks = {chunks}: must be <= {len(texts.pieces)}, the number of different paragraphs of task {task} in {split}; "
                "leave out the longest of eval.tokens, or use larger files"
            )
        return Ruler(paragraphs, texts, noise, task=task, split=split, seed=seed, chunks=chunks)
    in_words = split == "train" and NIAH[task].key_kind == "words"
    words = WordKeys(split, seed=seed, words=training_words(_books(config.data_dir)) if in_words else ())
    questions = NiahQuestions(NIAH[task], split, words, noise, seed=seed)
    haystack = _haystack(task, config.data_dir, split, words, chunks * (haystacks or 0))
    return Ruler(questions, haystack, noise, task=task, split=split, seed=seed, chunks=chunks)


def _all_needles(config: DataConfig, split: Split, *, group: int | None, **options: Any) -> Mixture:
    """The eight tasks: in the parts of ``TRAINING_PARTS`` to train, in equal parts to evaluate. A task has new noise as often as a task
    that is trained alone: once in ``group`` examples of all tasks."""
    weights = [1 if group is None else TRAINING_PARTS.get(part, 1) for part in NIAH]
    groups = [None if group is None else max(1, group * weight // sum(weights)) for weight in weights]
    sources = [load(replace(config, task=part), split, group=own, **options) for part, own in zip(NIAH, groups, strict=True)]
    return Mixture(sources, weights, split, seed=options["seed"])


def _haystack(task: str, data_dir: str | None, split: Split, words: WordKeys, sentences: int) -> NoiseSource:
    kind = NIAH[task].haystack
    if kind == "noise":
        return TextHaystack((NOISE_LINE,))
    if kind == "needles":
        return NeedleHaystack(NIAH[task], split, words)
    if data_dir is not None and split == "test":
        return TextHaystack(essay_sentences(data_dir))
    return TextHaystack(load_haystack(_books(data_dir), split, max(HAYSTACK_SENTENCES, sentences)).sentences)


def _books(data_dir: str | None) -> str | None:
    """The folder with books; None: Python's documentation is used instead."""
    return data_dir if data_dir is not None and Path(data_dir, "books").is_dir() else None


@lru_cache(maxsize=4)
def training_words(books: str | None) -> tuple[str, ...]:
    """The words of the texts to train on that may be in a key: 3 to 12 small letters. Cached for the life of the process."""
    sentences = load_haystack(books, "train", HAYSTACK_SENTENCES).sentences
    return tuple(sorted({word for sentence in sentences for word in _WORD.findall(sentence)}))


@lru_cache(maxsize=4)
def essay_sentences(data_dir: str) -> tuple[str, ...]:
    """The sentences of all essays, which are ordered by a hash of their names. Cached for the life of the process."""
    folder = Path(data_dir, "pg_essays")
    paths = sorted(folder.glob("*.txt"), key=lambda path: (stable_fraction(path.stem), path.stem))
    if not paths:
        raise ValueError(f"{folder}: no .txt files; for the test of this task data_dir = {data_dir!r} must hold pg_essays/*.txt")
    sentences = tuple(sentence for path in paths for sentence in book_sentences(path))
    if not sentences:
        raise ValueError(f"{folder}: no sentence of 10 to 64 words and punctuation; essays must be plain English prose in UTF-8")
    return sentences


def load_official(data_dir: str | None, task: str, length: int) -> list[QAExample]:
    """RULER's own records of a task with texts of ``length`` tokens (``data_dir/ruler/<length>/<task>/validation.jsonl``; RULER's
    names of qa_sh and qa_mh are qa_1 and qa_2).

    Documents have different numbers of chunks. Raises ValueError on an unknown task, a missing file or a broken record.
    """
    task = full_name(task)
    if data_dir is None:
        raise ValueError(f"data.data_dir: official records are files, so a folder with {official_path('', task, length)} must be given")
    path = official_path(data_dir, task, length)
    return read_official_qa(data_dir, task, path) if task in QA_TASKS else read_official(path)
