"""Command lines: words to a dataclass, errors in one line, and exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from qrag_jax.config.parse import unknown

T = TypeVar("T")
DONE, DIFFERS = 0, 1
HELP, HELP_ALL = ("-h", "--help"), "--help-all"
RARE = "rare"
"""Note on the field of an option that only --help-all shows."""
WIDE = "10000"  # columns: no name in an error message is broken over two lines
COLOUR = re.compile(r"\x1b\[[\d;]*m")
MOST_LISTED = 15
"""A command with more options than these does not list them in a message."""
SHOW_NAMES = tyro.conf.PositionalMetavarFromFieldName
NEGATION = re.compile(r"--((?:.*\.)?)no-")  # of an option without a value
RULE = "-\u2500\u256d\u256e\u2570\u256f"  # lines and corners of a box


def read(
    kind: type[T],
    words: Sequence[str] | None,
    prog: str,
    description: str | None = None,
    default: T | None = None,
    short: Mapping[str, str] | None = None,
) -> T:
    """Parses a command line into the dataclass ``kind``.

    Args:
        kind: has a field for each option; fields that are marked as positional are arguments without a name.
        words: the command line; None: the one of this process.
        prog: the name of the command, for messages and help.
        description: the text at the top of the help; None: the docstring of ``kind``.
        default: values of the options that are not given.
        short: short name -> option, for messages; the caller has already replaced them in ``words``.

    Raises ValueError, with a message of one line, on anything that it cannot parse, and when an option is given twice that does not add up.
    ``--help`` prints the help and raises SystemExit(0).
    """
    words = sys.argv[1:] if words is None else words
    rare = any(RARE in getattr(hint, "__metadata__", ()) for _, hint in _fields(kind))
    if rare and set(words) & set(HELP) and HELP_ALL not in words:
        kind = _without_rare(kind)
        description = f"{inspect.getdoc(kind.__mro__[1])}\n\nAll options: {prog} {HELP_ALL}" if description is None else description
    words = [HELP[1] if word == HELP_ALL else word for word in words]
    if not set(words) & set(HELP):
        _refuse_unknown(kind, words, prog, short or {})
        _refuse_repetition(kind, words, prog)
    options: dict[str, Any] = {} if default is None else {"default": default}
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown), _without_colours() if set(words) & set(HELP) else _wide():
            return tyro.cli(kind, args=words, prog=prog, description=description, config=(SHOW_NAMES,), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(plainly(in_one_line(shown.getvalue()), prog, short or {})) from None


def _without_rare(kind: type[T]) -> type[T]:
    """The command ``kind``, for a help that leaves out what is marked :data:`RARE`."""
    hints = get_type_hints(kind, include_extras=True)
    hidden = {name: Annotated[hint, tyro.conf.Suppress] for name, hint in hints.items() if RARE in getattr(hint, "__metadata__", ())}
    values = {one.name: one.default for one in dataclasses.fields(kind) if one.name in hidden}  # type: ignore[arg-type]
    return dataclasses.dataclass(frozen=True)(type(kind.__name__, (kind,), {"__annotations__": hidden, "__doc__": kind.__doc__, **values}))


def in_one_line(box: str) -> str:
    """The text of tyro's error box in one line: no frame and no title, semicolons between its parts."""
    parts: list[list[str]] = [[]]
    for line in COLOUR.sub("", box).splitlines():
        text = line.strip(" \u2502")
        if text.startswith("\u256d") or not text.strip(RULE):
            parts.append([])
        else:
            parts[-1] += text.split()
    return "; ".join(" ".join(part).rstrip(".") for part in parts[1:] if part)


def plainly(message: str, prog: str, short: Mapping[str, str] | None = None) -> str:
    """A message of tyro, in one line, as this project says it: the option, its value, what is allowed. ``short``: as for :func:`read`."""
    names = {option: name for name, option in reversed(list((short or {}).items()))}
    at: Callable[[str], str] = lambda option: names.get(option, option) if option.startswith("--") else option.upper()
    if found := re.match(r"Unrecognized options: (.*?); ", message):
        return f"{prog}: {found[1]!r} belongs to no option; see {prog} {HELP[1]}"
    if found := re.match(r"Missing value for argument '(.*?)'", message):
        return f"{at(found[1])}: needs a value; see {prog} {HELP[1]}"
    if found := re.match(r"Error parsing (\S+): (.*?): '(.*?)'; Argument helptext", message):
        kind = "a whole number" if "int()" in found[2] else "a number" if "to float" in found[2] else found[2]
        return f"{at(found[1])} = {found[3]!r}: must be {kind}"
    if found := re.match(r"Error parsing \S+: (\S+ = .*); For full helptext", message):  # what a dataclass itself refuses
        return found[1]
    if found := re.match(r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of \((.*?)\)", message):
        return str(unknown(at(found[2]), found[1], re.findall(r"'(.*?)'", found[3])))
    if found := re.match(r"Missing from .*?: (.*)\(required\)", message):
        wanted = [part.split()[0] for part in found[1].split("(required)")]
        return f"{prog}: needs {' and '.join(names.get(one, one) for one in wanted)}; see {prog} {HELP[1]}"
    return message


@contextlib.contextmanager
def _without_colours() -> Iterator[None]:
    """Takes the colours out of a help if NO_COLOR asks for it."""
    if not os.environ.get("NO_COLOR"):
        yield
        return
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            yield
    finally:
        sys.stdout.write(COLOUR.sub("", shown.getvalue()))


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def read_command(commands: Mapping[str, type], words: Sequence[str], prog: str, description: str) -> Any:
    """Parses the command line of one of several commands, such as "ask" or "index build", into the dataclass of that command.

    Raises ValueError, with a message of one line, on anything that it cannot parse. For an unknown command or option, the message lists
    the known ones and suggests the most similar. An option that holds one value is refused when it is given twice. ``--help`` prints the
    help and raises SystemExit(0).
    """
    known = list(dict.fromkeys(name.split()[0] for name in commands))
    if not words:
        raise ValueError(f"{prog}: give a command: {', '.join(known)}; `{prog} --help` says what each does")
    name, *rest = words
    if name in (*HELP, HELP_ALL):
        sys.stdout.write(_overview(commands, prog, description))
        raise SystemExit(DONE)
    _check_known("command", name, known, prog)
    prog = f"{prog} {name}"
    if name not in commands:
        inner = {full.partition(" ")[2]: kind for full, kind in commands.items() if full.split()[0] == name}
        return read_command(inner, rest, prog, description)
    return read(commands[name], rest, prog)


def _overview(commands: Mapping[str, type], prog: str, description: str) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"usage: {prog} COMMAND ...", "", description.strip(), "", "commands:"]
    for name, kind in commands.items():
        about = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
        lines += textwrap.wrap(about, 79, initial_indent=f"  {name:{width}}", subsequent_indent=" " * (width + 2))
    return "\n".join([*lines, "", f"For the options and an example of each: {prog} COMMAND --help", ""])


def _check_known(what: str, name: str, known: Sequence[str], prog: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{prog} {name}: no such {what}; known: {', '.join(known) or 'none'}{guess}")


def _refuse_unknown(kind: type, words: Sequence[str], prog: str, short: Mapping[str, str]) -> None:
    """Raises ValueError on the first unknown option, with the most similar known one. A field's own name suggests its option, too:
    "--log-every" stands for "--train.log-every"."""
    options = [_flag(name) for name, _ in _fields(kind)]
    negations = [re.sub(r"--((?:.*\.)?)", r"--\1no-", option) for option in options]
    known = [*dict.fromkeys((*short, *options))]
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if not re.match(r"--\w", word) or name in (*options, *negations, *short):
            continue
        own = {f"--{option.rpartition('.')[2]}": option for option in options if "." in option}
        near = difflib.get_close_matches(name, known, 1) or [own[one] for one in difflib.get_close_matches(name, own, 1)]
        listed = f"known: {', '.join(options) or 'none'}" if len(options) <= MOST_LISTED else f"{prog} {HELP_ALL} lists all"
        raise ValueError(f"{prog} {name}: no such option; {listed}{f'; did you mean {near[0]}?' if near else ''}")


def _refuse_repetition(kind: type, words: Sequence[str], prog: str) -> None:
    """Raises ValueError when an option is given more than once, unless its field has ``UseAppendAction``: tyro would use the last."""
    given = Counter(NEGATION.sub(r"--\1", word.partition("=")[0].replace("_", "-")) for word in words if word.startswith("--"))
    for name, hint in _fields(kind):
        option = _flag(name)
        if given[option] > 1 and tyro.conf.UseAppendAction not in getattr(hint, "__metadata__", ()):
            several = any(get_origin(part) is tuple for part in (hint, *get_args(hint)))
            raise ValueError(f"{prog} {option}: is given {given[option]} times; give it once" + ", with all its values" * several)


def _fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a command: the names of their fields, such as "data.skip_bad", or those that stand in place of these
    (``tyro.conf.arg(name=...)``), and the fields' types."""
    for field, hint in get_type_hints(kind, include_extras=True).items():
        notes = getattr(hint, "__metadata__", ())
        inner = get_args(hint)[0] if notes else hint
        name = next((note.name for note in notes if getattr(note, "name", None) is not None), field)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _fields(inner, f"{prefix}{name}." if name else prefix)
        elif tyro.conf.Positional not in notes:
            yield prefix + name, hint


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags(kind: type, short: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a user types for each field of a command: "data.skip_bad" -> "--data.skip-bad". ``short``: other names of options; they
    are preferred, also where a command has only the short name."""
    found = {name: _flag(name) for name, _ in _fields(kind)}
    known = set(found.values())
    for name, option in reversed(list((short or {}).items())):
        if option in known or name in known:
            found[option.removeprefix("--").replace("-", "_")] = name
    return found


def as_typed(message: str, flags: Mapping[str, str]) -> str:
    """A message with options as the user types them in place of the names of fields: "data.skip_bad" -> "--data.skip-bad".

    After the name of a file of settings, the names are those of the file. A name that is a plain word is replaced only at the start, before
    its value.
    """

    def typed(found: re.Match[str]) -> str:
        of_file = re.search(r"\.(json|ya?ml|toml): ", message[: found.start()])
        return found[0] if of_file else flags[found[0]]

    plain = [name for name in flags if name.isalnum()]
    if first := re.match(rf"(error: )?({'|'.join(plain)})(?= = |: | \d)", message):
        return (first[1] or "") + flags[first[2]] + as_typed(message[first.end() :], flags)
    if others := sorted(flags.keys() - set(plain), key=len, reverse=True):
        names = "|".join(map(re.escape, others))
        return re.sub(rf"(?<![\w./'\"-])({names})(?![\w/'\"]|[.-]\w)", typed, message)
    return message


def refuse_urls(command: object, advice: str = "") -> None:
    """Raises ValueError, naming the option, when a field of a command that must be a path is a URL. ``advice`` ends the message."""
    for name, value in vars(command).items():
        if isinstance(value, Path) and re.fullmatch(r"[a-z]\w+:", value.parts[0] if value.parts else ""):
            raise ValueError(f"{name} = {value}: must be a place on this machine{advice}")
