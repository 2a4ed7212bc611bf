"""Configurations check themselves, and survive JSON unchanged."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from qrag_jax.config import DataConfig, EvalConfig, ModelConfig, QHeadConfig, RLConfig, RunConfig, Stage, TrainConfig
from qrag_jax.config.lengths import context_chunks, format_tokens, parse_tokens
from qrag_jax.config.presets import PRESETS, preset
from qrag_jax.rundir.compilations import leave_products_to_cublas, prepare_compiling


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3"])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_round_trip(name, task):
    config = preset(name, "babilong", task)
    assert config.data.task == task
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("name", "task", "positions"), [("tiny", "niah", "none"), ("minilm", "niah_mq", "none"), ("contriever", "niah", "relative")]
)
def test_needles_have_no_positions_in_our_own_presets(name, task, positions):
    assert preset(name, "ruler", task).qhead.positions == positions


@pytest.mark.parametrize(
    ("name", "task", "gamma", "weight"),
    [("tiny", "niah_mk2", 0.5, 0.1), ("tiny", "niah_mv", 0.99, 0.0), ("tiny", "niah", 0.5, 0.1), ("contriever", "niah_mk2", 0.99, 0.0)],
)
def test_needles_have_a_low_gamma_and_labels_in_the_tiny_preset_unless_four_are_asked_for(name, task, gamma, weight):
    rl = preset(name, "ruler", task).rl
    assert (rl.gamma, rl.supervised_weight) == (gamma, weight)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"preset = 'huge': unknown; known: tiny, minilm"):
        preset("huge", "babilong", "qa1")
    with pytest.raises(ValueError, match=r"preset = 'mini-lm': unknown; .* the folder of a run or of an export; did you mean 'minilm'\?"):
        preset("mini-lm", "babilong", "qa1")


def test_the_largest_budget_is_of_training_and_of_all_tests():
    config = replace(RunConfig(), rl=RLConfig(budget=2), eval=EvalConfig(budget=3))
    assert config.largest_budget == 3
    assert replace(config, rl=RLConfig(budget=5)).largest_budget == 5
    # Tests elsewhere make the paper's number of picks: 2 on HotpotQA, 4 on MuSiQue.
    assert replace(config, eval=EvalConfig(budget=3, benchmarks=("hotpotqa",))).largest_budget == 3
    assert replace(config, eval=EvalConfig(budget=3, benchmarks=("hotpotqa", "musique/2hop"))).largest_budget == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(chunks=0), r"data\.chunks = 0: must be >= 1"),
        (lambda: DataConfig(question_tokens=40, state_tokens=20), r"data\.state_tokens = 20"),
        (lambda: ModelConfig(width=130), r"model\.width = 130"),
        (lambda: ModelConfig(dropout=1.0), r"model\.dropout = 1\.0"),
        (lambda: QHeadConfig(span=20.0), r"qhead\.span = 20\.0"),
        (lambda: QHeadConfig(span=17.5), r"qhead\.span = 17\.5: must be a whole number"),
        (lambda: QHeadConfig(halves=3), r"qhead\.halves = 3"),
        (lambda: RLConfig(alpha=0.0), r"rl\.alpha = 0\.0: must be > 0"),
        (lambda: RLConfig(gamma=1.5), r"rl\.gamma = 1\.5"),
        (lambda: TrainConfig(eval_every=15), r"train\.eval_every = 15: must be a multiple of train\.log_every \(10\)"),
        (lambda: TrainConfig(curriculum=("qa2:40",)), r"train\.curriculum: stage 'qa2:40'"),
        (lambda: TrainConfig(steps=100, curriculum=("qa2:40:100",)), r"shorter than train\.steps"),
        (lambda: EvalConfig(tokens=("4x",)), r"context length '4x'"),
        (lambda: EvalConfig(episodes=1, haystacks=2), r"eval\.haystacks = 2"),
        (lambda: RunConfig(rl=RLConfig(budget=50)), r"rl\.budget = 50: must be <= data\.chunks \(40\)"),
        (lambda: EvalConfig(beam=0), r"eval\.beam = 0: must be >= 1"),
        (lambda: EvalConfig(benchmarks=("musiqe",)), r"eval\.benchmarks = 'musiqe': unknown; known: .*; did you mean 'musique'\?"),
        (lambda: EvalConfig(benchmarks=("babilong/qa9",)), r"eval\.benchmarks = 'babilong/qa9': unknown; known: babilong/qa1"),
    ],
)
def test_bad_values_name_field_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tree: tree["rl"].update(gama=0.9), r"rl: unknown field 'gama'; known: budget, gamma"),
        (lambda tree: tree.update(extra={}), r"configuration: unknown field 'extra'"),
        (lambda tree: tree["rl"].update(gamma="high"), r"rl\.gamma = 'high': must be of type"),
        (lambda tree: tree["rl"].update(budget=True), r"rl\.budget = True"),
        (lambda tree: tree["qhead"].update(positions="polar"), r"qhead\.positions = 'polar'"),
        (lambda tree: tree.update(rl=3), r"rl: must be an object"),
    ],
)
def test_foreign_json_is_refused_by_name(edit, message):
    tree = json.loads(RunConfig().to_json())
    edit(tree)
    with pytest.raises(ValueError, match=message):
        RunConfig.from_json(json.dumps(tree))


def test_context_lengths():
    assert [parse_tokens(text) for text in ("512", "4k", "10m")] == [512, 4_000, 10_000_000]
    assert [format_tokens(n) for n in (512, 4_000, 10_000_000)] == ["512", "4k", "10m"]
    assert [context_chunks(n) for n in (1_000, 4_000, 128_000, 16_000)] == [50, 160, 4_600, 640]


def test_curriculum_stages():
    config = replace(RunConfig(), train=TrainConfig(steps=1000, curriculum=("qa1:30:100", "qa2:40:200")))
    assert config.train.stages(config.data) == [Stage("qa1", 30, 100), Stage("qa2", 40, 300), Stage("qa2", 40, 1000)]
    train = TrainConfig(steps=1000, curriculum=("qa2:40:100:supervised", "qa2:40:200:td"))
    assert [stage.objective for stage in train.stages(config.data)] == ["supervised", "td", None]
    for text in ("qa2:40:100:sft", "qa2:40:100:", "qa2:40:0:td", "supervised:40"):
        with pytest.raises(ValueError, match=rf"train.curriculum: stage '{text}' must be .* with td or supervised, such as qa2:40:700:sup"):
            TrainConfig(curriculum=(text,))


def test_compilations_are_kept_where_the_user_says_or_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "/chosen")
        prepare_compiling()
        assert jax.config.jax_compilation_cache_dir == "/chosen"
        jax.config.update("jax_compilation_cache_dir", None)
        prepare_compiling()
        assert Path(jax.config.jax_compilation_cache_dir).parent == tmp_path / "qrag-jax"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("plugin", "before", "after"),
    [
        (True, "", "--xla_gpu_enable_triton_gemm=false"),
        (True, "--xla_force_host_platform_device_count=4", "--xla_force_host_platform_device_count=4 --xla_gpu_enable_triton_gemm=false"),
        (True, "--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        (False, "", ""),
    ],
)
def test_triton_makes_no_products_on_gpus_unless_the_user_asks(plugin, before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: (plugin and name == "jax_cuda13_plugin") or None)
    leave_products_to_cublas()
    assert os.environ["XLA_FLAGS"] == after


def test_tiles_hold_a_token():
    with pytest.raises(ValueError, match=r"model\.tile_tokens = 0: must be >= 1"):
        ModelConfig(tile_tokens=0)


def test_attention_is_one_of_three():
    text = preset("tiny", "babilong", "qa1").to_json().replace('"attention": "auto"', '"attention": "flash"')
    with pytest.raises(ValueError, match=r"attention.*'flash'.*auto.*plain.*fused"):
        RunConfig.from_json(text)


@pytest.mark.parametrize(
    ("name", "benchmark", "task", "order", "schedule", "random_updates"),
    [
        # 400 random transitions, in updates of 96, 48 and 96.
        ("e5", "hotpotqa", "all", "picked", "quarter_cosine", 5),
        ("gte", "hotpotqa+musique", "all", "picked", "linear", 9),
        ("contriever", "babilong", "qa2", "document", "linear", 5),
        ("contriever", "ruler", "niah_mk3", "picked", "linear", 5),
    ],
)
def test_the_papers_presets_follow_the_reference_code(name, benchmark, task, order, schedule, random_updates):
    config = preset(name, benchmark, task)
    assert (config.data.state_order, config.data.chunk_text) == (order, "reference")
    assert (config.optim.schedule, config.rl.random_updates) == (schedule, random_updates)
    for ours in ("tiny", "minilm"):
        data = preset(ours, benchmark, task).data
        assert (data.state_order, data.chunk_text) == ("document", "title. text")


def test_the_qwen3_preset_follows_the_reference_code():
    config = preset("qwen3-embedding", "hotpotqa+musique", "all")
    assert (config.model.embedder, config.model.normalize, config.model.divisor) == ("qwen3-embedding", True, 1.0)
    assert (config.optim.learning_rate, config.optim.end_ratio, config.optim.weight_decay, config.optim.warmup) == (5e-5, 0.0, 1e-2, 1000)
    assert (config.rl.alpha, config.rl.alpha_end, config.rl.gamma, config.rl.lam, config.rl.tau) == (0.005, 0.005, 0.99, 0.65, 0.02)


@pytest.mark.parametrize(
    ("name", "benchmark", "transitions"),
    [
        # The paper: 64 to 128 for Contriever, 96 for E5, 32 for GTE, which 8 devices cannot make of episodes of 6 picks.
        ("contriever", "babilong", 96),
        ("contriever", "ruler", 96),
        ("e5", "hotpotqa", 96),
        ("e5", "musique", 96),
        ("gte", "hotpotqa+musique", 48),
        ("qwen3-embedding", "hotpotqa+musique", 48),
    ],
)
def test_eight_devices_of_16_gb_can_share_the_papers_updates(name, benchmark, transitions):
    config = preset(name, benchmark)
    assert config.optim.batch * config.rl.budget == transitions
    assert config.optim.batch % 8 == 0
    assert (config.model.compute_dtype, config.model.remat, config.model.tile_tokens) == ("bfloat16", True, 8192)
    assert config.train.shard_state == "auto"


@pytest.mark.parametrize("name", ["tiny", "minilm"])
def test_presets_for_cpus_compute_in_float32_in_small_tiles(name):
    model = preset(name, "babilong").model
    assert (model.compute_dtype, model.remat, model.tile_tokens) == ("float32", False, 512)


def test_every_field_has_a_help_text():
    """A string below each field is what --help and the editors show; tyro reads it from the source, and so does this test."""
    for kind in (RunConfig, Stage, *(field.default_factory for field in dataclasses.fields(RunConfig))):
        (body,) = [node.body for node in ast.parse(textwrap.dedent(inspect.getsource(kind))).body]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and kind is not RunConfig:
                text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
                assert len(text) > 10, f"{kind.__name__}.{field.target.id}"
