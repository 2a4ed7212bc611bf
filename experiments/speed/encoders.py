"""Measures index builds at several sizes, and embedding compared with sentence-transformers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.speed.timing import alternate, cores, missing_torch, ratio, times
from qrag_jax.config import DataConfig, ModelConfig, RunConfig
from qrag_jax.export.folder import Export, read_export, write_export
from qrag_jax.export.to_torch import to_torch
from qrag_jax.models.bert import BertConfig
from qrag_jax.models.embedder import pair
from qrag_jax.models.pretrained import load_pretrained
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.embed import WIDTHS
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever

BUILT_AGAIN = 100_000  # chunks: each size is built as often as fits into this number, at least once
FLOPS = "layers * (2 L (4 D^2 + 2 D M) + 4 L^2 D), L the real tokens of each distinct text, D the width, M the width of the MLP"


def build(
    export: Path, texts: Sequence[str], sizes: Sequence[int], repeats: int, scratch: Path, peak: float
) -> tuple[list[dict[str, Any]], Index]:
    """Measures ``Index.build`` for each of ``sizes`` in turn; returns the times and the largest index. ``peak``: GFLOP/s of the machine.

    The share of the peak counts the operations of :data:`FLOPS`, without padding; it is null for backbones other than BERT. Each build
    starts with a tokenizer that has cached no text. The programs are compiled beforehand.
    """
    retriever = Retriever.from_pretrained(export)
    extra, longest = len(retriever.tokenizer.prefix) + len(retriever.tokenizer.suffix), retriever.config.data.chunk_tokens
    for width in (*(width for width in WIDTHS if extra < width < longest), longest):
        retriever.embed_chunks(["a " * (width - extra)])
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(repeats):
        for size in sizes:
            if turn < max(1, BUILT_AGAIN // size):
                folder, fresh = scratch / f"index-{size}", Retriever.from_pretrained(export)
                shutil.rmtree(folder, ignore_errors=True)
                start = time.perf_counter()
                Index.build(fresh, texts[:size], folder)
                seconds[size].append(time.perf_counter() - start)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        distinct = list(dict.fromkeys(texts[:size]))
        tokens = np.minimum([len(ids) + extra for ids in retriever.tokenizer.lookup(distinct)], longest)
        found = times(seconds[size])
        each = found["median_s"] / size
        flops = flops_of(retriever.embedder.config, tokens)
        gflops = None if flops is None else flops / found["median_s"] / 1e9
        rows.append(
            {
                "chunks": size,
                "distinct": len(distinct),
                "tokens_per_chunk": float(tokens.mean()),
                **found,
                "chunks_per_s": 1 / each,
                "s_per_chunk": each,
                "over_smallest": each / rows[0]["s_per_chunk"] if rows else 1.0,
                "flops_per_chunk": None if flops is None else flops / size,
                "gflops": gflops,
                "share_of_peak": None if gflops is None else gflops / peak,
                "reason": "the operations of this backbone are not counted" if flops is None else None,
            }
        )
    return rows, Index.open(scratch / f"index-{sizes[-1]}")


def flops_of(config: Any, tokens: np.ndarray) -> float | None:
    """Floating-point operations of the encoder over rows of ``tokens`` tokens, by :data:`FLOPS`; None for other networks."""
    if not isinstance(config, BertConfig):
        return None
    length, width = tokens.astype(float), config.hidden_size
    matrices = 4 * width**2 + 2 * width * config.intermediate_size
    return float(config.num_hidden_layers * (2 * length * matrices + 4 * length**2 * width).sum())


def compare_encoders(name: str, export: Path, texts: Sequence[str], repeats: int, folder: Path) -> dict[str, Any]:
    """Compares ``embed_chunks`` with sentence-transformers: the same weights, texts and cores, both in float32, with no cached texts.

    ``theirs_over_ours``: their time, at the better of two batch sizes, divided by ours.
    """
    if reason := missing_torch():
        return _not_compared(name, len(texts), reason)
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(cores())
    retriever = Retriever.from_pretrained(export)
    retriever.embedder = retriever.embedder.clone(dtype=jnp.float32)
    written = to_torch(read_export(export), folder, "sentence-transformers")
    model = SentenceTransformer(str(written / "action_encoder"), device="cpu", trust_remote_code=False)
    texts = list(texts)

    def forget() -> None:
        retriever.tokenizer = TextTokenizer.load(export / "tokenizer.json")

    theirs = lambda size: lambda: np.asarray(model.encode(texts, batch_size=size, show_progress_bar=False))
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: retriever.embed_chunks(texts)}
    calls |= {"theirs_32": theirs(32), "theirs_256": theirs(256)}
    difference = float(np.abs(calls["ours"]() - calls["theirs_256"]()).max())
    found = alternate(calls, repeats, forget)
    best = min((found["theirs_32"], found["theirs_256"]), key=lambda seconds: seconds["median_s"])
    return {
        "model": name,
        "texts": len(texts),
        **found,
        "ours_chunks_per_s": len(texts) / found["ours"]["median_s"],
        "theirs_chunks_per_s": len(texts) / best["median_s"],
        "theirs_over_ours": ratio(best, found["ours"]),
        "largest_difference": difference,
        "reason": None,
    }


def _not_compared(name: str, texts: int, reason: str) -> dict[str, Any]:
    names = ("ours", "theirs_32", "theirs_256", "ours_chunks_per_s", "theirs_chunks_per_s", "theirs_over_ours", "largest_difference")
    return {"model": name, "texts": texts, **dict.fromkeys(names), "reason": reason}


def compare_minilm(data: DataConfig, texts: Sequence[str], repeats: int, scratch: Path) -> dict[str, Any]:
    """:func:`compare_encoders` with real weights, if they can be found."""
    name = "all-MiniLM-L6-v2"
    if reason := missing_torch():
        return _not_compared(name, len(texts), reason)
    try:
        found = load_pretrained("minilm")
    except ValueError as error:
        return _not_compared(name, len(texts), str(error))
    config = RunConfig(data=data, model=ModelConfig(embedder="minilm"))
    export = write_export(scratch / "minilm", Export(config, found.backbone, pair(found.params, None), found.tokenizer, found.pooling))
    return compare_encoders(name, export, texts, repeats, scratch / "minilm-torch")
