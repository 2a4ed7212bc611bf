"""Search text in several steps, and answer from what is found.

Example: qrag index build docs docs.index --encoder minilm
         qrag ask docs.index "Where is the milk?"
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from qrag_jax.config.command_line import DONE, RARE, as_typed, flags, read_command, refuse_urls
from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.export.commands import Exchange, Import, Push, ToTorch, run_exchange
from qrag_jax.retrieve.asking import RECORDED, Ask, run_ask
from qrag_jax.retrieve.encoders import CHUNK_TOKENS, recorded_name
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import Positions
from qrag_jax.retrieve.report import coverage, index_lines, index_tree
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.storage import Dtype
from qrag_jax.rundir import hosts
from qrag_jax.rundir.compilations import prepare_compiling
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import say as say_line
from qrag_jax.serve.command import Serve, run_serve

EXAMPLE = "runs/babilong-qa2-tiny"


@dataclass(frozen=True)
class Build:
    """Cut text into chunks, embed them and write an index.

    If the build is stopped, run the same command again to resume it.

    Example: qrag index build book.txt book.index --retriever runs/babilong-qa2-tiny
    """

    source: tyro.conf.Positional[Path]
    """File, or folder of files at any depth: text, Markdown, HTML, PDF, Word (.docx), EPUB, CSV, JSON."""
    index: tyro.conf.Positional[Path]
    """Folder to write."""
    retriever: Annotated[str | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(this or --encoder)")] = None
    """A trained retriever: run directory, export folder, released checkpoint, gs://BUCKET/NAME, or OWNER/NAME[@REVISION] on the hub."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(instead of --retriever)")] = None
    """A pretrained encoder without training: minilm, a folder of sentence-transformers, or OWNER/NAME on the hub."""
    dtype: Annotated[Dtype, RARE, tyro.conf.arg(metavar="DTYPE")] = "float32"
    """How vectors are stored. float32: exact. bfloat16: half the bytes. int8: a quarter of the bytes.
    int8-exact: float32 and int8. As exact as float32, but a search step on the CPU takes a third of the time and of the memory."""
    chunk_by: Annotated[
        ChunkBy | None, RARE, tyro.conf.arg(metavar="HOW", help_behavior_hint="(default: as the retriever was trained)")
    ] = None
    """How text is cut into chunks.
    sentence: whole sentences. The end of a long one is not embedded; one line says how much.
    parts: long sentences are broken, so that every token is embedded.
    tokens: sentences are packed up to what the retriever embeds at once; long ones are broken."""
    chunk_tokens: Annotated[int | None, RARE, tyro.conf.arg(metavar="N", help_behavior_hint=f"(default: {CHUNK_TOKENS})")] = None
    """With --encoder: the longest chunk, in tokens."""
    store: Annotated[str | None, tyro.conf.arg(metavar="STORE", help_behavior_hint="(default: the folder)")] = None
    """Vector database for the vectors: postgresql://HOST/DATABASE, lancedb:FOLDER, qdrant:FOLDER, qdrant:http://HOST:6333, duckdb:FILE."""
    positions: Annotated[Positions, RARE, tyro.conf.arg(metavar="WHERE")] = "index"
    """Where the positions of chunks restart. index: nowhere; they run through the whole index. document: with each document, so that
    chunks of a document have the positions that they would have if it were searched alone."""


@dataclass(frozen=True)
class Add:
    """Add documents to an index.

    If the command is stopped, the old index is unchanged; run it again to resume.

    Example: qrag index add more.txt book.index
    """

    source: tyro.conf.Positional[Path]
    """File, or folder of files at any depth: text, Markdown, HTML, PDF, Word (.docx), EPUB, CSV, JSON."""
    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    replace: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace documents of the same name whose text or metadata have changed."""
    retriever: Annotated[str | None, tyro.conf.arg(metavar="RUN", help_behavior_hint=RECORDED)] = None
    """The retriever that the index was built with; needed only if it has moved."""


@dataclass(frozen=True)
class Sync:
    """Bring an index up to date with a folder.

    Adds new files, replaces changed ones, and removes what is gone.

    If the command is stopped, the old index is unchanged; run it again to resume.

    Example: qrag index sync docs docs.index
    """

    source: tyro.conf.Positional[Path]
    """Folder of files at any depth (text, Markdown, HTML, PDF, Word, EPUB, CSV, JSON), or one file."""
    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    retriever: Annotated[str | None, tyro.conf.arg(metavar="RUN", help_behavior_hint=RECORDED)] = None
    """The retriever that the index was built with; needed only if it has moved."""


@dataclass(frozen=True)
class Remove:
    """Remove documents from an index.

    Example: qrag index remove docs.index reports/2023.md
    """

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(required)")] = ()
    """Names of the documents, as `qrag index info` lists them."""


@dataclass(frozen=True)
class Info:
    """Show what an index contains.

    Example: qrag index info book.index --verify
    """

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    verify: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read every file and compare checksums."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print everything as one JSON object: all documents, and every file that was not read, with the reason."""


Command = Build | Add | Sync | Remove | Info | Ask | Serve | Exchange
COMMANDS = {"index build": Build, "index add": Add, "index sync": Sync, "index remove": Remove, "index info": Info, "ask": Ask}
COMMANDS |= {"serve": Serve, "import": Import, "export": ToTorch, "push": Push}


def main(args: Sequence[str] | None = None, say: Callable[[str], None] = say_line) -> int:
    """Runs a command and returns its exit code.

    0   done
    1   export only: PyTorch and JAX differ (the files stay)
    64  bad input; one line on stderr says what
    """
    words = sys.argv[1:] if args is None else args

    def run() -> int:
        _refuse_three_places(words)
        command: Command = read_command(COMMANDS, words, "qrag", __doc__ or "")
        refuse_urls(command)
        if not isinstance(command, Info):  # which uses no device
            prepare_compiling()
        return _run(command, say)

    return execute(run, partial(as_typed, flags=dict(chain.from_iterable(flags(kind).items() for kind in COMMANDS.values()))))


def _refuse_three_places(words: Sequence[str]) -> None:
    """Raises ValueError, with the right command, when the retriever was given as a third argument instead of an option."""
    if tuple(words[:2]) not in (("index", "build"), ("index", "add"), ("index", "sync")):
        return
    places: list[str] = []
    options: list[str] = []
    takes_value = False
    for word in words[2:]:
        is_option = word.startswith("-")
        (options if is_option or takes_value else places).append(word)
        takes_value = is_option and "=" not in word and word != "--replace"  # every other option of these commands has a value
    if len(places) != 3 or any(word.partition("=")[0] in ("--retriever", "--encoder") for word in options):
        return
    retriever = next(filter(_is_retriever, places), places[0])
    rest = [place for place in places if place is not retriever]
    meant = [*words[:2], *rest, *(["--retriever", retriever] if words[1] == "build" else []), *options]
    raise ValueError(f"qrag index {words[1]}: takes two arguments, SOURCE and INDEX; did you mean `qrag {shlex.join(meant)}`?")


def _is_retriever(place: str) -> bool:
    return any((Path(place) / name).exists() for name in ("qrag.json", "export", "checkpoints"))


def _run(command: Command, say: Callable[[str], None]) -> int:
    if isinstance(command, Build | Add | Sync | Ask):
        hosts.start()
    elif isinstance(command, Remove | Serve):
        hosts.alone("qrag serve" if isinstance(command, Serve) else "qrag index remove")
    if isinstance(command, ToTorch):
        _export_unfinished(command.run, say)
    if isinstance(command, Exchange):
        return run_exchange(command, say)
    if isinstance(command, Ask):
        run_ask(command, say)
    elif isinstance(command, Serve):
        run_serve(command, say)
    elif isinstance(command, Info):
        index = Index.open(command.index, verify=command.verify)
        for line in [json.dumps(index_tree(index), ensure_ascii=False)] if command.json else index_lines(index, command.verify):
            say(line)
    elif isinstance(command, Build):
        _build(command, say)
    else:
        _change(command, say)
    return DONE


def _change(command: Add | Sync | Remove, say: Callable[[str], None]) -> None:
    if isinstance(command, Remove):
        index = Index.open(command.index)
        if not command.names:
            raise ValueError(f"NAME is missing: give the names of the documents to remove; `qrag index info {command.index}` lists them")
        index = index.remove(command.names)
    else:
        index, retriever = hosts.run_on_all(lambda: _opened_index(command))
        place = hosts.leave()
        if isinstance(command, Add):
            index = index.add(retriever, command.source, replace=command.replace, place=place)
        else:
            index = index.sync(retriever, command.source, place=place)
    say(f"{index.path}: {len(index):,} chunks; {index.changes}")
    say(coverage(index))


def _opened_index(command: Add | Sync) -> tuple[Index, Retriever]:
    index = Index.open(command.index)
    return index, Retriever.of_index(index, command.retriever)


def _export_unfinished(run: str, say: Callable[[str], None]) -> None:
    """Exports the best checkpoint so far of a run directory that has no export yet, because the run has not ended."""
    folder = Path(run)
    if (folder / "checkpoints").is_dir() and not (folder / "export" / "qrag.json").is_file():
        from qrag_jax.train.training import export_best

        say(f"{export_best(folder)}: written from the best checkpoint so far; the run has not ended")


def _build(command: Build, say: Callable[[str], None]) -> None:
    retriever, home = hosts.run_on_all(lambda: _opened(command))
    index = Index.build(
        retriever,
        command.source,
        command.index,
        dtype=command.dtype,
        chunk_by=command.chunk_by,
        positions=command.positions,
        retriever_path=home,
        store=command.store,
        place=hosts.leave(),
    )
    say(f'{index.path}: {len(index):,} chunks; ask it: qrag ask {shlex.quote(str(index.path))} "question"')
    say(coverage(index))


def _opened(command: Build) -> tuple[Retriever, str]:
    """The retriever or the plain encoder of a build, and how its place is recorded."""
    if (command.retriever is None) == (command.encoder is None):
        given = "--retriever is missing" if command.retriever is None else "--retriever and --encoder: give one of them"
        example = shlex.join(["qrag", "index", "build", str(command.source), str(command.index)])
        raise ValueError(
            f"{given}: give the run directory or the export folder of a trained retriever, as in: {example} --retriever {EXAMPLE}; "
            f"or an encoder, which needs no training, as in: {example} --encoder minilm"
        )
    if command.encoder is not None:
        tokens = CHUNK_TOKENS if command.chunk_tokens is None else command.chunk_tokens
        return Retriever.from_encoder(command.encoder, chunk_tokens=tokens), recorded_name(command.encoder)
    assert command.retriever is not None
    if command.chunk_tokens is not None:
        raise ValueError(f"chunk_tokens = {command.chunk_tokens}: is for --encoder; a trained retriever reads what it was trained with")
    return Retriever.from_pretrained(command.retriever), command.retriever


if __name__ == "__main__":
    raise SystemExit(main())
