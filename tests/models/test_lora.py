"""Low-rank adapters: they change nothing at first, their gradient is that of W + s A B, and runs train, resume and export with them."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from qrag_jax.config import ModelConfig
from qrag_jax.models.lora import make_adapters, merge, pull_back, shared_base
from qrag_jax.rundir.checkpoint import Checkpoints
from qrag_jax.train.model import build_model
from qrag_jax.train.parallel import make_parallel
from qrag_jax.train.sharding import state_bytes
from qrag_jax.train.training import read_config
from tests.support.runs import assert_same_run, here
from tests.support.small import SMALL, changed, options, small_batch, small_learner

ADAPTED = changed(SMALL, model={"lora_rank": 3, "lora_alpha": 6.0})


def trees() -> tuple[dict, dict]:
    """The weights of an encoder, and adapters that change them."""
    _, state = small_learner()
    base = state.params["params"]["state_encoder"]
    adapters = make_adapters(jax.random.key(1), {"params": {"encoder": base}}, 3)["params"]["encoder"]
    return base, jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), adapters)


def test_every_dense_kernel_has_an_adapter_which_changes_nothing_at_first():
    _, state = small_learner()
    adapters = make_adapters(jax.random.key(0), state.params, 3)
    kernels = {path for path, leaf in flatten_dict(state.params).items() if path[-1] == "kernel" and leaf.ndim == 2}
    assert {path[:-1] for path in flatten_dict(adapters)} == kernels
    assert len(kernels) == 2 * 6, "query, key, value, output and two of the MLP, in each encoder"
    for name, base in state.params["params"].items():
        jax.tree.map(np.testing.assert_array_equal, merge(adapters["params"][name], base, 2.0), base)


def test_merge_by_hand():
    adapters = {"dense": {"kernel": {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0, 0.0]])}}}
    found = merge(adapters, {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}, 0.5)
    assert found["dense"]["kernel"].tolist() == [[2.5, 1.0], [4.0, 1.0]]
    assert found["dense"]["bias"].tolist() == [0.0, 0.0]


def test_the_gradient_of_adapters_is_that_of_the_merged_weights():
    base, adapters = trees()
    weigh = lambda tree: sum(jnp.vdot(jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), x**2) for x in jax.tree.leaves(tree))
    expected = jax.grad(lambda adapters: weigh(merge(adapters, base, 2.0)))(adapters)
    found = pull_back(jax.grad(weigh)(merge(adapters, base, 2.0)), adapters, 2.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected)


def test_encoders_that_start_alike_share_their_weights():
    same, other = {"w": np.ones(3)}, {"w": np.array([1.0, 1.0, 2.0])}
    assert set(shared_base({"params": {"state_encoder": same, "action_encoder": {"w": np.ones(3)}}})["params"]) == {"encoder"}
    assert set(shared_base({"params": {"state_encoder": same, "action_encoder": other}})["params"]) == {"state_encoder", "action_encoder"}


@pytest.mark.parametrize("objective", ["td", "supervised"])
def test_an_update_changes_the_adapters_alone(objective):
    learner, state = small_learner(changed(ADAPTED, rl={"objective": objective, "random_updates": 0}))
    _, whole = small_learner()
    base = jax.device_get(state.base)
    after, metrics = jax.jit(learner.update)(state, small_batch())
    after, _ = jax.jit(learner.update)(after, small_batch())
    jax.tree.map(np.testing.assert_array_equal, after.base, base)
    assert all(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True))
    # The first update starts from the same embedder as without adapters.
    same, _ = small_learner(changed(SMALL, rl={"objective": objective, "random_updates": 0}))
    assert metrics["loss"] == pytest.approx(float(jax.jit(same.update)(whole, small_batch())[1]["loss"]), rel=1e-5)
    assert (
        state_bytes((state.params, state.target_params, state.opt_state))
        < state_bytes((whole.params, whole.target_params, whole.opt_state)) / 4
    )


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize(("kind", "shard_state"), [("pmap", "none"), ("shard_map", "full")])
def test_devices_give_the_update_of_one(kind, shard_state):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")
    learner, state = small_learner(ADAPTED)
    one, _ = jax.jit(learner.update)(state, small_batch())
    devices = make_parallel(learner.update, kind, tuple(jax.devices()[:4]), shard_state)
    several, _ = devices.update(devices.place(state), small_batch())
    found = devices.fetch(several)
    for x, y in zip(*map(jax.tree.leaves, (found.params, one.params)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.slow
def test_a_run_with_adapters_resumes_and_exports(tmp_path):
    small = options(model={"lora_rank": 2}, train={"devices": 1, "steps": 4, "log_every": 1, "eval_every": 2, "checkpoint_every": 2})
    assert here(tmp_path / "whole", small=small) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/last/4")
    assert here(tmp_path / "parts", small=small) == 0
    config = read_config(tmp_path / "whole")
    model = build_model(config, tmp_path / "whole", [])
    with Checkpoints(tmp_path / "whole") as checkpoints:
        best = checkpoints.best_so_far(model.params)
    moved = [not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (best.params, model.params)), strict=True)]
    assert any(moved) == (best.step > 0)
    size = lambda folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    last = max((tmp_path / "whole/checkpoints/last").glob("[0-9]*"), key=lambda path: int(path.name))
    assert size(last) < size(tmp_path / "whole/checkpoints/best") / 2, "a checkpoint to resume from has no base"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("settings", [{"lora_rank": -1}, {"lora_rank": 5000}, {"lora_alpha": 0.0}])
def test_bad_adapters_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"model\.{name} = "):
        ModelConfig(**settings)
