"""Strict conversion of JSON trees to the frozen dataclasses that wrote them, and the errors that these raise about their values."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from qrag_jax.config.secrets import holds_credentials, redact

T = TypeVar("T")
_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)  # slower than all the rest; an index decodes one object for each document
_arguments: Callable[[Any], tuple[Any, ...]] = cache(get_args)
LARGEST = 2**31 - 1
"""The largest whole number of a setting: what one dimension of an array holds everywhere."""
WITHOUT = "it would be written to files. Give the address without it, and a reader's key in the environment variable OPENAI_API_KEY"
LONGEST_QUOTE = 200  # characters of a value that a message quotes


def decode(cls: type[T], tree: Any, path: str = "") -> T:
    """A JSON tree -> the dataclass ``cls``. Raises ValueError, naming the field, on unknown names and wrong types."""
    if not isinstance(tree, dict):
        raise ValueError(f"{path or 'configuration'}: must be an object with the fields of {cls.__name__}")
    hints = _hints(cls)
    if strangers := sorted(set(tree) - set(hints)):
        raise ValueError(f"{path or 'configuration'}: unknown field {strangers[0]!r}; known: {_known(strangers[0], hints)}")
    values = {}
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        values[name] = decode(hints[name], value, where) if dataclasses.is_dataclass(hints[name]) else _leaf(hints[name], value, where)
    return cls(**values)


def _leaf(hint: Any, value: Any, where: str) -> Any:
    options = _arguments(hint) if type(None) in _arguments(hint) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif options_of := _arguments(option):
            if option is tuple[str, ...] or options_of[-1] is Ellipsis:
                if isinstance(value, list) and all(isinstance(item, str) for item in value):
                    return tuple(value)
            elif value in options_of:
                return value
        elif option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif type(value) is option:
            return value
    raise ValueError(f"{where} = {_quoted(value)}: must be of type {hint}")


def require(ok: bool, name: str, value: Any, allowed: str) -> None:
    """Raises ValueError, naming the field, its value and what is allowed, unless ``ok``."""
    if not ok:
        raise ValueError(f"{name} = {_quoted(value)}: must be {allowed}")


def check_values(section: Any, path: str) -> None:
    """Raises ValueError, naming the field, on a number that is not finite or absurdly large, and on a text with a password or a key."""
    for one in dataclasses.fields(section):
        value = getattr(section, one.name)
        name = f"{path}.{one.name}"
        if isinstance(value, float):
            require(math.isfinite(value), name, value, "a finite number")
        elif isinstance(value, int):
            require(-LARGEST <= value <= LARGEST, name, value, f"a whole number of at most {LARGEST:,}")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and holds_credentials(text):
                raise ValueError(f"{name} = {_quoted(text)}: holds a password or a key; {WITHOUT}")


def unknown(name: str, value: str, known: Iterable[str], kind: str = "") -> ValueError:
    """The error for an unknown value. Its message lists the ``known`` values and suggests the most similar. ``kind`` says what they are,
    such as " task of ruler"."""
    return ValueError(f"{name} = {_quoted(value)}: unknown{kind}; known: {_known(value, known)}")


def _quoted(value: Any) -> str:
    text = redact(repr(value))
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def _known(value: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(value, known, 1, 0.7)
    return ", ".join(known) + (f"; did you mean {close[0]!r}?" if close else "")
