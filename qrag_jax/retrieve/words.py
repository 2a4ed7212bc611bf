"""BM25 over the chunks of a document (package bm25s: Lucene's variant, k1 1.5, b 0.75, English stop words left out).

An index keeps its words in a file of its folder, so that its texts are split into words once and not at every question:

    words.npz   its format, a hash of the texts that it belongs to, the SHA-256 of the rest, and BM25's sparse matrix, a column per word

The file only saves time: one that is missing, damaged, of another version or of other texts is made again. A change of the index removes
it.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from qrag_jax.retrieve.storage import WORDS
from qrag_jax.rundir.files import whole_file
from qrag_jax.rundir.log import say

FORMAT = "qrag-jax-words 1"
PARTS = {"data": np.float32, "indices": np.int32, "indptr": np.int64, "vocabulary": np.uint8}
"""The arrays of the file: value and row of each entry, column by column; where each column begins; the words, one a line."""


class WordIndex:
    """BM25 scores of ``chunks`` texts: ``matrix`` has a row for each text and a column for each word of ``vocabulary``."""

    def __init__(self, chunks: int, vocabulary: dict[str, int], matrix: dict[str, np.ndarray]) -> None:
        self.chunks, self._vocabulary, self._matrix = chunks, vocabulary, matrix

    @classmethod
    def build(cls, texts: Iterable[str]) -> WordIndex:
        """Reads the texts once; they need not be in memory together. Raises ValueError when bm25s is not installed."""
        found = _bm25s().tokenize(texts, stopwords="en", show_progress=False)
        return cls._indexed(len(found.ids), found)

    @classmethod
    def of_words(cls, texts: Sequence[Sequence[str]]) -> WordIndex:
        """From texts that :func:`words` has split."""
        return cls._indexed(len(texts), texts)

    @classmethod
    def _indexed(cls, chunks: int, corpus: Any) -> WordIndex:
        if not any(corpus.ids if hasattr(corpus, "ids") else corpus):  # texts without words, of which bm25s makes no index
            return cls(chunks, {}, {name: np.zeros(int(name == "indptr"), PARTS[name]) for name in ("data", "indices", "indptr")})
        bm25 = _bm25s().BM25()
        bm25.index(corpus, show_progress=False)
        columns = {word: column for word, column in sorted(bm25.vocab_dict.items(), key=lambda item: item[1]) if word}
        assert list(columns.values()) == list(range(len(columns)))
        edges = np.asarray(bm25.scores["indptr"], np.int64)[: len(columns) + 1]
        parts = {"data": bm25.scores["data"][: edges[-1]], "indices": bm25.scores["indices"][: edges[-1]], "indptr": edges}
        return cls(chunks, columns, {name: np.asarray(part, PARTS[name]) for name, part in parts.items()})

    def scores(self, question: Sequence[str]) -> Float[np.ndarray, " N"]:
        """The score of each text for a question that :func:`words` has split; 0 for a text that has none of its words."""
        out = np.zeros(self.chunks, np.float32)
        for word in question:  # a word that no chunk has adds nothing to any score
            if (column := self._vocabulary.get(word)) is not None:
                begin, end = self._matrix["indptr"][column : column + 2]
                out[self._matrix["indices"][begin:end]] += self._matrix["data"][begin:end]  # a column names a row once
        return out

    def save(self, folder: Path, texts: str) -> None:
        """Keeps the words in the folder of an index. ``texts``: a hash of the texts that they are of."""
        parts = self._matrix | {"vocabulary": np.frombuffer("\n".join(self._vocabulary).encode(), np.uint8)}
        with whole_file(folder / WORDS) as path, path.open("wb") as file:
            np.savez(file, allow_pickle=False, about=np.array([FORMAT, texts, str(self.chunks), _digest(parts)]), **parts)

    @classmethod
    def load(cls, folder: Path, texts: str) -> WordIndex | None:
        """The words that :meth:`save` has kept; None if there are none of these texts, or they cannot be used."""
        try:
            with (folder / WORDS).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                form, of, chunks, digest = file["about"].tolist()
                parts = {name: file[name] for name in PARTS}
            if (form, of, digest) != (FORMAT, texts, _digest(parts)):
                return None
            text = parts.pop("vocabulary").tobytes().decode()
            named = text.split("\n") if text else []
            edges, rows, count = parts["indptr"], parts["indices"], int(chunks)
            sound = len(edges) == len(named) + 1 and edges[0] == 0 and edges[-1] == len(rows) == len(parts["data"])
            sound = sound and bool((np.diff(edges) >= 0).all()) and 0 <= rows.min(initial=0) <= rows.max(initial=0) < max(count, 1)
            return cls(count, {word: i for i, word in enumerate(named)}, parts) if sound else None
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile):
            return None


def kept_words(folder: Path, texts: str, read: Iterable[str]) -> WordIndex:
    """The words of an index: those kept in its folder, or made of the texts that ``read`` gives, and kept if the folder allows it."""
    found = WordIndex.load(folder, texts)
    if found is None:
        found = WordIndex.build(read)
        try:
            found.save(folder, texts)
        except OSError as error:
            say(f"{folder / WORDS}: not written ({error.strerror}), so the next command splits the texts into words again")
    return found


def words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, in lower case and without stop words."""
    found: list[list[str]] = _bm25s().tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return found


def _digest(parts: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        digest.update(f"{name} {part.dtype} {part.shape}\n".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise ValueError("BM25 needs the package bm25s: pip install bm25s") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs a line for each index
    return bm25s
