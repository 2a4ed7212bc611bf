"""The vectors of an index as rows across its shards: read in blocks, with int8 codes where it has them, and merged into new shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
from jaxtyping import Float, Int, Num

from qrag_jax.retrieve.codes import Codes
from qrag_jax.retrieve.storage import RAW, Dtype, Shard, pack

CONVERTED = 2048  # rows converted to float32 at once


class StoredRows:
    """The vectors of an index in blocks, across its shards: a :class:`~qrag_jax.retrieve.types.Rows`."""

    def __init__(self, shards: Sequence[Shard], width: int) -> None:
        self.shards = tuple(shards)
        self.ends = tuple(accumulate(shard.chunks for shard in shards))
        self._width = width

    @property
    def width(self) -> int:
        return self._width

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def parts(self) -> list[tuple[int, int]]:
        """Ranges that are best read at once: whole shards of float32, which are views; of other dtypes, as many rows as a cache holds."""
        found = []
        for shard, end in zip(self.shards, self.ends, strict=True):
            size = shard.chunks if RAW[shard.dtype] == RAW["float32"] else CONVERTED
            begin = end - shard.chunks
            found += [(start, min(start + size, end)) for start in range(begin, end, size)]
        return found

    def place(self, i: int) -> tuple[Shard, int]:
        """The shard that holds row ``i``, and its row there."""
        number = bisect_right(self.ends, i)
        return self.shards[number], i - (self.ends[number] - self.shards[number].chunks)

    def block(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        """Rows ``start`` to ``end``, float32; a view of the file if they are stored as float32 in one shard.

        Raises ValueError when the range is outside the rows.
        """
        if not 0 <= start <= end <= len(self):
            raise ValueError(f"rows {start} to {end}: must lie in 0..{len(self)}")
        blocks = list(self._blocks(start, end))
        if len(blocks) == 1:
            return blocks[0]
        return np.concatenate(blocks) if blocks else np.empty((0, self.width), np.float32)

    def _blocks(self, start: int, end: int) -> Iterator[Float[np.ndarray, "R D"]]:
        while start < end:
            shard, first = self.place(start)
            last = min(shard.chunks, first + end - start)
            yield shard.block(first, last)
            start += last - first


class CodedRows(StoredRows):
    """The rows of an index of dtype int8-exact, which has their codes, too."""

    def codes(self, start: int, end: int) -> Codes:
        """The codes of rows ``start`` to ``end``, which are in one shard."""
        shard, first = self.place(start)
        part = slice(first, first + end - start)
        assert shard.scales is not None
        return Codes(shard.codes[part], shard.scales[part], shard.errors[part])

    @cached_property
    def bounds(self) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """The scales and the errors of all codes."""
        coded = [self.codes(end - shard.chunks, end) for shard, end in zip(self.shards, self.ends, strict=True)]
        return np.concatenate([one.scales for one in coded]), np.concatenate([one.errors for one in coded])

    def take(self, rows: Int[np.ndarray, " C"]) -> Float[np.ndarray, "C D"]:
        """Some rows, float32. No other row is read or kept in memory."""
        out = np.empty((len(rows), self.width), np.float32)
        places = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(places):
            shard, mine = self.shards[number], places == number
            out[mine] = shard.vectors[rows[mine] - (self.ends[number] - shard.chunks)]
            shard.release()  # the system maps many rows around each that is read
        return out


def stored_rows(shards: Sequence[Shard], width: int, dtype: Dtype) -> StoredRows:
    return CodedRows(shards, width) if dtype == "int8-exact" else StoredRows(shards, width)


def merge(
    rows: StoredRows, old: Mapping[int, int], fresh: Float[np.ndarray, "F D"], new: Mapping[int, int], count: int, dtype: Dtype
) -> tuple[Num[np.ndarray, "R D"], Float[np.ndarray, " R"] | None]:
    """``count`` rows in their stored form: row i is row ``new[i]`` of ``fresh``, else a copy of the stored row ``old[i]``."""
    packed, scales = pack(fresh, dtype)
    out = np.empty((count, rows.width), RAW[dtype])
    out_scales = None if dtype != "int8" else np.empty(count, "<f4")
    out[list(new)] = packed[list(new.values())]
    if out_scales is not None and scales is not None:
        out_scales[list(new)] = scales[list(new.values())]
    for i, row in sorted(old.items(), key=lambda item: item[1]):  # shard by shard: of those in a store, one is kept in memory
        shard, place = rows.place(row)
        out[i] = shard.vectors[place]
        if out_scales is not None and shard.scales is not None:
            out_scales[i] = shard.scales[place]
    return out, out_scales
