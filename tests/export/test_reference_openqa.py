"""An open-domain checkpoint of the reference code (XLM-R on HotpotQA, no positions, states in pick order) gives the same values here.

The shared data folder lies beside the repository; without it these tests are skipped. golden.json was recorded on CPU, with the encoders in
eval mode: four episodes of HotpotQA with two picks, four of MuSiQue with four.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.config import DataConfig
from qrag_jax.data.multihop import hotpotqa, musique
from qrag_jax.export.from_reference import import_reference
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.rollout import state_rows
from qrag_jax.train.batches import make_batch
from qrag_jax.types import QAExample

pytest.importorskip("torch")
SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"
FOLDER = SHARED / "reference_openqa"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared data folder (reference_openqa/) is not beside the repository")


@pytest.fixture(scope="module")
def episodes() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "golden.json").read_text())["episodes"]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return Retriever.from_pretrained(import_reference(FOLDER / "model_best.pt", tmp_path_factory.mktemp("imported") / "export"))


def example(episode: dict[str, Any]) -> QAExample:
    return QAExample(episode["id"], episode["question"], tuple(episode["chunks"]), episode["answer"], tuple(episode["support"]))


def test_what_the_configuration_says(retriever: Retriever) -> None:
    data = retriever.config.data
    assert (data.benchmark, data.task, retriever.config.train.steps) == ("hotpotqa", "all", 100), "as evaluate asks for them"
    assert (data.state_order, data.chunk_text, data.chunk_tokens) == ("picked", "reference", 48)
    # algo.pqn.hyperparams says 20 tokens, the top-level key 48; inside a state a chunk is cut with its opening token, which then goes.
    assert (data.question_tokens, data.state_chunk_tokens, data.state_tokens) == (20, 19, 512)


def test_picks_and_values_of_every_episode(retriever: Retriever, episodes: list[dict[str, Any]]) -> None:
    for episode in episodes:
        [found] = retriever.run([example(episode)], episode["budget"])
        actions = [step["greedy_action"] for step in episode["steps"]]
        assert list(found.picked) == actions
        np.testing.assert_allclose(found.q, [step["q"][i] for step, i in zip(episode["steps"], actions, strict=True)], atol=1e-5)


def test_embeddings_and_every_value(retriever: Retriever, episodes: list[dict[str, Any]]) -> None:
    for episode in episodes:
        vectors = retriever.embed_chunks(episode["chunks"])
        np.testing.assert_allclose(vectors, episode["chunk_embeddings"], atol=1e-5)
        picks: list[str] = []
        for step in episode["steps"]:
            [state] = retriever.embed_states([episode["question"]], [picks], episode["budget"])
            np.testing.assert_allclose(state, step["state_embedding"], atol=1e-5)
            half = len(state) // 2
            np.testing.assert_allclose(vectors @ state, step["q"], atol=1e-5)
            np.testing.assert_allclose(vectors[:, :half] @ state[:half], step["q1"], atol=1e-5)
            picks.append(episode["chunks"][step["greedy_action"]])


@pytest.mark.parametrize("budget", [2, 4])
def test_token_ids_of_every_state_in_training(retriever: Retriever, episodes: list[dict[str, Any]], budget: int) -> None:
    """The rollout writes the states that the recorded episodes had."""
    chosen = [episode for episode in episodes if episode["budget"] == budget]
    data = DataConfig(**{**vars(retriever.config.data), "chunks": 20})
    batch = jax.tree.map(jnp.asarray, make_batch([example(episode) for episode in chosen], 0, retriever.tokenizer, data))
    layout = StateLayout.make(data, budget, retriever.tokenizer)
    taken = np.array([[step["greedy_action"] for step in episode["steps"]] for episode in chosen], np.int32)
    for t in range(budget):
        rows = np.asarray(state_rows(batch, jnp.asarray(np.where(np.arange(budget) < t, taken, 20)), layout))
        for row, episode in zip(rows, chosen, strict=True):
            assert row[row >= 0].tolist() == episode["steps"][t]["state_ids"]


def test_the_readers_write_the_same_chunks(retriever: Retriever, episodes: list[dict[str, Any]]) -> None:
    """For the recorded questions that are in the shared files, the tokens are the same, though spaces may differ."""
    config = retriever.config.data
    files = ((hotpotqa, "hotpotqa", ("train", "validation", "test")), (musique, "musique", ("train", "validation", "test")))
    known: dict[str, tuple[str, ...]] = {}
    for module, name, splits in files:
        for split in splits:
            found = module.load(DataConfig(benchmark=name, task="all", data_dir=str(SHARED), chunk_text=config.chunk_text), split, seed=0)
            known |= {record.id: record.chunks(found.after_title) for record in found.records}
    compared = [episode for episode in episodes if episode["id"] in known]
    assert compared
    for episode in compared:
        both = (known[episode["id"]], episode["chunks"])
        ours, theirs = (sorted(row.tolist() for row in retriever.tokenizer.rows(texts, 512)) for texts in both)
        assert ours == theirs
