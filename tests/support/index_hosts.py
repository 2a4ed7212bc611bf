"""One of several processes that search and build an index: run ``python -m tests.support.index_hosts FOLDER`` in each of them.

FOLDER has a retriever in ``export``, documents in ``docs`` and an index of them in ``index``. One start plays all scenes, because a start
costs more than a scene; two processes play more than others. Each writes what it found into FOLDER/NUMBER.json.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qrag_jax.__main__ import main
from qrag_jax.retrieve import team
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rundir import hosts
from qrag_jax.rundir.ending import execute
from tests.support.compiling import install

QUESTION = "Where is the milk?"
SHARD = 4


def captured(run: Callable[[], int]) -> dict[str, Any]:
    """The exit code and the output of ``run``."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run()
    return {"code": code, "said": said.getvalue()}


def searches(index: Index, retriever: Retriever, count: int) -> dict[str, Any]:
    """The picks of several searches, with their Q; of one search if more than two processes search."""
    asked: dict[str, dict[str, Any]] = {
        "multi": {"budget": 3},
        "beam and filter": {"budget": 2, "beam": 2, "filter": ["source=*.txt"]},
        "hybrid": {"budget": 3, "mode": "hybrid"},
    }
    names = list(asked)[: 3 if count == 2 else 1]
    found = {name: retriever.search(QUESTION, index, **asked[name]) for name in names}
    return {name: [[pick.chunk, round(pick.q, 4)] for pick in picks] for name, picks in found.items()}


def rows_held(index: Index, retriever: Retriever) -> int:
    """The rows of an index on the devices of this process."""
    placed = retriever._scorers._on_devices(index, retriever.devices)
    parts = [part for block in placed.blocks() for part in block.addressable_shards]
    return int(sum(np.asarray(part.data).any(axis=1).sum() for part in parts))


def build_and_die(folder: Path, retriever: Retriever, place: hosts.Place) -> Index:
    """A build in which process 1 is killed after its first shard."""
    embed, calls = retriever.embed_chunks, iter(range(1))

    def embed_or_die(texts: Sequence[str], **options: Any) -> np.ndarray:
        if place.number == 1 and next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(texts, **options)

    retriever.embed_chunks = embed_or_die  # type: ignore[method-assign]
    return Index.build(retriever, folder / "docs", folder / "killed", place=place)


def play(folder: Path) -> None:
    install()
    hosts.start()
    place = hosts.Place(jax.process_index(), jax.process_count(), "the killed build")
    index, retriever = Index.open(folder / "index"), Retriever.from_pretrained(folder / "export")
    retriever.devices = jax.devices()
    found: dict[str, Any] = {"searches": searches(index, retriever, place.count), "rows": rows_held(index, retriever)}
    qrag = lambda *words: captured(lambda: main(words))
    if place.count == 2:
        found["ask"] = qrag("ask", str(folder / "index"), QUESTION, "--json", "--budget", "3")
        found["another question"] = qrag("ask", str(folder / "index"), f"{QUESTION} {place.number}")
    # Few documents make several shards, and signs of life come soon.
    Index.build = partial(Index.build, shard_chunks=SHARD)  # type: ignore[method-assign]
    team.BEAT = 0.1
    found["build"] = qrag("index", "build", str(folder / "docs"), str(folder / "built"), "--retriever", str(folder / "export"))
    (folder / f"{place.number}.json").write_text(json.dumps(found))
    if place.count == 2:
        team.LOST = 5
        found["killed"] = captured(lambda: execute(lambda: build_and_die(folder, retriever, place) and None))
        (folder / f"{place.number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    play(Path(sys.argv[1]))
