"""JSON, YAML and TOML of anyone end in a tree or in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.sweep.spec import read_spec
from qrag_jax.config import RunConfig, presets
from qrag_jax.config.trees import DEEPEST, parse_json, parse_toml, parse_yaml
from qrag_jax.data.multihop.records import read_file
from qrag_jax.export.hydra import HydraConfig
from qrag_jax.reader.cache import ResponseCache
from qrag_jax.rundir.files import read_json
from qrag_jax.rundir.log import RunLog

LISTS, OBJECTS = "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize("deep", [LISTS, OBJECTS, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)], ids=["lists", "objects", "one too many"])
def test_json_is_nested_up_to_a_limit(deep: str) -> None:
    with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels deep"):
        parse_json(deep)


def test_what_is_within_the_limits_is_read() -> None:
    tree: object = 1
    for _ in range(DEEPEST):
        tree = {"a": tree}
    assert parse_json(json.dumps(tree)) == tree
    assert parse_yaml("a: {b: [1e-4, 0x10, x]}\nc: &c [1]\nd: *c\n") == {"a": {"b": [1e-4, 16, "x"]}, "c": [1], "d": [1]}
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\n") == {"a": {"x": 1}, "b": {"x": 2}}
    assert parse_toml("a = [1, 2]") == {"a": [1, 2]}


@pytest.mark.parametrize(
    "text", ["", "{", "[1,]", "9" * 5000, "nul", '"\\x"', b"\xff", b'{"a": "\xff"}', "\x00"], ids=lambda text: repr(text[:9])
)
def test_what_is_not_json(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^not JSON") as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[1, {"x": {"b": 0, "a": {}, "a": []}}]'], ids=["outside", "inside"])
def test_a_key_that_stands_twice_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the key 'a' stands twice; keep one of them$"):
        parse_json(text)
    (tmp_path / "questions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"questions.jsonl:.*the key 'a' stands twice"):
        read_file(tmp_path / "questions.jsonl", lambda value, notes: value)


@pytest.mark.parametrize("text", ["1" + "0" * 400, '{"step": [1, -1%s]}' % ("0" * 400)], ids=["alone", "inside"])
def test_no_number_is_too_large_for_a_float(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        with pytest.raises(ValueError, match=r"^holds a whole number above 1e\+300$"):
            parse(text)
    assert parse_json(str(10**300)) == 10**300


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{c}: &{c} [{','.join(['*' + p] * 9)}]" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 20_000, "nested more than"),
        ("a: &a [*a]", "nested more than"),
        (BOMB, "more than 100,000 values"),
        ("#" * 2**21, "settings have at most"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("{x: {a: 1, a: 1}}", "stands twice"),
        ("a: 2020-99-99", "not plain YAML: month"),
        ("!!python/object/apply:os.system ['x']", "not plain YAML: could not determine a constructor"),
        ("? [a, b]\n: 1\n? {c: d}\n: 2", "not plain YAML"),
        ("a: \x07", "not plain YAML"),
        ("a: b: c", "not plain YAML"),
    ],
    ids=range(11),
)
def test_what_is_not_a_yaml_of_settings(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["a = " + "[" * 5000 + "]" * 5000, "a = ", "a = 1\na = 2", "a." * 5000 + "b = 1"], ids=range(4))
def test_what_is_not_a_toml_of_settings(text: str) -> None:
    with pytest.raises(ValueError, match=r"TOML|nested") as caught:
        parse_toml(text)
    assert "\n" not in str(caught.value)


READERS: dict[str, Callable[[Path], object]] = {
    "file.json": read_json,
    "config.json": lambda path: RunConfig.from_json(path.read_text()),
    "preset.json": lambda path: presets.read(str(path)),
    "questions.json": lambda path: read_file(path, lambda value, notes: value),
    "questions.jsonl": lambda path: read_file(path, lambda value, notes: value),
    "metrics.jsonl": lambda path: (path.write_text(2 * path.read_text()), RunLog(path.parent).read()),  # a damaged last line is dropped
    "sweep.yaml": read_spec,
    "sweep.toml": read_spec,
    "config.yaml": HydraConfig,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("deep", [LISTS, OBJECTS], ids=["lists", "objects"])
def test_every_reader_refuses_deep_nesting_in_one_line(name: str, deep: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(("a = " if name.endswith("toml") else "") + deep[: 2 * 10**4 if name[-4:] in ("yaml", "toml") else None] + "\n")
    with pytest.raises(ValueError, match=r"nested|not plain") as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)


def test_a_deep_line_of_a_cache_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "responses.jsonl").write_text(LISTS + "\n")
    assert len(ResponseCache(tmp_path)) == 0
    assert "skipped incomplete line 1" in capsys.readouterr().out
