"""A small untrained retriever, and sources for an index."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from qrag_jax.export.folder import Export, write_export
from qrag_jax.models.embedder import make_embedder
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.retrieve.retriever import Retriever
from tests.support.small import SMALL, small_tokenizer

WHO, WHAT, WHERE = (
    ("Mary", "John", "Sandra", "Daniel"),
    ("went", "moved", "travelled"),
    ("kitchen", "garden", "office", "hallway", "bathroom"),
)
CHUNKS = [f"{who} {what} to the {where}." for who in WHO for what in WHAT for where in WHERE]  # 60, all different
CHUNKS = CHUNKS + CHUNKS[10:30]  # the last 20 are old ones
FILES = {
    "b.txt": "Mary went to the garden. John moved to the office, and nobody saw him.\r\n\r\nSandra stayed.",
    "a/deep/one.md": "# Été\n\nDaniel travelled to the kitchen! Then he slept… “Really?” she asked.\n\n" + "Mary " * 40,
    "a/empty.txt": " \n",
    "c.TXT": "John took the milk there. " * 9,
    "notes.doc": "not read",
    ".hidden/x.txt": "not read either",
}


def small_retriever(key: int = 0) -> Retriever:
    tokenizer = small_tokenizer()
    embedder = make_embedder(SMALL, scratch_backbone(SMALL.model, tokenizer.vocab_size))
    ids = np.zeros((1, 4), np.int32)
    return Retriever(SMALL, embedder, jax.jit(embedder.init)(jax.random.key(key), ids, ids), tokenizer)


def write_small_export(out: Path, threshold: float | None = None) -> Path:
    retriever = small_retriever()
    backbone = scratch_backbone(SMALL.model, retriever.tokenizer.vocab_size)
    return write_export(out, Export(SMALL, backbone, retriever.params, retriever.tokenizer, "mean", threshold, step=1))


def write_files(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
