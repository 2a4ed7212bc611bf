"""A checkpoint written by the reference code gives the values here that it gives in that code, at 1e-4.

The shared data folder lies beside the repository; without it these tests are skipped. Its golden.json was recorded on CPU, with the
encoders in eval mode.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.config import QHeadConfig, RLConfig
from qrag_jax.export.folder import read_export
from qrag_jax.export.from_reference import ReferenceCheckpoint, import_reference, read_reference
from qrag_jax.export.hydra import HydraConfig
from qrag_jax.export.to_torch import to_torch
from qrag_jax.models.embedder import make_embedder
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.policy import greedy
from qrag_jax.rl.positions import relative_positions
from qrag_jax.rl.returns import reference_lambda_returns, soft_value
from qrag_jax.rl.rollout import scores, state_rows
from qrag_jax.train.batches import make_batch
from qrag_jax.types import QAExample, TaskBatch

torch = pytest.importorskip("torch")
FOLDER = Path(__file__).resolve().parents[2].parent / "shared/data/reference"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared data folder (reference/) is not beside the repository")
close = partial(np.testing.assert_allclose, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture(scope="module")
def reference() -> ReferenceCheckpoint:
    return read_reference(FOLDER / "model_best.pt", targets=True)


@pytest.fixture(scope="module")
def batch(golden: dict[str, Any], reference: ReferenceCheckpoint) -> TaskBatch:
    """All six episodes as one batch: what they are padded with must not show."""
    examples = [
        QAExample(str(i), episode["question"], tuple(episode["chunks"]), episode["answer"], tuple(episode["support"]))
        for i, episode in enumerate(golden["episodes"])
    ]
    data = replace(reference.config.data, chunks=max(len(example.chunks) for example in examples))
    return jax.tree.map(jnp.asarray, make_batch(examples, 0, reference.tokenizer, data))


@dataclass(frozen=True)
class Networks:
    """One pair of encoders at work on the batch, compiled once."""

    pool: jax.Array
    embed_states: Callable[[jax.Array], jax.Array]


@pytest.fixture(scope="module")
def networks(reference: ReferenceCheckpoint, batch: TaskBatch) -> list[Networks]:
    """The trained and the target encoders."""
    embedder = make_embedder(reference.config, reference.backbone, "mean")
    pool, state = (jax.jit(partial(embedder.apply, method=method)) for method in ("embed_actions", "embed_states"))
    both = (reference.params, reference.target_params)
    return [Networks(pool(params, batch.chunk_pool_ids), partial(state, params)) for params in both]


def test_chunk_embeddings(golden: dict[str, Any], networks: list[Networks], batch: TaskBatch) -> None:
    pool = np.asarray(networks[0].pool)
    for row, mask, episode in zip(np.asarray(batch.chunk_index), np.asarray(batch.chunk_mask), golden["episodes"], strict=True):
        close(pool[row[mask]], episode["chunk_embeddings_unrotated"])


def test_states_q_values_and_soft_values(
    golden: dict[str, Any], reference: ReferenceCheckpoint, networks: list[Networks], batch: TaskBatch
) -> None:
    layout = StateLayout.make(reference.config.data, 4, reference.tokenizer)
    rows = jax.jit(partial(state_rows, layout=layout))
    score = jax.jit(partial(scores, qhead=reference.config.qhead))
    value = partial(soft_value, alpha=0.05, config=RLConfig(value_top_k=5, reference_soft_value=True))
    masks, empty, offset = np.asarray(batch.chunk_mask), batch.chunk_index.shape[1], jnp.zeros(6, jnp.int32)
    taken = np.array([[step["greedy_action"] for step in episode["steps"]] for episode in golden["episodes"]], np.int32)
    for t in range(4):
        steps = [episode["steps"][t] for episode in golden["episodes"]]
        picked = jnp.asarray(np.where(np.arange(4) < t, taken, empty))
        ids = rows(batch, picked)
        vectors = [network.embed_states(ids) for network in networks]
        (q, available, positions), (target, _, _) = (
            score(vector, network.pool[batch.chunk_index], batch, picked, offset) for vector, network in zip(vectors, networks, strict=True)
        )
        for i, (step, mask) in enumerate(zip(steps, masks, strict=True)):
            row, free = np.asarray(ids[i]), np.asarray(available[i])[mask]
            assert row[row >= 0].tolist() == step["state_ids"]
            close(vectors[0][i], step["state_embedding"])
            # Recorded before the truncation to whole positions that the rotary table does.
            np.testing.assert_array_equal(np.asarray(positions[i])[mask], np.floor(step["positions"]))
            np.testing.assert_array_equal(free, np.asarray(step["available"], bool))
            ours, slow = np.asarray(q[i])[mask], np.asarray(target[i])[mask]
            close(ours, np.stack([step["q1"], step["q2"]], axis=-1))
            close(ours.sum(-1), step["q"])
            close(slow, np.stack([step["target_q1"], step["target_q2"]], axis=-1))
            assert int(greedy(jnp.asarray(ours.sum(-1)), jnp.asarray(free))) == step["greedy_action"]
            close(value(jnp.asarray(slow), jnp.asarray(free)), step["reference_soft_value_alpha_0_05"])


def test_recorded_positions_are_those_of_eq_6_up_to_the_end_point(golden: dict[str, Any]) -> None:
    """Eq. 6 spreads an interval over its n chunks; the reference code spreads it over n - 1 steps, end point included."""
    step = golden["episodes"][0]["steps"][0]
    count = len(step["positions"])
    ours = relative_positions(jnp.zeros(count, bool), count, QHeadConfig(position_resolution="continuous"))
    close(ours * count / (count - 1), step["positions"])


def test_lambda_targets_under_the_parity_flag(golden: dict[str, Any]) -> None:
    record = golden["returns"]
    r, alive, v = (jnp.asarray(record[name], jnp.float32) for name in ("reward", "not_done", "soft_value"))
    ours = jax.vmap(partial(reference_lambda_returns, lam=record["lam"]))(r, record["gamma"] * alive, v)
    close(ours, record["targets_of_reference_code"])


def test_import_writes_an_export(reference: ReferenceCheckpoint, tmp_path: Path) -> None:
    export = read_export(import_reference(FOLDER / "model_best.pt", tmp_path / "export"))
    assert export.config == reference.config
    assert (export.step, export.pooling, export.threshold) == (6, "mean", None)
    assert jax.tree.all(jax.tree.map(np.array_equal, export.params, reference.params))
    data, qhead = export.config.data, export.config.qhead
    assert (data.benchmark, data.task, data.chunk_tokens, data.state_chunk_tokens) == ("babilong", "qa2", 24, 23)
    assert (qhead.positions, qhead.position_resolution, qhead.halves, export.config.model.divisor) == ("relative", "integer", 2, 10.0)


def test_the_reference_layout_is_that_of_the_reference_code(tmp_path: Path) -> None:
    """Names, shapes and types of every part are those that its load_state_dict needs; the trained encoders are equal bit for bit."""
    export = read_export(import_reference(FOLDER / "model_best.pt", tmp_path / "export"))
    folder = to_torch(export, tmp_path / "torch", "reference")
    ours, theirs = (torch.load(path / "model_best.pt", weights_only=True) for path in (folder, FOLDER))
    assert set(ours) == set(theirs)
    for part in ("critic", "policy", "random_policy", "v_net_target", "action_embed_target"):
        kinds = [{name: (tensor.shape, tensor.dtype) for name, tensor in tree[part].items()} for tree in (ours, theirs)]
        assert kinds[0] == kinds[1]
    assert set(ours["scheduler"]) == set(theirs["scheduler"])
    groups = [tree["critic_optim"]["param_groups"][0] for tree in (ours, theirs)]
    assert set(groups[0]) == set(groups[1])
    assert groups[0]["params"] == groups[1]["params"]
    for name, tensor in theirs["critic"].items():
        if "head." not in name and "pooler" not in name:
            assert torch.equal(ours["critic"][name], tensor) or name.endswith("freqs")
    torch.testing.assert_close(ours["critic"]["action_embed.rotary_emb.freqs"], theirs["critic"]["action_embed.rotary_emb.freqs"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    folder = tmp_path / "released"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("golden.json"), copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "base_model").chmod(0o755)
    return folder


def refused(folder: Path, *parts: str, **options: Any) -> None:
    """There is one clear error that contains all of ``parts``, and nothing is written."""
    before = set(folder.parent.iterdir())
    with pytest.raises(ValueError, match=re.escape(parts[0])) as error:
        import_reference(folder / "model_best.pt", folder.parent / "export", **options)
    for part in parts:
        assert part in str(error.value)
    assert set(folder.parent.iterdir()) == before


class Hostile:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


def test_a_hostile_pickle_is_not_executed(copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    torch.save({"critic": Hostile(witness)}, copy / "model_best.pt")
    refused(copy, "model_best.pt", "weights_only", "nothing was executed")
    (copy / "model_best.pt").write_bytes(pickle.dumps({"critic": Hostile(witness)}, protocol=2))
    refused(copy, "model_best.pt")
    assert not witness.exists()


@pytest.mark.parametrize("size", [0, 10, 5_000, 3_000_000])
def test_a_truncated_checkpoint_is_refused(copy: Path, size: int) -> None:
    (copy / "model_best.pt").write_bytes((copy / "model_best.pt").read_bytes()[:size])
    refused(copy, "model_best.pt")


def test_every_problem_is_reported_at_once(copy: Path) -> None:
    tree = torch.load(copy / "model_best.pt", weights_only=True)
    del tree["critic"]["state_embed.model.embeddings.LayerNorm.bias"]
    tree["critic"]["action_embed.model.model.encoder.layer.0.output.dense.bias"] = torch.zeros(3)
    tree["critic"]["action_embed.model.model.encoder.layer.9.output.dense.bias"] = torch.zeros(3)
    tree["critic"]["action_embed.model.adapter.weight"] = torch.zeros(3)
    tree["critic"]["state_embed.sep_token"] = torch.tensor([9])
    torch.save(tree, copy / "model_best.pt")
    settings = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(settings.replace("positions_processor: relative", "positions_processor: circular", 1))
    refused(
        copy,
        "missing: embeddings.LayerNorm.bias",
        "encoder.layer.0.output.dense.bias is (3,), config.json implies (32,)",
        "unexpected: encoder.layer.9.output.dense.bias",
        "action_embed.model.adapter.weight",
        "sep_token",
        "envs.positions_processor = 'circular'",
    )


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    config = json.loads((copy / "base_model/config.json").read_text())
    (copy / "base_model/config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    refused(copy, "model_type = 'mamba'", "bert")


def test_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    refused(copy, "no-such-model", "no such folder", base_model=tmp_path / "no-such-model")
    (copy / "config.yaml").rename(copy / "elsewhere.yaml")
    refused(copy, "config.yaml", "--config")
    assert import_reference(copy / "model_best.pt", tmp_path / "export", config=copy / "elsewhere.yaml").is_dir()
    (copy / "base_model").rename(tmp_path / "moved")
    refused(copy, "algo.model.model_name", "--base-model", config=copy / "elsewhere.yaml")


def test_torch_that_cannot_load_safely_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    refused(copy, "torch 2.5.1", "install torch >= 2.10")


def test_other_folders_are_not_overwritten(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/thesis.tex").write_text("years of work")
    refused(copy, "was not written by this command")
    assert (tmp_path / "export/thesis.tex").read_text() == "years of work"


def test_interpolations_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("h: !!python/object:os.system {}")
    with pytest.raises(ValueError, match="not plain YAML"):
        HydraConfig(path)
    path.write_text("a: {b: 3, name: b}\nc: ${a.b}\nd: x-${c}-${a.${a.name}}\ne: ${f}\nf: ${e}\ng: ${a.z}")
    config = HydraConfig(path)
    assert (config.get("c", int), config.get("d", str), config.get("missing.x", int, 7)) == (3, "x-3-3", 7)
    for name, part in (("e", "circle"), ("g", "a.z"), ("z", "missing"), ("d", "must be of type int")):
        with pytest.raises(ValueError, match=part):
            config.get(name, int)
