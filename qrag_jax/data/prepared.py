"""Finds and reads data sets in array_record files, which ``tfds_builders.prepare`` writes below ``<data_dir>/tfds``.

The readers of text files look here first. The result is the same either way, but books load about twenty times as fast from here.
TensorFlow is not used.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qrag_jax.rundir.files import read_json

VERSION = "1.1.0"
"""Version of the records and of the rules that split text into sentences. Raise it when either changes."""
FOLDER = "tfds"
FEATURES = re.compile(r"tensorflow_datasets\.core\.features\.[a-z_]+\.[A-Za-z]+")
"""The classes of features that a file may name; tensorflow-datasets imports what it names."""
AGAIN = "run `python -m experiments.prepare_data` again"


def prepared_folder(data_dir: str | Path, *names: str) -> Path | None:
    """The folder of a prepared data set such as ('babi', 'qa1'), or None if it was not prepared."""
    folder = Path(data_dir, FOLDER, *names, VERSION)
    return folder if (folder / "dataset_info.json").is_file() else None


def fingerprint(files: Sequence[Path]) -> str:
    """A text that changes when a file is added, removed, renamed or changed in any byte."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        digest.update(f"{path.parent.name}/{path.name} {content}\n".encode())
    return digest.hexdigest()


def _refuse_classes(path: Path) -> None:
    """Raises ValueError when a features.json names a Python class of anything but tensorflow-datasets' own features."""
    nodes = [read_json(path)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            for name in ("pythonClassName", "python_class_name", "type"):
                if isinstance(found := node.get(name), str) and not FEATURES.fullmatch(found):
                    raise ValueError(f"{path}: {name} = {str(found)[:80]!r}: is no feature of tensorflow-datasets; {AGAIN}")
        if isinstance(node, dict | list):
            nodes += node.values() if isinstance(node, dict) else node


def read_records(folder: Path, split: str, sources: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The records of a split in order, read one at a time.

    Raises ValueError if ``sources``, the present text files, are not those that the data set was made from. Without any text files, the
    data set is used as it is.
    """
    _refuse_classes(folder / "features.json")
    tfds = importlib.import_module("tensorflow_datasets")  # imported only when needed, since it takes a second
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # what the library raises depends on which part is damaged
        raise ValueError(f"{folder}: cannot be read ({' '.join(str(error).split())[:200]}); {AGAIN}") from error
    if sources and (builder.info.metadata or {}).get("sources") != fingerprint(sources):
        raise ValueError(f"{folder}: was prepared from other files than those in {sources[0].parent} now; {AGAIN}")
    records = builder.as_data_source(split=split)
    return (records[i] for i in range(len(records)))
