"""The plan of an update's memory: its figures against arrays and compiler, what is refused, and that planning compiles nothing twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from qrag_jax.train import plan as plans
from qrag_jax.train.parallel import make_parallel
from qrag_jax.train.plan import GIB, Plan, check_state, devices_to_fit, fitting_tile, plan_update, ways_to_fit
from tests.support.small import SMALL, changed, small_batch, small_learner

SEVERAL = [("pmap", 2, "none"), ("shard_map", 2, "none"), ("shard_map", 2, "full")]
WAYS = [("jit", 1, "none"), *(pytest.param(*way, marks=pytest.mark.slow) for way in SEVERAL)]
CONFIG = changed(SMALL, rl={"budget": 2})


def small_plan(**values):
    return replace(Plan(1, 1, 4 * GIB, 4 * GIB, 8 * GIB, 6 * GIB, GIB // 4, 24 * GIB), **values)


@pytest.fixture
def kept(tmp_path):
    """Names of the programs that JAX's cache of compiled ones holds; it is empty at first."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    reset_cache()
    yield lambda: [path.name.partition("-")[0] for path in tmp_path.glob("*-cache")]
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


@pytest.mark.quick
@pytest.mark.parametrize(("kind", "count", "shard_state"), WAYS)
def test_the_planned_program_is_the_one_that_runs_and_holds_what_the_plan_says(kind, count, shard_state, kept):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices")
    learner, host = small_learner(CONFIG)
    shapes = jax.eval_shape(lambda: host)
    parallel = make_parallel(learner.update, kind, tuple(jax.devices()[:count]), shard_state)
    state, batch = parallel.place(host), small_batch()
    others = Counter(kept())  # programs that place the state
    plan = plan_update(CONFIG, parallel, shapes, batch)
    (planned,) = Counter(kept()) - others
    loaded: list[str] = []
    listen = lambda event, **_: loaded.append(event) if event == "/jax/compilation_cache/cache_hits" else None
    jax.monitoring.register_event_listener(listen)
    try:
        for _ in range(2):
            state, _ = parallel.update(state, batch)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert kept().count(planned) == 1, "another program was compiled for the same update"
    assert len(loaded) == (kind == "pmap"), "only pmap takes the program from the cache on the disk, once"
    held = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    assert (plan.params, plan.target, plan.moments) == tuple(map(held, (state.params, state.target_params, state.opt_state)))
    assert plan.devices == count
    assert plan.parts == (count if shard_state == "full" else 1)
    assert plan.temporaries > held(state.params)  # a gradient, at the least
    assert plan.other < plan.params
    assert plan.fits


def test_the_plan_in_words():
    assert str(small_plan(available=None)) == (
        "memory of an update on the device: 22.2 GiB, of unknown free for it (parameters 4.00 GiB, their moving average 4.00 GiB, "
        "Adam 8.00 GiB, gradients and activations 6.00 GiB, other 0.25 GiB)"
    )
    assert str(small_plan(devices=8)).startswith("memory of an update on each of 8 devices: 22.2 GiB, of 24.0 GiB free for it (")
    assert small_plan().fits
    assert small_plan(available=22 * GIB).fits is False
    assert small_plan(available=None).fits is None


def test_a_tile_is_halved_until_the_rest_of_the_memory_holds_it():
    # 16 + 0.25 GiB beside the tile's 6: with 20 GiB, 3.75 are left, which 6 / 2 fits.
    assert fitting_tile(8192, small_plan(available=20 * GIB)) == 4096
    assert fitting_tile(8192, small_plan(available=18 * GIB)) == 2048  # 1.75 left, 6 / 4 fits
    assert fitting_tile(8192, small_plan(available=16 * GIB)) == 512  # nothing is left: the smallest
    assert fitting_tile(512, small_plan(available=16 * GIB)) == 512
    assert fitting_tile(600, small_plan(available=16 * GIB)) == 600


def test_devices_are_counted_by_the_whole_state():
    # 16 GiB in halves of 10 GiB: 4 devices. Split in 8 already, they are 128 GiB in all, 26 devices.
    assert devices_to_fit(small_plan(available=10 * GIB)) == "4 devices or more with train.shard_state full"
    assert devices_to_fit(small_plan(available=10 * GIB, devices=8, parts=8)) == "26 devices or more with train.shard_state full"
    assert devices_to_fit(small_plan(available=10 * GIB, devices=8)) == "more devices with train.shard_state full"
    assert devices_to_fit(small_plan(available=None)) == "more devices"


def test_only_settings_that_still_can_be_changed_are_advised():
    plan = small_plan(devices=2, available=20 * GIB)
    assert ways_to_fit(changed(CONFIG, model={"tile_tokens": 8192}), plan) == (
        "Use train.shard_state full, model.compute_dtype bfloat16, model.remat True, model.tile_tokens 4096, a smaller optim.batch, "
        "or more devices with train.shard_state full"
    )
    sparing = changed(CONFIG, model={"tile_tokens": 512, "compute_dtype": "bfloat16", "remat": True})
    assert ways_to_fit(sparing, replace(plan, parts=2)) == "Use a smaller optim.batch, or 4 devices or more with train.shard_state full"


def jit():
    learner, host = small_learner(CONFIG)
    return make_parallel(learner.update, "jit", tuple(jax.devices()[:1])), jax.eval_shape(lambda: host)


def test_a_state_that_does_not_fit_is_refused_before_it_is_placed(monkeypatch):
    parallel, shapes = jit()
    check_state(CONFIG, parallel, shapes)
    monkeypatch.setattr(plans, "free_memory", lambda devices: 1000)
    with pytest.raises(
        ValueError, match=r"^memory of an update on the device: .*: this does not fit\. Use model\.compute_dtype bfloat16, .*$"
    ):
        check_state(CONFIG, parallel, shapes)
    monkeypatch.setattr(plans, "free_memory", lambda devices: None)
    check_state(CONFIG, parallel, shapes)


def test_an_update_that_does_not_fit_is_refused_in_one_line(monkeypatch):
    parallel, shapes = jit()
    monkeypatch.setattr(plans, "free_memory", lambda devices: 1000)
    memory = SimpleNamespace(argument_size_in_bytes=10**6, output_size_in_bytes=10**6, alias_size_in_bytes=10**6, temp_size_in_bytes=10**8)
    memory.generated_code_size_in_bytes = 0
    compiled = SimpleNamespace(compile=lambda: SimpleNamespace(memory_analysis=lambda: memory))
    with pytest.raises(ValueError, match=r"this does not fit\. Use .*model\.remat True.* or .* devices") as raised:
        plan_update(CONFIG, replace(parallel, lower=lambda *_: compiled), shapes, small_batch())
    assert "\n" not in str(raised.value)
    silent = SimpleNamespace(compile=lambda: SimpleNamespace(memory_analysis=lambda: None))
    assert plan_update(CONFIG, replace(parallel, lower=lambda *_: silent), shapes, small_batch()) is None


def test_a_compiler_that_lacks_memory_is_quoted_with_what_to_set():
    parallel, shapes = jit()

    def refuse(text):
        def lower(*_):
            raise jax.errors.JaxRuntimeError(text)

        return replace(parallel, lower=lower)

    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required exceeds available HBM (15.75G).\nmore lines"
    with pytest.raises(ValueError, match=r"^an update does not fit into a device's memory: Ran out of .* \(15\.75G\)\. Use model\.comp.*$"):
        plan_update(CONFIG, refuse(said), shapes, small_batch())
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        plan_update(CONFIG, refuse("INTERNAL: a bug"), shapes, small_batch())
