"""Reading torch's pickled files without running anything that is in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

# Before 2.6 weights_only could be made to run code (CVE-2025-32434).
OLDEST_TORCH = (2, 6)


def import_torch() -> Any:
    """The torch module. Raises ValueError when it is not installed or too old to load a pickle safely."""
    try:
        import torch
    except ImportError as error:
        raise ValueError("this needs PyTorch: pip install qrag-jax[torch]") from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise ValueError(f"torch {torch.__version__} cannot load a pickle safely (CVE-2025-32434): install torch >= 2.6")
    return torch


def load_tensors(path: Path) -> dict[str, Any]:
    """The dictionary in a torch file, nested ones included, its tensors as NumPy arrays. ``weights_only``: nothing in the file is executed.

    Raises ValueError naming the file when it is missing, truncated, not a torch file, or asks for anything but tensors and plain values.
    """
    torch = import_torch()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: refused by torch's safe loader (weights_only): nothing was executed: {reason}") from error
    except Exception as error:  # a malformed pickle can fail anywhere in torch's reader
        raise ValueError(f"{path}: not a readable torch file (truncated?): {(str(error) or repr(error)).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds a {type(tree).__name__}, expected a dictionary of tensors")
    return _to_numpy(torch, tree)


def _to_numpy(torch: Any, tree: dict[Any, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out[str(name)] = _to_numpy(torch, value)
        elif isinstance(value, torch.Tensor):
            # NumPy has no bfloat16; float32 holds every value of it.
            out[str(name)] = np.asarray((value.float() if value.dtype == torch.bfloat16 else value).detach().cpu())
        else:
            out[str(name)] = value
    return out
