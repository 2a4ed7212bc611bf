"""Checks a tokenizer.json before the tokenizers library sees it, which ends the process or never returns on some malformed ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qrag_jax.config.trees import parse_json
from qrag_jax.models.patterns import backtracks_exponentially

LARGEST_FILE = 2**28  # bytes
IDS = 2**24
"""Token ids lie below this, far above any published vocabulary: the library makes a list that is as long as the largest id."""
LONGEST_PATTERN, LONGEST_TEMPLATE, LONGEST_PIECE = 4096, 64, 4096
GROWTH = 256
"""By how much the replacements of a normalizer may lengthen a text in all."""
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer_file(path: Path) -> None:
    """Raises ValueError, in one line that names the file and the part, on what would hang, abort or fill the memory."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes; a tokenizer has at most {LARGEST_FILE:,}")
    try:
        tree = parse_json(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("must be an object")
        _check_model(tree.get("model"))
        _check_added(tree.get("added_tokens") or [])
        growth = 1
        for name in STEPS:
            for step in _objects(tree.get(name)):
                growth *= _check_step(step, name)
        if growth > GROWTH:
            raise ValueError(f"normalizer: its replacements lengthen a text up to {growth:,} times; at most {GROWTH}")
    except ValueError as error:
        raise ValueError(f"{path}: not a tokenizer.json that is read here: {error}") from error


@contextmanager
def no_panic(what: str) -> Iterator[None]:
    """Turns a failure of the tokenizers library (a bare Exception; a panic, which is none) into a ValueError that begins with ``what``."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: the tokenizers library fails on it: {' '.join(str(error).split())[:200]}") from None


def _check_model(model: Any) -> None:
    if not isinstance(model, dict) or model.get("type", "BPE") not in MODELS:
        raise ValueError(f"model: must be an object of type {', '.join(MODELS)}")
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        for entry in vocab:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_score(entry[1])):
                raise ValueError(f"model.vocab: {str(entry)[:60]!r}: must be a piece and a finite score")
        unknown = model.get("unk_id")
        if unknown is not None and not (type(unknown) is int and 0 <= unknown < len(vocab)):
            raise ValueError(f"model.unk_id = {unknown!r}: must be in 0..{len(vocab) - 1}")
    elif isinstance(vocab, dict):
        _check_ids("model.vocab", vocab.values())
    if not isinstance(vocab, list | dict) or not vocab or len(vocab) > IDS:
        raise ValueError(f"model.vocab: must hold 1 to {IDS:,} pieces")
    if any(len(piece if isinstance(piece, str) else piece[0]) > LONGEST_PIECE for piece in vocab):
        raise ValueError(f"model.vocab: a piece has more than {LONGEST_PIECE} characters")
    dropout = model.get("dropout")
    if dropout is not None and dropout != 0:
        raise ValueError(f"model.dropout = {dropout!r}: must be null; with dropout a text has no fixed tokens")
    prefix = model.get("continuing_subword_prefix")
    if isinstance(prefix, str) and prefix:
        for merge in model.get("merges") or []:
            second = merge[-1] if isinstance(merge, list) and merge else merge.rpartition(" ")[2] if isinstance(merge, str) else ""
            if not isinstance(second, str) or not second.startswith(prefix):
                raise ValueError(
                    f"model.merges: {str(merge)[:60]!r}: its second piece must begin with continuing_subword_prefix {prefix!r}"
                )


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30


def _check_ids(name: str, ids: Any) -> None:
    for found in ids:
        if type(found) is not int or not 0 <= found < IDS:
            raise ValueError(f"{name}: id {str(found)[:40]}: must be a whole number in 0..{IDS - 1:,}")


def _check_added(added: Any) -> None:
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("added_tokens: must be a list of objects")
    _check_ids("added_tokens", [token.get("id") for token in added])
    if bad := [token for token in added if not isinstance(token.get("content"), str) or not token["content"]]:
        raise ValueError(f"added_tokens: the token of id {bad[0]['id']} has no content")


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    """The objects of a tree, outermost first. Its depth is bounded (parse_json)."""
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _objects(part)


def _check_step(step: dict[str, Any], where: str) -> int:
    """Checks one object of a normalizer and so on; returns by how much it may lengthen a text."""
    ids = step.get("ids")
    if isinstance(ids, list):
        _check_ids(f"{where}.special_tokens", ids)
    for name in ("single", "pair"):
        if isinstance(step.get(name), list) and len(step[name]) > LONGEST_TEMPLATE:
            raise ValueError(f"{where}.{name}: has {len(step[name])} parts; at most {LONGEST_TEMPLATE}")
    pattern = step.get("pattern")
    if not isinstance(pattern, dict):
        return 1
    for text in pattern.values():
        if not isinstance(text, str) or not text or len(text) > LONGEST_PATTERN:
            raise ValueError(f"{where}.pattern: must be a text of 1 to {LONGEST_PATTERN} characters")
    if isinstance(pattern.get("Regex"), str) and backtracks_exponentially(pattern["Regex"]):
        raise ValueError(
            f"{where}.pattern: {pattern['Regex'][:80]!r} repeats a group that may match in several ways: some texts take very long or fail"
        )
    content = step.get("content")
    return max(1, len(content)) if step.get("type") == "Replace" and isinstance(content, str) else 1
