"""JSON, YAML and TOML from anyone: text -> a tree of bounded depth and size, or a ValueError of one line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

DEEPEST = 64
"""Objects and lists inside each other."""
LARGEST = 10**300
"""A whole number. Larger ones do not fit a float, so that math.isfinite and float raise OverflowError."""
SETTINGS_CHARACTERS, SETTINGS_NODES = 2**20, 100_000
"""The largest YAML or TOML file of settings: its characters, and its values with aliases written out."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, in one line, on anything else, on a value that is nested too deeply, and where an object
    has a key twice."""
    try:
        tree = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not JSON: {error.msg} at {line}character {error.colno}") from error
    except _Twice as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise ValueError(f"not JSON that can be read here: {str(error).split(';')[0]}") from error
    _check(tree)
    return tree


class _Twice(ValueError):
    """A key stands twice."""

    def __init__(self, key: Any) -> None:
        super().__init__(f"the key {key!r:.60} stands twice; keep one of them")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; numbers as in YAML 1.2. Raises ValueError, in one line, also where a mapping has a key twice."""
    import yaml

    return _settings(lambda: yaml.load(text, _loader()), text, "YAML")


def parse_toml(text: str) -> Any:
    """The value of a TOML text. Raises ValueError, in one line."""
    return _settings(lambda: tomllib.loads(text), text, "TOML")


def write_yaml(tree: Any) -> str:
    """A tree of JSON as YAML, in its own order; :func:`parse_yaml` gives the same tree again."""
    import yaml

    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=140)


def _settings(parse: Callable[[], Any], text: str, name: str) -> Any:
    if len(text) > SETTINGS_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters; settings have at most {SETTINGS_CHARACTERS:,}")
    try:
        tree = parse()
    except RecursionError:
        raise _too_deep() from None
    except Exception as error:  # PyYAML raises what Python's constructors raise: a date of month 99 is a ValueError, others are KeyErrors
        raise ValueError(f"not plain {name}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
    _check(tree, SETTINGS_NODES)
    return tree


def _check(tree: Any, nodes: int | None = None) -> None:
    """Raises ValueError when a tree is deeper than :data:`DEEPEST`, has more than ``nodes`` values (aliases counted), or a huge number."""
    level, count = [[tree]], 0
    for _ in range(DEEPEST + 1):
        count += sum(map(len, level))
        if nodes is not None and count > nodes:
            raise ValueError(f"has more than {nodes:,} values (aliases counted); settings are smaller")
        parts = [part for node in level for part in (node.values() if type(node) is dict else node) if type(part) in (dict, list, int)]
        if not all(type(part) is not int or -LARGEST <= part <= LARGEST for part in parts):
            raise ValueError(f"holds a whole number above {LARGEST:.0e}")
        level = [part for part in parts if type(part) is not int]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEEPEST} levels deep")


def _loader() -> type:
    """PyYAML's safe loader, which reads 1e-4 as a number, as YAML 1.2 does, and refuses a key that a mapping has twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                value = self.construct_object(key, deep=True)
                if repr(value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: {_Twice(value)}")
                seen.add(repr(value))
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789"))
    return Loader
