"""tpu/check.py and tpu/bench.py on simulated CPU devices, with a tiny model; the counting of FLOP against XLA's own."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.models.embedder import embed_actions, make_embedder
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.rundir.compilations import compilations
from qrag_jax.train import model
from tests.conftest import ROOT
from tests.support.small import SMALL, changed


@pytest.fixture
def tpu(monkeypatch):
    """The modules of tpu/, which find each other as scripts do; presets are a tiny model with a vocabulary of little text."""
    monkeypatch.syspath_prepend(str(ROOT / "tpu"))
    import bench
    import check
    import measure

    monkeypatch.setattr(model, "VOCABULARY_EXAMPLES", 16)
    config = changed(SMALL, rl={"budget": 2}, train={"devices": min(2, len(jax.devices()))})
    monkeypatch.setattr(measure, "preset", lambda *_: config)
    yield {"bench": bench, "check": check, "measure": measure}
    for name in ("bench", "check", "command", "measure"):
        del sys.modules[name]


def call(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--matmul-size", "64", *words])
    return module.main(module.__doc__, module.run, updates=3)


@pytest.mark.slow
def test_check(tpu, monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, tpu["check"], "--out", str(tmp_path / "check.json")) == 0
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["ok"] is True
    assert len(found["devices"]) == min(2, len(jax.devices()))
    assert set(found["matmul_flops"]) == {"float32", "bfloat16"}
    assert found["compilations"][0] >= 1
    assert found["compilations"][2] == 0
    assert found["split"]["episodes"] * len(found["devices"]) == SMALL.optim.batch
    assert len(found["split"]["pool_tokens"]) == len(found["devices"])
    if len(jax.devices()) == 1:
        assert found["gradient_difference"] is None
    else:
        assert 0 < found["gradient_difference"] < 1e-5
        assert found["loss_difference"] < 1e-5
    assert found["host_difference"] is None
    assert "OK" in capsys.readouterr().out


def test_check_fails_on_a_wrong_gradient(tpu, monkeypatch, capsys):
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")
    # What a forgotten mean over devices gives: the sum.
    monkeypatch.setattr(
        tpu["check"], "raw_gradient", lambda _, devices, alone=None: ({"w": jnp.ones(3) * (1 if alone else len(devices))}, 1.0)
    )
    monkeypatch.setattr(tpu["check"], "first_updates", lambda *_: ([9, 1, 0], [True, False, False], [9.0, 1.0, 1.0]))
    assert call(monkeypatch, tpu["check"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "ok"), [(5e-4, True), (2e-3, False)])
def test_the_gradient_of_an_accelerator_is_compared_with_the_cpu_s(tpu, monkeypatch, wrong, ok):
    check, device, cpu = tpu["check"], jax.devices()[0], object()
    monkeypatch.setattr(check, "host_device", lambda: cpu)
    gradients = {device: ({"w": jnp.array([1.0, 2.0])}, 1.0), cpu: ({"w": jnp.array([1.0, 2.0 + 2 * wrong])}, 1.0)}
    monkeypatch.setattr(check, "raw_gradient", lambda _, devices, alone: gradients[alone])
    found = check.compare_gradients(SimpleNamespace(devices=(device,)))
    assert (found.devices, found.loss) == (None, None)
    # 2 wrong of 2 + 2 wrong: about ``wrong``.
    assert math.isclose(found.host, wrong, rel_tol=0.01)
    assert found.ok == ok


def test_there_is_no_cpu_beside_a_cpu(tpu):
    assert tpu["check"].host_device() is None


@pytest.mark.parametrize(
    ("counts", "new", "code"), [([9, 1, 0], [1, 0, 0], 0), ([9, 0, 1], [1, 0, 1], 0), ([9, 0, 1], [1, 0, 0], 1), ([9, 1, 3], [1, 0, 1], 1)]
)
def test_check_fails_on_updates_that_compile_again(tpu, monkeypatch, counts, new, code):
    monkeypatch.setattr(tpu["check"], "raw_gradient", lambda *_: ({"w": jnp.ones(3)}, 1.0))
    monkeypatch.setattr(tpu["check"], "first_updates", lambda *_: (counts, new, [9.0, 1.0, 1.0]))
    assert call(monkeypatch, tpu["check"]) == code


def test_the_difference_of_gradients(tpu):
    # The largest difference, 0.5, over the largest entry, 4.
    expected = {"a": jnp.array([1.0, -4.0]), "b": jnp.array([2.0])}
    assert tpu["check"].difference({"a": jnp.array([1.25, -4.0]), "b": jnp.array([1.5])}, expected) == 0.125
    with pytest.raises(ValueError, match="zero everywhere"):
        tpu["check"].difference({"a": jnp.ones(2)}, {"a": jnp.zeros(2)})


def test_compilations_are_counted():
    function = jax.jit(lambda x: x * 3 + 1)
    one, two = jnp.zeros(7), jnp.zeros(9)
    counts = []
    for x in (one, one, two):
        with compilations() as found:
            function(x).block_until_ready()
        counts.append(len(found))
    assert counts == [1, 0, 1]


@pytest.mark.slow
@pytest.mark.quick
def test_bench(tpu, monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, tpu["bench"], "--out", str(tmp_path / "bench.json"), "--updates", "2") == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["updates"] == 2
    # 2 updates of 8 episodes of 2 picks.
    assert math.isclose(found["transitions_per_second"] * found["wall_seconds"], 32)
    assert 0 <= found["input_bound"] <= 1
    whole = found["flop_per_update"] * 2 / found["wall_seconds"] / len(found["devices"])
    assert math.isclose(found["utilisation"] * found["matmul_flops"], whole)
    assert "transitions/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--updates", "0"], "--updates = 0: must be >= 1"),
        (["--matmul-size", "-1"], "--matmul-size = -1: must be >= 0"),
        (["--batch", "-8"], "--batch = -8: must be >= 0"),
    ],
)
def test_bad_settings_are_refused(tpu, monkeypatch, capsys, words, expected):
    assert call(monkeypatch, tpu["bench"], *words) == 64
    assert expected in capsys.readouterr().err


def test_a_batch_that_does_not_divide_is_refused(tpu, monkeypatch, capsys):
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")
    assert call(monkeypatch, tpu["bench"], "--batch", "7") == 64
    assert "does not divide" in capsys.readouterr().err


def test_flop_of_an_encoder(tpu):
    # 3 rows of 5 tokens; 10 weights: 20 FLOP a token; attention 4 x 5 x 4 a layer and token, two layers: 160.
    assert tpu["bench"].encoder_flops(kernels=10, layers=2, width=4, lengths=[5, 5, 5]) == 15 * 180


def test_flop_of_an_encoder_are_most_of_what_xla_counts(tpu):
    config = changed(SMALL, model={"layers": 2, "width": 128, "mlp_width": 512})
    embedder = make_embedder(config, scratch_backbone(config.model, 300))
    ids = jnp.zeros((4, 16), jnp.int32)
    params = jax.eval_shape(embedder.init, jax.random.key(0), ids, ids)
    counted = jax.jit(lambda p: embed_actions(embedder, p, ids)).lower(params).compile().cost_analysis()["flops"]
    # 2 layers of 4 x 128 x 128 and 2 x 128 x 512 weights. XLA also counts norms, softmax, gelu.
    ours = tpu["bench"].encoder_flops(2 * (4 * 128 * 128 + 2 * 128 * 512), 2, 128, [16] * 4)
    assert 0.85 < ours / counted <= 1


def test_flop_of_an_update(tpu):
    subject = tpu["measure"].subject("tiny")
    batch = subject.batches[0]
    episode = jax.jit(subject.learner.collect)(subject.start(), batch)
    # SMALL: one layer, 4 x 32 x 32 + 2 x 32 x 64 = 8192 weights.
    forward = lambda ids: sum(n * (2 * 8192 + 4 * n * 32) for n in (np.asarray(ids) >= 0).sum(-1).reshape(-1).tolist())
    states = [forward(episode.state_ids[:, t]) for t in range(2)]
    distinct = {int(batch.chunk_index[row, pick]) for row, picks in enumerate(episode.picked) for pick in picks}
    picks = forward(batch.chunk_pool_ids[sorted(distinct)])
    expected = 2 * forward(batch.chunk_pool_ids) + sum(states) + states[1] + 3 * (picks + sum(states))
    assert tpu["bench"].model_flops(subject, batch, episode.picked, episode.state_ids) == expected


@pytest.mark.slow
def test_bench_beside_the_reference(tpu, monkeypatch, tmp_path):
    small = tpu["measure"].Reference(1, 32, 16, transitions_per_second=10.0, matmul_flops=1e9)
    monkeypatch.setitem(tpu["measure"].REFERENCES, "reference-small", small)
    assert (
        call(monkeypatch, tpu["bench"], "--preset", "reference-small", "--batch", "8", "--updates", "1", "--out", str(tmp_path / "b")) == 0
    )
    found = json.loads((tmp_path / "b").read_text())
    here = found["transitions_per_second"] / (found["matmul_flops"] * len(found["devices"]))
    assert math.isclose(found["times_reference"], here / 1e-8)
