"""Shards of an index on disk: vectors, their texts, and where each text begins.

    vectors-00000.bin   [n, D] row after row: float32 (also with int8-exact), bfloat16 or int8
    scales-00000.bin    [n] float32, with int8 and int8-exact only: a row is, or is near, its integers times its scale
    codes-00000.bin     [n, D] int8, with int8-exact only: the integers of each row (:mod:`qrag_jax.retrieve.codes`)
    errors-00000.bin    [n] float32, with int8-exact only: how far the row is from its integers times its scale
    texts-00000.jsonl   {"text", "start", "end", "source"}, one line per chunk
    offsets-00000.bin   [n + 1] int64: chunk i is the bytes from offset i to offset i + 1 of the texts
    keys-00000.bin      [n, 2] uint64: a hash of the text of each chunk; equal texts have equal keys (not in shards before version 3)

The vectors of an index with a store (:mod:`qrag_jax.retrieve.stores`) are float32 and lie there; the folder has their size and SHA-256.

Numbers are little-endian. Everything in the folder is memory-mapped read-only, so only the requested parts are read. A file that is mapped
can still be read after it was removed from the folder (on systems where it can be removed at all).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int, Int8, Num, UInt8, UInt64

from qrag_jax.config.parse import decode
from qrag_jax.config.trees import parse_json
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.codes import Codes
from qrag_jax.retrieve.stores.held import HeldShard, HeldVectors
from qrag_jax.rundir.files import write_bytes

Dtype = Literal["float32", "bfloat16", "int8", "int8-exact"]
RAW: dict[Dtype, np.dtype] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "int8-exact": np.dtype("<f4"),
}
MORE: dict[Dtype, tuple[str, ...]] = {"int8": ("scales",), "int8-exact": ("codes", "scales", "errors")}
"""The files of a shard that only some dtypes have."""
TEMPORARY = ".*.tmp"
"""Pattern of the files that a killed writer leaves behind."""
WORDS = "words.npz"
"""The file in which an index keeps the words of its texts (:mod:`qrag_jax.retrieve.words`)."""


@dataclass(frozen=True)
class StoredFile:
    """``name`` in the folder of the index, its size, and the hex SHA-256 of its content."""

    name: str
    bytes: int
    sha256: str


def write_file(path: Path, data: bytes | np.ndarray) -> StoredFile:
    """Writes a file of an index, completely or not at all."""
    data = data if isinstance(data, bytes) else data.tobytes()
    write_bytes(path, data)
    return StoredFile(path.name, len(data), hashlib.sha256(data).hexdigest())


def pack(vectors: Float[np.ndarray, "R D"], dtype: Dtype) -> tuple[Num[np.ndarray, "R D"], Float[np.ndarray, " R"] | None]:
    """Rows in their stored form, and their scales if the dtype has scales.

    bfloat16 rounds to the nearest (relative error at most 2**-8); int8 to the nearest of 255 steps up to the row's largest magnitude
    (error at most half a scale, the largest magnitude / 127). int8-exact keeps float32 rows; a shard adds their codes.
    """
    if RAW[dtype] == RAW["float32"]:
        return vectors.astype(RAW[dtype], copy=False), None
    if dtype == "bfloat16":
        return vectors.astype(ml_dtypes.bfloat16).view(RAW[dtype]), None
    scales = (np.abs(vectors).max(axis=1) / 127).astype("<f4")
    steps = vectors / np.where(scales > 0, scales, 1)[:, None]
    return np.rint(steps).clip(-127, 127).astype(RAW[dtype]), scales


def unpack(raw: Num[np.ndarray, "R D"], scales: Float[np.ndarray, " R"] | None, dtype: Dtype) -> Float[np.ndarray, "R D"]:
    """The inverse of :func:`pack`: float32 rows. For float32 it returns the same array, else a new one."""
    if dtype == "bfloat16":
        wide = raw.astype(np.uint32)  # a bfloat16 is the upper half of a float32
        wide <<= 16
        return wide.view(np.float32)
    return raw if scales is None else raw * scales[:, None]


def record(chunk: Chunk) -> bytes:
    """The line of a chunk in the file of texts."""
    line = {"text": chunk.text, "start": chunk.start, "end": chunk.end, "source": chunk.source}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def text_key(text: str) -> bytes:
    """16 bytes that are equal for equal texts, and differ for others."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Shard:
    """Consecutive chunks of an index: ``files`` by kind (vectors, scales, texts, offsets, keys), mapped by :meth:`map` or when read.
    ``store``: where the vectors are, if they are not in the folder."""

    def __init__(
        self, folder: Path, chunks: int, width: int, dtype: Dtype, files: dict[str, StoredFile], store: HeldVectors | None = None
    ) -> None:
        self.folder, self.chunks, self.width, self.dtype, self.files, self.store = folder, chunks, width, dtype, files, store

    @classmethod
    def write(
        cls,
        folder: Path,
        number: int,
        lines: Sequence[bytes],
        keys: Sequence[bytes],
        raw: Num[np.ndarray, "R D"],
        scales: Float[np.ndarray, " R"] | None,
        dtype: Dtype,
        store: HeldVectors | None = None,
    ) -> Shard:
        """Writes a shard, with its vectors to ``store`` if there is one. :func:`record` makes ``lines``, :func:`text_key` ``keys``;
        :func:`pack` makes ``raw`` and ``scales``."""
        content: dict[str, bytes | np.ndarray] = {} if store else {"vectors": raw}
        if scales is not None:
            content["scales"] = scales
        elif dtype == "int8-exact":
            coded = Codes.of(raw)
            content |= {"codes": coded.codes, "scales": coded.scales, "errors": coded.errors}
        content |= {"texts": b"".join(lines), "offsets": np.cumsum([0, *map(len, lines)], dtype="<i8"), "keys": b"".join(keys)}
        files = {kind: write_file(folder / _name(kind, number), data) for kind, data in content.items()}
        if store is not None:
            files["vectors"] = StoredFile(_name("vectors", number), raw.nbytes, store.put(number, raw).sha256)
        return cls(folder, len(lines), raw.shape[1], dtype, files, store)

    @classmethod
    def from_tree(cls, folder: Path, tree: Any, place: int, width: int, dtype: Dtype, store: HeldVectors | None = None) -> Shard:
        """The inverse of :meth:`tree`, of shard ``place``. Raises ValueError on wrong fields, on names and sizes that contradict
        each other, and, naming the file and both sizes, when a file is missing or has another size than when it was written."""
        kinds = {"vectors", "texts", "offsets", *MORE.get(dtype, ())}
        allowed = isinstance(tree, dict) and set(tree) - {"keys"} == {"chunks", *kinds}
        if not allowed or type(tree["chunks"]) is not int or tree["chunks"] < 1:
            raise ValueError(f"shards[{place}]: must be an object with a whole number of chunks and the files {', '.join(sorted(kinds))}")
        try:
            files = {kind: decode(StoredFile, tree[kind], f"shards[{place}].{kind}") for kind in tree if kind != "chunks"}
        except TypeError as error:
            raise ValueError(f"shards[{place}]: {error}") from error
        n, number = tree["chunks"], shard_number(files["vectors"].name)
        sizes = {"vectors": n * width * RAW[dtype].itemsize, "codes": n * width, "scales": 4 * n, "errors": 4 * n}
        sizes |= {"offsets": 8 * (n + 1), "keys": 16 * n}
        for kind, file in files.items():
            if number is None or file.name != _name(kind, number) or sizes.get(kind, file.bytes) != file.bytes:
                raise ValueError(f"shards[{place}].{kind}: {file.name} of {file.bytes} bytes does not hold {n} chunks of width {width}")
            path = folder / file.name
            if kind == "vectors" and store is not None:
                continue
            if not path.is_file():
                raise ValueError(f"{path}: no such file; the index is incomplete: build it again in another folder")
            if (size := path.stat().st_size) != file.bytes:
                raise ValueError(
                    f"{path}: has {size} bytes, was written with {file.bytes}; the index is damaged: build it again in another folder"
                )
        return cls(folder, n, width, dtype, files, store)

    def tree(self) -> dict[str, Any]:
        return {"chunks": self.chunks} | {kind: dataclasses.asdict(file) for kind, file in self.files.items()}

    @property
    def number(self) -> int:
        """The number in the names of its files."""
        number = shard_number(self.files["vectors"].name)
        assert number is not None
        return number

    @property
    def held(self) -> HeldShard | None:
        """Its vectors as the store knows them; None: they are in the folder."""
        return None if self.store is None else HeldShard(self.number, self.chunks, self.files["vectors"].sha256)

    def map(self) -> None:
        """Maps all files, so that the shard can be read until the end of this process, even if another process removes the files."""
        for kind in self.files:
            if kind != "vectors" or self.store is None:
                getattr(self, kind)

    def verify(self) -> None:
        """Raises ValueError, naming the file, when a checksum differs."""
        self.verify_files()
        if self.store is not None and self.held is not None:
            self.store.verify(self.held)

    def verify_files(self) -> None:
        """:meth:`verify` of what is in the folder."""
        for kind, file in self.files.items():
            if kind == "vectors" and self.store is not None:
                continue
            path = self.folder / file.name
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != file.sha256:
                raise ValueError(
                    f"{path}: SHA-256 {found[:12]}..., was written with {file.sha256[:12]}...; it is damaged: "
                    "build the index again in another folder"
                )
        if not (self.offsets[0] == 0 and self.offsets[-1] == len(self.texts) and (np.diff(self.offsets) > 0).all()):
            raise self._damaged("offsets", "do not ascend from 0 to the end of the texts")

    @property
    def vectors(self) -> Num[np.ndarray, "R D"]:
        if self.store is not None and self.held is not None:
            return self.store.whole(self.held)
        return self._vectors

    @cached_property
    def _vectors(self) -> Num[np.ndarray, "R D"]:
        return np.frombuffer(self._pages, RAW[self.dtype]).reshape(self.chunks, self.width)

    @cached_property
    def _pages(self) -> mmap.mmap:
        with (self.folder / self.files["vectors"].name).open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def release(self) -> None:
        """Gives the memory of the vectors that were read back to the system, where it can be asked to; they can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def scales(self) -> Float[np.ndarray, " R"] | None:
        return self._map("scales", "<f4") if "scales" in self.files else None

    @cached_property
    def codes(self) -> Int8[np.ndarray, "R D"]:
        return self._map("codes", "i1").reshape(self.chunks, self.width)

    @cached_property
    def errors(self) -> Float[np.ndarray, " R"]:
        return self._map("errors", "<f4")

    @cached_property
    def texts(self) -> UInt8[np.ndarray, " bytes"]:
        return self._map("texts", "u1")

    @cached_property
    def offsets(self) -> Int[np.ndarray, " edges"]:
        return self._map("offsets", "<i8")

    @cached_property
    def keys(self) -> UInt64[np.ndarray, "R 2"]:
        if "keys" in self.files:
            return self._map("keys", "<u8").reshape(self.chunks, 2)
        made = b"".join(text_key(self.chunk(i).text) for i in range(self.chunks))
        return np.frombuffer(made, "<u8").reshape(self.chunks, 2)

    def line(self, i: int) -> bytes:
        """The line of chunk ``i``, as :func:`record` made it."""
        start, end = map(int, self.offsets[i : i + 2])
        if not 0 <= start < end <= len(self.texts):
            raise self._damaged("offsets", f"chunk {i} is said to be bytes {start} to {end} of {len(self.texts)}")
        return self.texts[start:end].tobytes()

    def _map(self, kind: str, dtype: Any) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / self.files[kind].name, dtype, mode="r"))

    def block(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        """Rows ``start`` to ``end`` of this shard, float32."""
        if self.store is not None and self.held is not None:
            return self.store.read(self.held, start, end)
        scales = self.scales[start:end] if self.dtype == "int8" and self.scales is not None else None
        return unpack(self.vectors[start:end], scales, self.dtype)

    def chunk(self, i: int) -> Chunk:
        """Raises ValueError, naming the file, when the offsets or the line are not those of a chunk."""
        line = self.line(i)
        try:
            return decode(Chunk, parse_json(line))
        except (ValueError, TypeError) as error:
            raise self._damaged("texts", f"chunk {i}: {error}") from error

    def _damaged(self, kind: str, reason: str) -> ValueError:
        return ValueError(f"{self.folder / self.files[kind].name}: {reason}; it is damaged: build the index again in another folder")


def check_dtype(value: str) -> None:
    if value not in RAW:
        raise ValueError(f"dtype = {value!r}: must be one of {', '.join(get_args(Dtype))}")


KINDS = ("vectors", "scales", "codes", "errors", "texts", "offsets", "keys")
_FILE = re.compile(rf"({'|'.join(KINDS)})-(\d{{5,9}})\.(bin|jsonl)")


def shard_number(name: str) -> int | None:
    """The number of the shard that a file belongs to; None: it is no file of a shard."""
    found = _FILE.fullmatch(name)
    return int(found[2]) if found and name == _name(found[1], int(found[2])) else None


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.{'jsonl' if kind == 'texts' else 'bin'}"
