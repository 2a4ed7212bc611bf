"""A train state that is split over devices: where its arrays lie, how much a device holds, and that checkpoints fit every mode.

tests/train/test_devices.py compares its updates with those of one device, on up to four devices of one process.
"""

from __future__ import annotations

import re
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from qrag_jax.config import RunConfig, TrainConfig
from qrag_jax.rundir import checkpoint
from qrag_jax.rundir.checkpoint import Checkpoints, saved_steps
from qrag_jax.rundir.compilations import compilations
from qrag_jax.rundir.progress import Progress
from qrag_jax.train import loop, sharding
from qrag_jax.train.loop import first_state
from qrag_jax.train.parallel import Parallel, make_parallel
from qrag_jax.train.sharding import choose_shard_state, split_axis, state_bytes
from tests.support import sharded
from tests.support.pair import CONFIG, TRAIN, batches, scene
from tests.support.processes import finish_all, processes, start_python
from tests.support.runs import assert_same_records, assert_same_run, here, records
from tests.support.small import changed, small_batch, small_learner

MODES = {"jit": 1, "pmap": 4, "shard_map": 4, "full": 4}


@pytest.fixture(autouse=True)
def _devices():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")


def parallel_of(function: Any, mode: str, count: int | None = None) -> Parallel:
    devices = tuple(jax.devices()[: count or MODES[mode]])
    return make_parallel(function, "shard_map", devices, "full") if mode == "full" else make_parallel(function, mode, devices)


@pytest.mark.parametrize(
    ("shape", "count", "axis"),
    [
        ((1024, 4096), 8, 1),  # the longest axis
        ((250_002, 1024), 8, 1),  # 250002 = 8 x 31250 + 2
        ((1024, 1024), 8, 0),
        ((2, 512), 4, 1),
        ((30, 21), 4, None),  # neither 30 nor 21 is a multiple of 4
        ((4096,), 8, None),  # biases, and scales of norms
        ((), 8, None),
        ((0, 8), 8, 1),
        ((1024, 4096), 1, None),
    ],
)
def test_the_longest_axis_that_divides_is_split(shape, count, axis):
    assert split_axis(shape, count) == axis
    expected = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "episodes")
    assert sharding.specs(jax.ShapeDtypeStruct(shape, np.float32), count) == expected


def test_a_device_holds_its_part_of_everything():
    _, state = small_learner(CONFIG)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), (sharding.AXIS,))
    placed = sharding.place(mesh, state)
    assert sharded.device_bytes(placed) == [state_bytes(state, 4)] * 4
    # All but biases and norms is split: of this small model 96 %.
    assert state_bytes(state, 4) < 1.1 * state_bytes(state) / 4
    for name in ("params", "target_params", "opt_state"):
        arrays = [x for x in jax.tree.leaves(getattr(placed, name)) if x.ndim >= 2]
        assert arrays
        assert all(x.addressable_shards[0].data.nbytes == x.nbytes / 4 for x in arrays), name
    back = sharding.fetch(placed)
    jax.tree.map(np.testing.assert_array_equal, back.params, state.params)
    assert (back.key, back.step) == (state.key, 0)


@pytest.mark.parametrize("written", MODES)
def test_a_checkpoint_of_one_mode_is_restored_in_every_other(written, tmp_path):
    learner, state = sharded.numbered_state(CONFIG)
    of = parallel_of(learner.update, written)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(7, of.whole(of.place(state).params), 0.5)
        loop.save(checkpoints, of, 7, of.place(state), Progress(best_step=7))
        checkpoints.wait()
        best = checkpoints.best(7, jax.eval_shape(lambda: state).params)
    jax.tree.map(np.testing.assert_array_equal, best.params, state.params)
    assert_restored_everywhere(tmp_path, learner, state)


def assert_restored_everywhere(run_dir, learner, state):
    """On one device, and on two and four with a whole and with a split state; a split one is never whole on the host."""
    shapes = jax.eval_shape(lambda: state)
    expected = sharded.named(state.replace(key=jax.random.key_data(state.key)))
    for mode, count in (("jit", 1), ("pmap", 4), ("shard_map", 2), ("full", 2), ("full", 4)):
        of = parallel_of(learner.update, mode, count)
        with Checkpoints(run_dir) as checkpoints:
            found = checkpoints.latest(*of.shapes((shapes, shapes.params)))
        assert found is not None
        if mode == "full":
            assert sharded.device_bytes(found.state) == [state_bytes(state, count)] * count
        back = of.fetch(of.place(found.state))
        back = sharded.named(back.replace(key=jax.random.key_data(back.key)))
        assert back.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(back[name], value, err_msg=f"{mode} {count} {name}")


def test_each_part_is_written_once_and_never_put_together(tmp_path, monkeypatch):
    learner, state = sharded.numbered_state(CONFIG)
    of = parallel_of(learner.update, "full")
    placed = of.place(state)
    monkeypatch.setattr(sharding, "fetch", lambda _: pytest.fail("the state was put together"))
    monkeypatch.setattr(checkpoint, "on_host", lambda _: pytest.fail("the state was put together"))
    with Checkpoints(tmp_path) as checkpoints:
        loop.save(checkpoints, of, 7, placed, Progress(best_step=7))
        jax.tree.map(lambda x: x.delete(), placed)  # as an update may do as soon as the call returns
    sharded.assert_parts_written(tmp_path, state, devices=4, processes=1)


def test_the_state_of_a_run_is_on_the_host_until_it_is_placed():
    learner, state = small_learner(CONFIG)
    first = first_state(learner, 1, jax.device_get(state.params))
    arrays = jax.tree.leaves(first.replace(key=None))
    assert all(isinstance(x, np.ndarray) for x in arrays)
    jax.tree.map(np.testing.assert_array_equal, first.replace(key=None), jax.device_get(state.replace(key=None)))
    assert first.key == state.key


@pytest.mark.parametrize(
    ("shard_state", "parallel", "count", "limit", "chosen", "told"),
    [
        ("none", "auto", 4, 1, "none", "^$"),
        ("full", "auto", 4, None, "full", r"= full: 25\.60 MiB of the state's 102\.40 MiB on each of 4 devices"),
        ("full", "auto", 1, 10**12, "none", "= full: nothing is split, because there is one device"),
        ("auto", "auto", 1, 1, "none", "= auto: nothing is split, because there is one device"),
        ("auto", "auto", 4, None, "none", "the memory of a device is not known here"),
        ("auto", "pmap", 4, 1, "none", "because of train.parallel = pmap"),
        ("auto", "auto", 4, 2**30, "none", r"102\.40 MiB, at most 50% of its 1\.00 GiB"),
        (
            "auto",
            "shard_map",
            4,
            2**27,
            "full",
            r"102\.40 MiB, takes more than 50% of a device's 0\.12 GiB; each of 4 devices holds 25\.60",
        ),
    ],
)
def test_what_shard_state_means(shard_state, parallel, count, limit, chosen, told, monkeypatch):
    monkeypatch.setattr(sharding, "device_memory", lambda device: limit)
    state = {"w": jax.ShapeDtypeStruct((1024, 26_214), np.float32)}  # 102.4 MiB
    found, line = choose_shard_state(TrainConfig(shard_state=shard_state, parallel=parallel), state, tuple(jax.devices()[:count]))
    assert found == chosen
    assert re.search(told, line), line


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_split_state_is_refused_where_it_cannot_be(parallel):
    with pytest.raises(ValueError, match=rf"train\.shard_state = 'full': must be none or auto with train\.parallel '{parallel}'; to split"):
        TrainConfig(shard_state="full", parallel=parallel)
    with pytest.raises(ValueError, match=r"train\.shard_state = 'full': needs several devices and train\.parallel auto or shard_map, not"):
        make_parallel(lambda *_: None, parallel, tuple(jax.devices()[:1]), "full")


def test_configurations_from_before_the_setting_mean_none():
    assert RunConfig.from_json('{"train": {"steps": 5}}').train.shard_state == "none"


@pytest.mark.slow
def test_an_update_is_compiled_once_and_without_arrays():
    learner, state = small_learner(CONFIG)
    of = parallel_of(learner.update, "full")
    shapes, rows = jax.eval_shape(lambda: state), small_batch(config=CONFIG)
    memory = of.lower(shapes, jax.eval_shape(lambda: rows)).compile().memory_analysis()
    own = state_bytes(state, 4)
    assert memory.alias_size_in_bytes == own  # a device's part of the state is updated in place
    assert own <= memory.argument_size_in_bytes < own + sum(x.nbytes for x in jax.tree.leaves(rows)) + 1024
    state, _ = of.update(of.place(state), rows)
    with compilations() as compiled:
        for _ in range(2):
            state, _ = of.update(state, rows)
    assert compiled == []


def assert_those_of_one_device(path, devices):
    """folder/sharded.npz of tests/support/pair.py, at the tolerances of tests/train/test_devices.py."""
    alone = lambda function: make_parallel(function, "jit", tuple(jax.devices()[:1]))
    rows = lambda parallel: batches(CONFIG, parallel.share)
    found = dict(np.load(path))
    gradients = sharded.first_gradients(CONFIG, alone, rows)
    assert max(np.abs(value).max() for value in gradients.values()) > 1e-4
    for name, value in gradients.items():
        np.testing.assert_allclose(found.pop(f"gradient {name}"), value, rtol=1e-4, atol=1e-7, err_msg=name)
    for optimizer in sharded.OPTIMIZERS:
        values, (whole,) = sharded.three_updates(CONFIG, optimizer, alone, rows)
        for name, value in values.items():
            np.testing.assert_allclose(found.pop(f"{optimizer} {name}"), value, rtol=1e-4, atol=1e-5, err_msg=name)
        held = found.pop(f"bytes {optimizer}")
        assert (held < 1.3 * whole / devices).all()  # on 8 devices, the biases and norms of so small a model are a quarter of a part
        assert (held == held[0]).all()
    assert not found


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_eight_devices_compute_what_one_does(tmp_path):
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    finish_all([start_python("-m", "tests.support.pair", str(tmp_path), "sharded", **eight)])
    assert_those_of_one_device(tmp_path / "sharded.npz", 8)
    assert_checkpoints_of(tmp_path, devices=8, processes=1)


def assert_checkpoints_of(folder, devices, processes):
    """Those of ``play_sharded`` in tests/support/pair.py."""
    learner, state = sharded.numbered_state(CONFIG)
    sharded.assert_parts_written(folder / "parts", state, devices, processes)
    for name in ("parts", "collected"):
        assert_restored_everywhere(folder / name, learner, state)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_two_processes_of_two_devices_compute_and_train_as_one(tmp_path, capsys):
    with processes(*[("-m", "tests.support.pair", str(tmp_path), "sharded", "split")] * 2) as started:
        finish_all(started)
    assert_those_of_one_device(tmp_path / "sharded.npz", 4)
    assert_checkpoints_of(tmp_path, devices=4, processes=2)
    codes, said = scene(tmp_path, "split")
    assert codes == [0, 0]
    assert "train.shard_state = full: " in said[0]
    assert f"resuming {tmp_path / 'split'} at update 10 of 20" in said[0]
    assert "train.shard_state" not in said[1]
    assert here(tmp_path / "one", "--train.shard-state", "full", small=TRAIN) == 0
    assert_same_records(records(tmp_path / "split"), records(tmp_path / "one"))
    # Evaluated again, from the checkpoint, with a replicated state in one process.
    assert here(tmp_path / "split", "--train.devices", "1", small=TRAIN) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_bfloat16_parameters_are_gathered_in_bfloat16_and_their_gradients_summed_in_float32():
    config = changed(CONFIG, model={"compute_dtype": "bfloat16", "tile_tokens": 64})
    rows = lambda parallel: [small_batch(config=config)]
    found, expected = (
        sharded.first_gradients(config, lambda function, mode=mode: parallel_of(function, mode, 2), rows) for mode in ("full", "shard_map")
    )
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max() + 1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.quick
def test_a_split_run_resumes_bit_for_bit_and_in_another_mode(stop_at_13, tmp_path, capsys):
    split = ("--train.devices", "4", "--train.shard-state", "full")
    assert here(tmp_path / "run", *split) == 75
    assert "train.shard_state = full: " in capsys.readouterr().out
    assert saved_steps(tmp_path / "run") == [13, 10]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert here(tmp_path / "run", *split) == 0
    assert here(tmp_path / "unbroken", *split) == 0
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")
    assert here(tmp_path / "other", "--train.devices", "1") == 0
    found, expected = ([r for r in records(tmp_path / name) if r["kind"] == "train"] for name in ("other", "unbroken"))
    assert found[:2] == expected[:2]
    assert_same_records(found[2:3], expected[2:3])  # up to the first pick that another rounding changes
    assert len(found) == len(expected)
