"""What is checked before an index is written: the folder, the model, and what is in the folder already."""

from __future__ import annotations

from pathlib import Path

from qrag_jax.retrieve.changes import Documents, is_index_of
from qrag_jax.retrieve.meta import FOLDER, JOURNAL, META, Meta
from qrag_jax.retrieve.sources import ChunkStream
from qrag_jax.retrieve.storage import TEMPORARY
from qrag_jax.retrieve.stores.held import StoreRef
from qrag_jax.retrieve.team import JOURNALS
from qrag_jax.retrieve.writing import clean


def check_unchanged(path: Path, meta: Meta, stream: ChunkStream) -> Meta:
    """The finished index at ``path``. Raises ValueError unless it is one of this source, model and settings."""
    found = Meta.read(path / META)
    check_model(path, found.model.hash, meta.model.hash)
    pairs = [(name, getattr(found, name), getattr(meta, name)) for name in ("dtype", "shard_chunks", "positions")]
    pairs += [(name, getattr(found.model, name), getattr(meta.model, name)) for name in ("chunk_by", "chunk_tokens")]
    for name, old, new in pairs:
        if old != new:
            raise ValueError(f"{path}: was built with {name} = {old}, now {new}; build with {old}, or into another folder")
    if found.place != meta.place:
        given = f"give --store {found.place}" if found.store else "leave --store out"
        raise ValueError(f"{path}: has its vectors in {found.place}, not in {meta.place}; {given}, or build into another folder")
    if not is_index_of(Documents(path, found), stream):
        raise ValueError(
            f"{path}: holds an index of another source; `qrag index sync SOURCE {path}` brings it up to date, and `index add` adds to it"
        )
    return found


def tidy(path: Path, meta: Meta) -> None:
    """Removes what a killed writer left after it had published the index."""
    for journal in (path / JOURNAL, *path.glob(JOURNALS)):
        journal.unlink(missing_ok=True)
    clean(path, meta.shards)
    if meta.store is not None:
        meta.store.begin(meta.checksum)
        meta.store.commit(meta.checksum, meta.held)


def begun_in(path: Path, ref: StoreRef | None) -> StoreRef | None:
    """The store of a build into ``path``: what an unfinished one has begun, else ``ref``. Raises ValueError when the unfinished build has
    its vectors elsewhere."""
    if (path / META).is_file() or not (path / JOURNAL).is_file():
        return ref
    try:
        begun = Meta.read(path / JOURNAL)
    except ValueError:  # a damaged journal, or one of another version: nothing of it is used
        return ref
    if begun.place != (FOLDER if ref is None else ref.place):
        how = f"with --store {begun.place}" if begun.store else "without --store"
        raise ValueError(f"{path}: the unfinished build there was begun {how}; resume it so, or build into another folder")
    return None if begun.store is None else begun.store.ref


def check_place(path: Path) -> None:
    """Raises ValueError if the folder holds something else than an index, finished or not."""
    if (path / META).is_file() or (path / JOURNAL).is_file():
        return
    if path.exists() and not (path.is_dir() and all(file.match(TEMPORARY) for file in path.iterdir())):
        raise ValueError(f"{path}: exists and is not an index; choose another folder")


def check_model(path: Path, index: str, retriever: str) -> None:
    if index != retriever:
        raise ValueError(
            f"{path}: was built with model {index[:12]}, but this retriever is model {retriever[:12]}; "
            "vectors of two models cannot be mixed: use the retriever it was built with, or build another index"
        )
