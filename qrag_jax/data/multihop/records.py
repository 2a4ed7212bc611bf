"""Files of questions over separate paragraphs: one strict reader of JSON and JSONL for all benchmarks.

A record that breaks its format raises an error with the file, the place and the reason. If the caller asks to skip bad records, they are
counted by reason, and the counts are returned.
"""

from __future__ import annotations

import gzip
import importlib
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qrag_jax.config.trees import parse_json

T = TypeVar("T")
EMPTY = "empty paragraph, left out"


class BadRecord(ValueError):
    """``reason``: the same for all records with the same fault; ``detail``: the fault of this record."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """A question and its paragraphs, as pairs (title, text). ``support``: ascending indices of the paragraphs that answer the question.
    ``aliases``: other correct answers. ``type``: the benchmark's own name for this kind of question. ``missing``: number of supporting
    paragraphs that are not among the paragraphs. ``path``: the supporting paragraphs in the order in which the question needs them; empty
    if the file does not say."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...]
    paragraphs: tuple[tuple[str, str], ...]
    support: tuple[int, ...]
    type: str
    missing: int = 0
    path: tuple[int, ...] = ()

    @property
    def hops(self) -> int:
        return len(self.support) + self.missing

    def chunks(self, after_title: str = ". ") -> tuple[str, ...]:
        """The paragraphs as chunks: title, ``after_title``, text."""
        return tuple(f"{title}{after_title}{text}" if title else text for title, text in self.paragraphs)


@dataclass
class ReadReport:
    """The result of reading a file: numbers of records ``kept``, of records ``skipped`` by reason, and of tolerated faults (``notes``)."""

    path: Path
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.kept} questions"]
        if self.skipped:
            parts.append(f"{self.skipped.total()} left out ({_counts(self.skipped)})")
        if self.notes:
            parts.append(f"noted: {_counts(self.notes)}")
        return f"{self.path}: {'; '.join(parts)}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())


SKIP = "leave out bad records with --skip-bad (in training: --data.skip-bad)"

Parse = Callable[[Any, Counter[str]], Record]
"""A JSON value -> its record. Raises BadRecord; counts tolerated faults."""


def read_file(path: str | Path, parse: Parse, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a file: one JSON list, one JSON object per line, or a .parquet file; text may be packed with gzip (.gz).

    What Hugging Face ``datasets`` write is read: ``to_parquet``, and ``to_json`` (lines, whatever the name of the file).
    Raises ValueError('file: record n: reason: detail'), n from 1, or 'file:line: ...' or 'file: row n: ...', on the first bad record
    (unless ``skip_bad``), and on a file that is missing, is none of these, or has no good record.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _collect(path, ((f"{path}: row {n}", row) for n, row in enumerate(_parquet(path), start=1)), parse, skip_bad)
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return _lines(path, text, parse, skip_bad)
    try:
        tree = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {str(error).removeprefix('not JSON: ')}") from error
    return _collect(path, ((f"{path}: record {n}", value) for n, value in enumerate(tree, start=1)), parse, skip_bad)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, perhaps with gzip. Raises ValueError, naming it, when it is missing, empty or not such a file."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    if not text.strip():
        raise ValueError(f"{path}: is empty")
    return text


def _parquet(path: Path) -> list[Any]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path}: reading it needs pyarrow: pip install pyarrow; or save the rows as .jsonl") from None
    try:
        return list(parquet.read_table(path).to_pylist())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from error


def _lines(path: Path, text: str, parse: Parse, skip_bad: bool) -> tuple[tuple[Record, ...], ReadReport]:
    # Not splitlines, which also splits at U+2028 and other characters that a JSON string may hold.
    pieces = ((f"{path}:{n}", line) for n, line in enumerate(text.rstrip(" \t\r\n").split("\n"), start=1))
    return _collect(path, pieces, lambda line, notes: parse(_loads(line), notes), skip_bad)


def _loads(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise BadRecord("malformed line", str(error)) from error


def _collect(path: Path, pieces: Iterable[tuple[str, Any]], parse: Parse, skip_bad: bool) -> tuple[tuple[Record, ...], ReadReport]:
    report = ReadReport(path)
    records: dict[str, Record] = {}
    for where, value in pieces:
        notes: Counter[str] = Counter()
        try:
            record = parse(value, notes)
            _check_unicode(record)
            if record.id in records:
                raise BadRecord("duplicate id", f"{record.id!r} is the id of an earlier record")
        except BadRecord as error:
            if not skip_bad:
                raise ValueError(f"{where}: {error}. Correct it, or {SKIP}") from error
            report.skipped[error.reason] += 1
        else:
            records[record.id] = record
            report.notes += notes
    report.kept = len(records)
    if not records:
        raise ValueError(f"{path}: no record is left; {_counts(report.skipped) or 'the list is empty'}")
    return tuple(records.values()), report


def _check_unicode(record: Record) -> None:
    texts = (record.id, record.question, record.answer, *record.aliases, *(part for pair in record.paragraphs for part in pair))
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRecord("lone surrogate", f"{text[error.start]!a} in {text[:60]!a} is no character") from None


# The parts of a record ----------------------------------------------------------------------------------------------------------

_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), "null")


def check(value: Any, kind: type[T], name: str) -> T:
    """``value``, checked to be of a type. Raises BadRecord, naming it; true and false are not numbers."""
    if type(value) is not kind:
        raise BadRecord(f"wrong type of {name}", f"must be {_NAMES[kind]}, not {_kind(value)} ({str(value)[:60]!r})")
    return value


def get(tree: Any, name: str, kind: type[T]) -> T:
    """A field of an object. Raises BadRecord if it is missing or has another type."""
    _check_there(tree, name)
    return check(tree[name], kind, name)


def _check_there(tree: Any, name: str) -> None:
    if name not in check(tree, dict, "record"):
        raise BadRecord(f"no {name}", f"the field {name!r} is missing; fields: {', '.join(tree) or 'none'}")


def get_text(tree: Any, name: str) -> str:
    """A field that holds non-empty text, without white space around it."""
    text = get(tree, name, str).strip()
    if not text:
        raise BadRecord(f"empty {name}", f"the field {name!r} has no text")
    return text


def make_record(
    tree: Any,
    id_name: str,
    kind: str,
    paragraphs: Iterable[tuple[str, str, bool]],
    notes: Counter[str],
    aliases: Iterable[str] = (),
    missing: int = 0,
    titles: bool = True,
    path: Iterable[int] = (),
) -> Record:
    """A record from an object with the fields ``id_name``, question and answer, and from paragraphs (title, text, supports).

    Paragraphs with the same title and text become one paragraph, which supports the answer if any of them does. One without text that
    supports nothing is left out. Raises BadRecord on another empty title or text, and without paragraphs or support. ``missing``: number
    of supporting paragraphs that are known to be elsewhere. ``titles``: whether every paragraph must have one. ``path``: the supporting
    paragraphs in the order in which the question needs them, if the file says so.
    """
    merged: dict[tuple[str, str], bool] = {}
    place: dict[int, int] = {}
    for number, (title, text, supports) in enumerate(paragraphs):
        if not text.strip() and not supports:
            notes[EMPTY] += 1
            continue
        if (titles and not title.strip()) or not text.strip():
            raise BadRecord("empty paragraph", f"paragraph {number} ({title!r}) has no {'title' if text.strip() else 'text'}")
        key = (title.strip(), text.strip())
        if key in merged:
            notes["paragraph repeated word for word, read once"] += 1
        merged[key] = supports or merged.get(key, False)
        place[number] = list(merged).index(key)
    if not merged:
        raise BadRecord("no paragraphs", "the document is empty")
    support = tuple(index for index, supports in enumerate(merged.values()) if supports)
    if not support and not missing:
        raise BadRecord("no support", "no paragraph supports the answer")
    return Record(
        id=get_text(tree, id_name),
        question=get_text(tree, "question"),
        answer=get_text(tree, "answer"),
        aliases=tuple(aliases),
        paragraphs=tuple(merged),
        support=support,
        type=kind,
        missing=missing,
        path=tuple(dict.fromkeys(place[number] for number in path)),
    )


def rows(tree: Any, name: str, *kinds: type) -> Iterator[list[Any]]:
    """A field that is a list of lists with these types, such as [title, sentences]. As in rows of Hugging Face ``datasets``, it may also be
    an object with the list of all titles and the list of all other parts, a list of objects with a title and another part, or the JSON
    text of any of these."""
    _check_there(tree, name)
    value = tree[name]
    if isinstance(value, str) and value.startswith(("[", "{")):
        value = _loads(value)
    if isinstance(value, dict):
        value = _transposed(value, name)
    for row in check(value, list, name):
        if isinstance(row, dict):
            row = _titled(row, name)
        if len(check(row, list, name)) != len(kinds):
            raise BadRecord(f"wrong type of {name}", f"its entries must have {len(kinds)} parts, not {len(row)} ({str(row)[:60]!r})")
        yield [check(part, kind, name) for part, kind in zip(row, kinds, strict=True)]


def objects(tree: Any, name: str) -> list[Any]:
    """A field that is a list of objects; or, as in rows of Hugging Face ``datasets``, an object with a list for each field."""
    if isinstance(tree, dict) and isinstance(columns := tree.get(name), dict):
        lists = [check(column, list, f"{name}.{field}") for field, column in columns.items()]
        _check_lengths(lists, name)
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    return get(tree, name, list)


def flagged(tree: Any) -> list[tuple[str, str, bool]]:
    """The field ``paragraphs`` in MuSiQue's form: objects with idx (from 0), title, paragraph_text and is_supporting."""
    found = []
    for number, paragraph in enumerate(objects(tree, "paragraphs")):
        if get(paragraph, "idx", int) != number:
            raise BadRecord("idx out of sequence", f"paragraph {number} has the idx {paragraph['idx']}")
        found.append((get(paragraph, "title", str), get(paragraph, "paragraph_text", str), get(paragraph, "is_supporting", bool)))
    return found


def aliases_of(tree: Any, notes: Counter[str]) -> list[str]:
    """The field ``answer_aliases`` without empty texts, which are counted as a note."""
    found = [check(alias, str, "answer_aliases").strip() for alias in get(tree, "answer_aliases", list)]
    notes["empty alias, not read"] += found.count("")
    return [alias for alias in found if alias]


def same_title(one: str, other: str) -> bool:
    """Whether two titles are equal; accents may be characters of their own or not."""
    return one == other or unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def _titled(fields: dict[str, Any], name: str) -> list[Any]:
    """[title, the other field] of an object."""
    _check_there(fields, "title")
    others = [value for field, value in fields.items() if field != "title"]
    if len(others) != 1:
        raise BadRecord(f"wrong type of {name}", f"must have a title and one more field, not {', '.join(fields)}")
    return [fields["title"], others[0]]


def _transposed(columns: dict[str, Any], name: str) -> list[list[Any]]:
    titles, other = (check(column, list, name) for column in _titled(columns, name))
    _check_lengths([titles, other], name)
    return [list(row) for row in zip(titles, other, strict=True)]


def _check_lengths(lists: list[list[Any]], name: str) -> None:
    if len({len(one) for one in lists}) > 1:
        raise BadRecord(
            f"wrong type of {name}", f"its lists have {', '.join(str(len(one)) for one in lists)} entries; they must be as long"
        )
