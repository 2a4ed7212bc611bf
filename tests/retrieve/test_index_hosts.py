"""Real processes, joined on loopback, search and build one index as one process does; tests/retrieve/test_team.py has more, in threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from tests.support.index import CHUNKS, content, write_files, write_small_export
from tests.support.index_hosts import SHARD, searches
from tests.support.processes import processes


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
@pytest.mark.parametrize("count", [2, 4])
def test_processes_search_and_build_as_one_does(count: int, tmp_path: Path) -> None:
    export, docs = write_small_export(tmp_path / "export"), write_files(tmp_path / "docs")
    (docs / "more.txt").write_text("\n\n".join(CHUNKS))
    retriever = Retriever.from_pretrained(export)
    index = Index.build(retriever, docs, tmp_path / "index", shard_chunks=SHARD, retriever_path=export)
    with processes(*[("-m", "tests.support.index_hosts", str(tmp_path))] * count) as started:
        outputs = [process.communicate(timeout=600)[0] for process in started]
    killed = [-9 if count == 2 and number == 1 else 0 for number in range(count)]
    assert [process.returncode for process in started] == killed, "\n".join(outputs)
    found: list[dict[str, Any]] = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(count)]

    wanted = searches(index, retriever, count)
    assert [one["searches"] for one in found] == [wanted] * count
    share = -(-len(index) // 4)  # four devices in all
    assert sum(one["rows"] for one in found) == len(index)
    assert max(one["rows"] for one in found) == 4 // count * share, "each host holds only its part"
    assert [one["build"]["code"] for one in found] == [0] * count
    assert [bool(one["build"]["said"]) for one in found] == [number == 0 for number in range(count)], "process 0 alone prints"
    plain = Index.build(retriever, docs, tmp_path / "plain", shard_chunks=SHARD, retriever_path=export)
    assert content(tmp_path / "built") == content(plain.path)
    if count == 2:
        assert [one["ask"]["code"] for one in found] == [0, 0]
        assert found[1]["ask"]["said"] == "", "process 0 alone prints"
        picks = [step["chunk"] for step in json.loads(found[0]["ask"]["said"].splitlines()[-1])["steps"]]
        assert sorted(picks) == [chunk for chunk, _ in wanted["multi"]]
        for one in found:
            assert one["another question"]["code"] == 64
            assert "error: question: differs between process 1 and process 0" in one["another question"]["said"]
        assert found[0]["killed"]["code"] == 75
        told = "killed: process 1 of 2 has given no sign of life for 5 s; nothing is lost: run the same command again to go on"
        assert told in found[0]["killed"]["said"]
        resumed = Index.build(retriever, docs, tmp_path / "killed", shard_chunks=SHARD, retriever_path=export)
        assert resumed.changes is not None
        assert 0 < resumed.changes.embedded < found_texts(index) - 2 * SHARD
        assert content(resumed.path) == content(plain.path)


def found_texts(index: Index) -> int:
    return len({index.chunk(i).text for i in range(len(index))})
