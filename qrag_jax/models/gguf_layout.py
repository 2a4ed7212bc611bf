"""Checks the layout of a GGUF file before the gguf package reads it, which loops over whatever counts the file claims.

Layout (version 2 and 3, little-endian): magic, version, number of tensors, number of fields; the fields, each a name, a type and a value;
for each tensor a name, its dimensions, type and offset; padding; the tensors.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_TENSORS, MOST_FIELDS, MOST_DIMENSIONS, LONGEST_NAME = 2**16, 2**12, 4, 2**10
MOST_ELEMENTS = 2**24  # of an array of the metadata; the largest is the vocabulary
LONGEST_TEXT = 2**24
STRING, ARRAY = 8, 9
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes; strings and arrays have no fixed size."""


def check_layout(path: Path) -> None:
    """Raises ValueError, naming the file, when a count, a length or a type is impossible or leads out of the file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Walk(content).file()
    except (OSError, ValueError, struct.error) as error:  # mmap refuses an empty file with a ValueError
        reason = "ends too early" if isinstance(error, struct.error) else str(error)
        raise ValueError(f"{path}: not a readable GGUF file (truncated?): {reason}") from error


class _Walk:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 0

    def file(self) -> None:
        if self._content[:4] != MAGIC:
            raise ValueError("does not begin with GGUF")
        self._at = 4
        version = self._number("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}; versions {' and '.join(map(str, VERSIONS))} are read")
        tensors, fields = self._count("tensors", MOST_TENSORS), self._count("metadata fields", MOST_FIELDS)
        for _ in range(fields):
            self._skip(self._count("characters in a name", LONGEST_NAME))
            self._value(self._number("<I"))
        for _ in range(tensors):
            self._skip(self._count("characters in a name", LONGEST_NAME))
            if (dimensions := self._number("<I")) > MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions; at most {MOST_DIMENSIONS}")
            size = 1
            for _ in range(dimensions):
                size *= self._number("<Q")
            self._number("<I")
            offset = self._number("<Q")
            # The smallest type has more than one bit for each number.
            if offset > len(self._content) or size > 8 * len(self._content):
                raise ValueError(f"a tensor of {size:,} numbers at byte {offset:,} lies outside the file")

    def _value(self, kind: int) -> None:
        if kind == STRING:
            self._skip(self._count("characters in a text", LONGEST_TEXT))
        elif kind == ARRAY:
            inner, count = self._number("<I"), self._count("elements in an array", MOST_ELEMENTS)
            if inner in BYTES:
                self._skip(count * BYTES[inner])
            elif inner == STRING:
                for _ in range(count):
                    self._skip(self._count("characters in a text", LONGEST_TEXT))
            else:
                raise ValueError(f"an array of type {inner} in the metadata")
        elif kind in BYTES:
            self._skip(BYTES[kind])
        else:
            raise ValueError(f"a metadata value of type {kind}")

    def _count(self, what: str, most: int) -> int:
        count = self._number("<Q")
        if count > most:
            raise ValueError(f"claims {count:,} {what}; at most {most:,}")
        return count

    def _number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._content):
            raise ValueError("ends too early")
