"""``python -m experiments.speed`` at tiny sizes: whole, its figures fit together, and the alternatives compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.speed import encoders, naive, timing
from experiments.speed import measures as m
from experiments.speed.__main__ import main
from experiments.speed.encoders import flops_of
from experiments.speed.inputs import many_texts
from qrag_jax.data.text.haystack import load_haystack
from qrag_jax.models.bert import BertConfig
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.scan import scan
from qrag_jax.retrieve.types import PoolRows
from tests.support.index import CHUNKS, write_small_export
from tests.support.oracles import rl_python

SMALL_SIZES = ["--build-chunks", "200", "80", "--tokens", "4k", "1k", "--matmul", "32", "--repeats", "2"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without MiniLM's weights: where they cannot be found the rest is measured all the same."""
    folder = tmp_path_factory.mktemp("speed")

    def absent(name: str) -> None:
        raise ValueError(f"{name} cannot be fetched")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "load_pretrained", absent)
        assert main(["--run-dir", str(folder), "--compare-chunks", "12", "--minilm-chunks", "3", *SMALL_SIZES]) == 0
    return folder


@pytest.fixture(scope="module")
def report(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "speed.json").read_text())


def nulls(tree: Any, path: str = "") -> list[str]:
    if isinstance(tree, dict):
        return [found for name, value in tree.items() for found in nulls(value, f"{path}.{name}")]
    if isinstance(tree, list):
        return [found for i, value in enumerate(tree) for found in nulls(value, f"{path}.{i}")]
    return [path] if tree is None else []


@pytest.mark.slow
@pytest.mark.processes
def test_every_figure_was_measured_or_says_why(run_dir: Path, report: dict[str, Any]) -> None:
    assert sorted(path.name for path in run_dir.iterdir()) == ["speed.json", "speed.md", "speed.png"], "scratch is removed"
    assert report["schema"] == 1
    assert [row["chunks"] for row in report["build"]] == [80, 200]
    assert [(row["tokens"], row["chunks"]) for row in report["search"]] == [(1000, 50), (4000, 160)]
    assert [row["questions"] for row in report["batches"]] == [1, 8, 32]
    assert [row["dtype"] for row in report["storage"]] == ["float32", "bfloat16", "int8"]
    assert report["compare"][1]["reason"]
    assert (run_dir / "speed.md").read_text().count("- all-MiniLM-L6-v2: ") == 1
    allowed = {".reason", ".pytorch_reason", ".cpu", "torch", "transformers"}
    without = [f".compare.{i}" for i, row in enumerate(report["compare"]) if row["reason"]] + [".ratios.sentence"]
    without += [".memory", ".ratios.memory"] if report["memory"]["reason"] else []
    without += [".search", ".ratios.pytorch"] if report["search"][0]["pytorch_reason"] else []
    left = [path for path in nulls(report) if not path.endswith(tuple(allowed)) and not path.startswith(tuple(without))]
    assert left == []


@pytest.mark.slow
def test_ratios_are_of_medians(report: dict[str, Any]) -> None:
    longest, (small, large) = report["search"][-1], report["build"]
    assert report["ratios"]["numpy_over_step"] == longest["numpy"]["median_s"] / longest["step"]["median_s"]
    assert large["over_smallest"] == pytest.approx((large["median_s"] / 200) / (small["median_s"] / 80))
    peak = max(report["machine"]["matmul"][name]["gflops"] for name in ("jax", "numpy"))
    assert large["share_of_peak"] == pytest.approx(large["flops_per_chunk"] * 200 / large["median_s"] / 1e9 / peak)
    memory = report["memory"]
    if memory["reason"] is None:
        assert memory["peak_bytes"] > memory["before_bytes"] > 1e7
        assert memory["ratio"] * memory["index_bytes"] == pytest.approx(memory["search_bytes"])


@pytest.mark.slow
def test_same_vectors_and_close_storage(report: dict[str, Any]) -> None:
    for row in report["compare"]:
        assert row["reason"] or row["largest_difference"] < 1e-4, row
    exact, half, quarter = report["storage"]
    assert (exact["recall_at_10"], exact["q_error_max"]) == (1.0, 0.0)
    for row in (half, quarter):
        assert 0 < row["q_error_mean"] < row["q_error_max"] < row["q_std"], "rounded, but Q still tells chunks apart"
        assert row["recall_at_10"] > 0.5


@pytest.mark.slow
def test_the_page_says_the_ratios(run_dir: Path, report: dict[str, Any]) -> None:
    page = (run_dir / "speed.md").read_text()
    assert f"| search step / plain dot product | {report['ratios']['step_over_plain_dot']:.3g} |" in page
    assert "| 4k | 160 |" in page
    assert "None" not in page
    assert (run_dir / "speed.png").read_bytes().startswith(b"\x89PNG")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_naive_ways_compute_the_step(data: st.DataObject) -> None:
    length = data.draw(st.integers(4, 300))
    picked = data.draw(st.lists(st.integers(0, length - 1), unique=True, max_size=3))
    assert naive.positions(picked, length).tolist() == rl_python.positions(picked, length, 20, 18, True)
    draw = np.random.default_rng(length)
    rows = m.FirstRows(PoolRows(draw.standard_normal((400, 16)).astype(np.float32), np.arange(400, dtype=np.int32)), length)
    state = draw.standard_normal(16).astype(np.float32) / 4
    wanted = scan(rows, state[None], [picked], naive.INTEGER)[0]
    np.testing.assert_allclose(naive.numpy_step(rows, state, picked), wanted, atol=1e-5)
    np.testing.assert_allclose(naive.textbook_step(np.array(rows.block(0, length)), state, picked), wanted, atol=1e-5)
    if timing.missing_torch() is None:
        np.testing.assert_allclose(naive.torch_step(rows)(state, picked), wanted, atol=1e-5)
    np.testing.assert_allclose(naive.plain_dot(rows, state), rows.block(0, length) @ state, atol=1e-5)


def test_the_beginning_of_an_index_is_searched(tmp_path: Path) -> None:
    retriever = Retriever.from_pretrained(write_small_export(tmp_path / "export"))
    index = Index.build(retriever, CHUNKS, tmp_path / "index", shard_chunks=7)
    first = m.FirstChunks(index, 10)
    assert first.rows.parts() == [(0, 7), (7, 10)]
    found = retriever.search("Where is Mary?", first, 4)
    assert [(pick.chunk, pick.text) for pick in found] == [
        (pick.chunk, pick.text) for pick in retriever.search("Where is Mary?", list(CHUNKS[:10]), 4)
    ]


def test_alternatives_take_turns() -> None:
    seen: list[str] = []
    found = timing.alternate({name: (lambda name=name: seen.append(name)) for name in "ab"}, 3, prepare=lambda: seen.append("-"))
    assert "".join(seen) == "-a-b" * 4, "a round that does not count, then three"
    assert found["a"]["samples"] == 3
    assert timing.times([3.0, 1.0, 8.0]) == {"median_s": 3.0, "min_s": 1.0, "max_s": 8.0, "samples": 3}


def test_operations_by_hand() -> None:
    # Width 2, MLP 3, one layer. Matrices: 4 * 2^2 + 2 * 2 * 3 = 28, 2 operations a weight and token; attention 4 L^2 D.
    # L = 1: 56 + 8 = 64. L = 2: 112 + 32 = 144.
    config = BertConfig(10, 2, 1, 1, 3, 16)
    assert flops_of(config, np.array([1, 2])) == 64 + 144
    assert flops_of(object(), np.array([1])) is None


def test_a_haystack_that_runs_out_begins_again() -> None:
    sentences = load_haystack(None, "train", None).sentences
    texts, said = many_texts(None, len(sentences) + 2)
    assert said == {"source": "python documentation", "sentences": len(sentences), "passes": 2}
    assert texts[-2:] == [f"2 {sentences[0]}", f"2 {sentences[1]}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "repeats = 0: must be 1 or more"),
        (["--build-chunks", "ten"], "--build-chunks = ten: must be positive numbers"),
        (["--tokens", "10m", "--build-chunks", "10k"], "tokens 10m = 400000 chunks: must be in 10..10000"),
        (["--tokens", "100"], "tokens 100 = 4 chunks: must be in 10..400000"),
        (["--retriever", "absent", *SMALL_SIZES], "absent: no such folder or file"),
        (["--data-dir", "absent", *SMALL_SIZES], "no .txt files"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_bad_input_exits_64(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run-dir", str(tmp_path / "run"), *words]) == 64
    assert message in capsys.readouterr().err
