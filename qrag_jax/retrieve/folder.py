"""The files of a folder: which are read, under which names, and which are not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from qrag_jax.retrieve.formats.table import READERS
from qrag_jax.retrieve.metadata import SIDECAR
from qrag_jax.retrieve.records import SUFFIXES


class SourceFile(NamedTuple):
    """A file, its name in the index, and the JSON file with its metadata, if there is one."""

    name: str
    path: Path
    sidecar: Path | None


def list_files(source: Path) -> tuple[list[SourceFile], dict[str, int]]:
    """The files to read, sorted by name, and the number of the others by suffix. A file that is named is read whatever its suffix is.

    Raises ValueError when there is none.
    """
    if source.is_file():
        sidecar = source.with_name(source.name + SIDECAR)
        return [SourceFile(printable_name(source.name), source, sidecar if sidecar.is_file() else None)], {}
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder; expected a file, or a folder of files")
    skipped: Counter[str] = Counter()
    seen: set[Path] = set()
    root = source.resolve()
    for path in source.rglob("*"):
        if not path.is_file():
            continue
        if any(part.startswith(".") for part in path.relative_to(source).parts):
            skipped["hidden"] += 1
        elif not path.resolve().is_relative_to(root):
            skipped["link out of the folder"] += 1
        else:
            seen.add(path)
    readable = {path for path in seen if path.suffix.lower() in READERS}
    sidecars = {path for path in seen if path.suffix == SIDECAR and path.with_suffix("") in readable}
    skipped.update(printable_name(path.suffix.lower()) or "no suffix" for path in seen - readable - sidecars)
    files = []
    for path in readable - sidecars:
        sidecar = path.with_name(path.name + SIDECAR)
        files.append(SourceFile(printable_name(path.relative_to(source).as_posix()), path, sidecar if sidecar in sidecars else None))
    if not files:
        raise ValueError(f"{source}: holds no file of a kind that is read: {SUFFIXES}")
    return sorted(files, key=lambda file: (file.name, file.path)), dict(skipped)


def printable_name(name: str) -> str:
    """The name of a file, in which bytes that are not UTF-8 are written as \\x and two digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
