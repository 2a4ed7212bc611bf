"""Files and folders that are either whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qrag_jax.config.trees import parse_json

# A full disk, a full quota, a file above the largest size allowed, a broken disk, a disk that became read-only.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path to write to; at the end of the block the file is renamed to ``path``. So a reader never sees half a file.

    A failure leaves ``path`` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # a disk that became read-only, or a folder that was removed meanwhile
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or error.filename == str(temporary)):
            error.filename = str(path)
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Gives a new temporary folder to fill; at the end of the block it is renamed to ``path``, replacing what was there.

    A failure leaves ``path`` as it was. Only one process at a time may write the folder. Its files may be read by whom the umask allows.
    """
    path = Path(path)
    new, old = new_folder(path), path.with_name(f".{path.name}.old.tmp")
    if old.exists() and not path.exists():
        old.rename(path)  # a process was killed between the two renames below
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                file.chmod(new.stat().st_mode & 0o666)  # safetensors makes files that only their owner may read
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def new_folder(path: Path) -> Path:
    """Where :func:`whole_folder` makes the folder ``path``."""
    return path.with_name(f".{path.name}.new.tmp")


def check_folder(folder: Path) -> None:
    """Raises ValueError, before any work, if ``folder`` is a file or lies below one, or if this process may not write there."""
    here = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not here.is_dir():
        raise ValueError(f"{here}: is a file, not a folder; choose another --run-dir")
    if not os.access(here, os.W_OK | os.X_OK):
        raise ValueError(f"{here}: cannot be written to; choose another --run-dir")


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Writes a file completely or not at all, and makes its folder. See :func:`whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """As :func:`write_bytes`, in UTF-8."""
    return write_bytes(path, text.encode())


def markdown_text(value: object) -> str:
    """A value as plain text in a Markdown table or sentence: one line, in which neither HTML nor Markdown has an effect."""
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("<", "&lt;")
    return re.sub(r"([`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", text)  # an underscore inside a word has no effect


def is_name(value: object) -> bool:
    """Whether a value is a name that is safe as a part of a file name: no separator, not hidden, not a folder's way out."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.+:=-]{0,99}", value) is not None


def is_unfinished(path: Path) -> bool:
    """Whether a file or folder is a temporary one of :func:`whole_file` or :func:`whole_folder`, perhaps left by a process that died."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def disk_error(error: BaseException) -> str | None:
    """The system's message, such as "No space left on device", if ``error`` means that a file could not be written; otherwise None."""
    # Tensorstore, which writes checkpoints, and libraries in Rust, such as safetensors, give the number in the text of their own errors.
    told = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1] or told[2]) if told else None
    return os.strerror(number) if number in DISK_ERRORS else None


def write_json(path: str | Path, value: Any) -> Path:
    """As :func:`write_text`. NaN is refused (ValueError): a figure that was not measured is null."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Raises ValueError, naming the file, when it is missing, cannot be read, or is not JSON of a sane depth."""
    path = Path(path)
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        if disk_error(error) is not None:
            raise
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {str(error).removeprefix('not JSON: ')}") from error
