"""Metadata of documents: from a JSON file beside a text, from the front matter of a Markdown file, or given from Python."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import numpy as np

from qrag_jax.config.trees import DEEPEST, parse_yaml
from qrag_jax.retrieve.formats.text import FRONT_MATTER
from qrag_jax.rundir.files import read_json
from qrag_jax.rundir.log import say

Metadata = Mapping[str, Any]
"""Names and their values: texts, numbers, true, false, null, and lists or objects of them."""
SIDECAR = ".json"
"""What follows the name of a text file in the name of the file with its metadata: report.md.json."""


def file_metadata(path: Path, text: str, sidecar: Path | None) -> tuple[dict[str, Any], int]:
    """The metadata of a text file, and the number of characters of its front matter (0: it has none), which are not part of its text.

    Front matter is YAML between two lines of three hyphens at the start of an .md file. Of a name that both have, the value of the sidecar
    counts. Raises ValueError, naming the file, when the sidecar is not a JSON object.
    """
    found, length = _front_matter(path, text) if path.suffix.lower() == ".md" else ({}, 0)
    if sidecar is None:
        return found, length
    tree = read_json(sidecar)
    if not isinstance(tree, dict):
        raise ValueError(f'{sidecar}: the metadata of {path.name} must be a JSON object, such as {{"year": 2024}}')
    return found | plain(tree, str(sidecar)), length


def _front_matter(path: Path, text: str) -> tuple[dict[str, Any], int]:
    block = FRONT_MATTER.match(text)
    if block is None:
        return {}, 0
    try:
        tree = parse_yaml(block[1])
        return (plain(tree, str(path)), block.end()) if isinstance(tree, dict) else ({}, 0)
    except ValueError as error:
        say(f"{path}: the lines between --- at its start are no metadata, so they are read as text: {error}")
        return {}, 0


def plain(metadata: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Metadata as JSON holds them: dates become ISO texts, paths and UUIDs texts, NumPy numbers numbers, and tuples and sets lists.

    Raises ValueError, naming ``where`` and the metadata, on anything else.
    """
    return {str(name): _plain(value, f"{where}: metadata {str(name)!r}", 1) for name, value in metadata.items()}


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth >= DEEPEST:
        raise ValueError(f"{where}: nested more than {DEEPEST} levels deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{where} = {value}: must be a finite number")
            return kind(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (PurePath, UUID)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part, where, depth + 1) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part, where, depth + 1) for part in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    raise ValueError(f"{where} is of type {type(value).__name__}: must be a text, a number, true, false, null, or a list or object of them")
