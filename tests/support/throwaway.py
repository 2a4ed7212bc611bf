"""A benchmark that exists only in tests: a minimal module of the kind that qrag_jax.data has for each benchmark."""

from __future__ import annotations

from qrag_jax.config import DataConfig
from qrag_jax.data.splits import SPLITS, Split
from qrag_jax.types import QAExample


def context_chunks(task: str, tokens: int) -> int:
    return tokens // 50


def load(
    config: DataConfig, split: Split, *, seed: int, chunks: int | None = None, group: int | None = None, haystacks: int | None = None
) -> list[QAExample]:
    """A hundred questions; one chunk of ``chunks`` answers each."""
    count = config.chunks if chunks is None else chunks
    shade = lambda box: f"{SPLITS.index(split)}{seed}{box}"
    texts = tuple(f"The {config.task} of box {box} is shade {shade(box)}." for box in range(count))
    return [
        QAExample(f"throwaway/{i}", f"What is the {config.task} of box {i % count}?", texts, f"shade {shade(i % count)}", (i % count,))
        for i in range(100)
    ]
