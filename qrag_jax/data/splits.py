"""Assigns texts to splits by a stable hash of the text itself.

A text always falls into the same split, on every machine and in every process. So two splits never share a story or a book, and no lists
need to be kept.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}: unknown; known: {', '.join(SPLITS)}")


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends only on ``text``."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def hashed_split(text: str, *, validation: float = 0.1, test: float = 0.1) -> Split:
    """The split of ``text``, given the shares of all texts that become validation and test."""
    fraction = stable_fraction(text)
    if fraction < test:
        return "test"
    return "validation" if fraction < test + validation else "train"
