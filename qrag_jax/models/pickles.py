"""Reading torch's pickled files without running anything that is in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Before 2.6 weights_only could be made to run code (CVE-2025-32434), before 2.10 to write outside its memory (CVE-2026-24747).
OLDEST_TORCH = (2, 10)
# What was read of a mapped file counts as memory of this process until the file is closed: it is opened again after this share of it.
REOPEN, REOPEN_BYTES = 1 / 64, 2**22


def import_torch() -> Any:
    """The torch module. Raises ValueError when it is not installed or too old to load a pickle safely."""
    try:
        import torch
    except ImportError as error:
        raise ValueError("this needs PyTorch: pip install 'qrag-jax[torch]'") from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise ValueError(f"torch {torch.__version__} cannot load a pickle safely (CVE-2026-24747): install torch >= 2.10")
    return torch


class StoredTensor:
    """A tensor that is still in its file: ``np.asarray`` reads it, bfloat16 as float32, which holds every value of it."""

    def __init__(self, file: _TorchFile, keys: tuple[Any, ...], shape: tuple[int, ...]) -> None:
        self._file, self._keys, self.shape = file, keys, shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._file.read(self._keys)
        return array if dtype is None else array.astype(dtype, copy=False)


def open_tensors(path: Path) -> dict[str, Any]:
    """The dictionary in a torch file, nested ones included, its tensors as :class:`StoredTensor`: they are read when they are asked for.

    ``weights_only``: nothing in the file is executed. Raises ValueError naming the file when it is missing, truncated, not a torch file,
    or asks for anything but tensors and plain values.
    """
    torch, file = import_torch(), _TorchFile(path)

    def walk(node: Mapping[Any, Any], keys: tuple[Any, ...]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in node.items():
            if isinstance(value, dict):
                out[str(name)] = walk(value, (*keys, name))
            elif isinstance(value, torch.Tensor):
                out[str(name)] = StoredTensor(file, (*keys, name), tuple(value.shape))
            else:
                out[str(name)] = value
        return out

    return walk(file.tree(), ())


def load_tensors(path: Path) -> dict[str, Any]:
    """As :func:`open_tensors`, with every tensor read, as a NumPy array."""

    def read(node: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in node.items():
            out[name] = read(value) if isinstance(value, dict) else np.asarray(value) if isinstance(value, StoredTensor) else value
        return out

    return read(open_tensors(path))


class _TorchFile:
    """A torch file, mapped where its format allows that (every one that torch has written since 1.6)."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        self._path, self._mapped = path, zipfile.is_zipfile(path)
        self._tree: dict[Any, Any] | None = None
        self._read, self._most = 0, max(REOPEN_BYTES, round(path.stat().st_size * REOPEN))

    def tree(self) -> dict[Any, Any]:
        if self._tree is None:
            self._tree, self._read = self._open(), 0
        return self._tree

    def _open(self) -> dict[Any, Any]:
        path = self._path
        if self._mapped:
            _refuse_packed(path)
        try:
            tree = import_torch().load(path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except pickle.UnpicklingError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: refused by torch's safe loader (weights_only): nothing was executed: {reason}") from error
        except Exception as error:  # a malformed pickle can fail anywhere in torch's reader
            raise ValueError(f"{path}: not a readable torch file (truncated?): {(str(error) or repr(error)).splitlines()[0]}") from error
        if not isinstance(tree, dict):
            raise ValueError(f"{path}: holds a {type(tree).__name__}, expected a dictionary of tensors")
        return tree

    def read(self, keys: tuple[Any, ...]) -> np.ndarray:
        torch = import_torch()
        node: Any = self.tree()
        for key in keys:
            node = node[key]
        # A copy: the array must not change or vanish with the file.
        array: np.ndarray = node.detach().to(torch.float32 if node.dtype == torch.bfloat16 else node.dtype, copy=True).numpy()
        self._read += array.nbytes
        if self._mapped and self._read >= self._most:
            self._tree = None
        return array


def _refuse_packed(path: Path) -> None:
    """Raises ValueError on an archive with compressed or overlapping parts: a small file could fill the memory. torch writes none."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable torch file (truncated?): {error}") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError(f"{path}: not a file as torch writes it: its parts are compressed, or larger than the file")
