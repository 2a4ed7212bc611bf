"""A pretrained encoder as a retriever that no training has changed: its chunks are found by its own similarity, in one look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qrag_jax.config import DataConfig, EvalConfig, ModelConfig, QHeadConfig, RLConfig, RunConfig
from qrag_jax.config.trees import parse_json
from qrag_jax.models.embedder import Embedder, make_embedder, pair
from qrag_jax.models.folder import read_folder
from qrag_jax.models.pretrained import find_folder
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.rundir.log import say

PREFIX = "encoder:"
"""Before the name of an encoder, where the place of a trained retriever could stand as well."""
CHUNK_TOKENS = 128
"""Longest chunk, in tokens with the special ones: about a paragraph."""
QUESTION_TOKENS = 128
ST_SETTINGS = "config_sentence_transformers.json"
DOT = frozenset({"contriever", "facebook/contriever"})
"""Encoders that are trained with the inner product and do not say so in their folder."""


def load_encoder(name: str, chunk_tokens: int = CHUNK_TOKENS) -> tuple[RunConfig, Embedder, Any, TextTokenizer]:
    """The settings, network, parameters and tokenizer of the encoder ``name``: minilm or another short name, a folder, or a hub name.

    Its similarity is the inner product if its folder names that for sentence-transformers, else the cosine. Raises ValueError, saying
    what to do, when there is no such encoder, and when it cannot read ``chunk_tokens`` tokens.
    """
    folder = find_folder(name, field="encoder")
    found = read_folder(folder)
    longest = found.backbone.max_tokens
    if not 8 <= chunk_tokens <= longest:
        raise ValueError(f"chunk_tokens = {chunk_tokens}: must be in 8..{longest}, what the encoder {name} reads")
    data = DataConfig(
        benchmark="own",
        task="all",
        chunk_by="tokens",
        question_tokens=min(QUESTION_TOKENS, longest),
        chunk_tokens=chunk_tokens,
        state_tokens=longest,
    )
    model = ModelConfig(embedder=str(name), tied=True, normalize=not _by_dot(name, folder), divisor=1.0)
    config = RunConfig(data, model, QHeadConfig(positions="none", halves=1), rl=RLConfig(budget=1), eval=EvalConfig(budget=1))
    return config, make_embedder(config, found.backbone, found.pooling), pair(found.params, None, tied=True), found.tokenizer


def _by_dot(name: str, folder: Path) -> bool:
    """Whether the encoder compares by the inner product. Says so if its folder asks for words before a text, which are not added."""
    settings = folder / ST_SETTINGS
    tree = parse_json(settings.read_bytes()) if settings.is_file() else {}
    tree = tree if isinstance(tree, dict) else {}
    prompts = tree.get("prompts")
    if isinstance(prompts, dict) and (asked := [key for key, text in prompts.items() if text]):
        named = ", ".join(map(str, asked))
        say(f"encoder {name}: its prompts ({named}) are not put before questions and texts, so it may find less")
    return tree.get("similarity_fn_name") == "dot" or name in DOT


def recorded_name(name: str) -> str:
    """How an index records the encoder: a folder by its full path, any other name as it is."""
    folder = Path(name).expanduser()
    return PREFIX + (str(folder.resolve()) if folder.is_dir() else name)
