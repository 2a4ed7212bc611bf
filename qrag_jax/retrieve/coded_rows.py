"""The rows of an index, with their int8 codes where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from qrag_jax.retrieve.codes import Codes
from qrag_jax.retrieve.storage import Dtype, Shard, StoredRows


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
