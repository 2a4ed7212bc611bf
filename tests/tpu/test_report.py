"""tpu/report.py: its budget of time, what it leaves when it is cut short, its figures; and, in the slow tier, all of it at small sizes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.models.embedder import make_embedder
from qrag_jax.models.registry import encoder_template
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.supervised import make_learner
from qrag_jax.train.model import Model
from tests.conftest import ROOT
from tests.support.processes import environment
from tests.support.small import SMALL, small_batch, small_tokenizer

NAMES = ("report", "command", "summary", "section", "sizes", "kernels", "bench", "check", "measure")


@pytest.fixture
def tpu(monkeypatch):
    """The modules of tpu/, which find each other as scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "tpu"))
    import kernels
    import report
    import section
    import sizes
    import summary

    yield SimpleNamespace(report=report, summary=summary, section=section, sizes=sizes, kernels=kernels)
    for name in NAMES:
        sys.modules.pop(name, None)


class Clock:
    """Time that passes only where a section spends it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_plan_has_every_section_once(tpu):
    assert sorted(section.name for section in tpu.report.PLAN) == sorted(tpu.section.SECTIONS)


def test_the_report_is_written_after_every_section_whatever_becomes_of_it(tpu, tmp_path):
    report, clock, seen = tpu.report, Clock(), []
    plan = [report.Section(name, 10) for name in ("good", "bad", "slow", "last")]

    def run(section, seconds):
        # What lies there while a section runs: the sections before it.
        file = tmp_path / "report.json"
        seen.append([part["name"] for part in json.loads(file.read_text())["sections"]] if file.exists() else [])
        clock.now += 5
        if section.name == "bad":
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        if section.name == "slow":
            return report.Result("slow", "stopped", 5, "not finished after 5 s", {"half": 1})
        return report.Result(section.name, "done", 5, None, {"figure": 2})

    report.run_sections(plan, 1, run, lambda results: report.write_report(tmp_path, 1, True, results), clock)
    assert seen == [[], ["good"], ["good", "bad"], ["good", "bad", "slow"]]
    found = {part["name"]: part for part in json.loads((tmp_path / "report.json").read_text())["sections"]}
    assert [part["status"] for part in found.values()] == ["done", "failed", "stopped", "done"]
    assert found["bad"]["reason"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert found["bad"]["seconds"] == 5
    assert found["slow"]["values"] == {"half": 1}
    page = (tmp_path / "report.md").read_text()
    assert "| bad | failed | 5 | RuntimeError: RESOURCE_EXHAUSTED: out of memory |" in page


def test_sections_that_do_not_fit_are_skipped_and_shorter_ones_run(tpu):
    report, clock, limits = tpu.report, Clock(), {}

    def run(section, seconds):
        limits[section.name] = seconds
        clock.now += 50
        return report.Result(section.name, "done", 50)

    plan = [report.Section("first", 40), report.Section("long", 80), report.Section("short", 30), report.Section("none", 30)]
    results = report.run_sections(plan, 2, run, lambda _: None, clock)
    # 120 s: the first gets twice its 40 s; 70 are left, which are too few for "long" and more than twice 30 s; then 20 are left.
    assert limits == {"first": 80, "short": 60}
    assert [result.status for result in results] == ["done", "skipped", "done", "skipped"]
    assert results[1].reason == "needs about 80 s, 70 s were left; give more --minutes, or --only long"


def test_with_more_minutes_sections_may_take_longer(tpu):
    report, limits = tpu.report, []
    run = lambda section, seconds: limits.append(seconds) or report.Result(section.name, "done")
    report.run_sections([report.Section("one", 30)], 40, run, lambda _: None, Clock())
    # Twice 30 s, four times over: 40 minutes, not 10.
    assert limits == [240]


def fake_section(tpu, monkeypatch, tmp_path, code: str) -> None:
    """tpu/section.py replaced by ``code``, which has its words in sys.argv."""
    (tmp_path / "section.py").write_text(code)
    monkeypatch.setattr(tpu.report, "__file__", str(tmp_path / "report.py"))


WRITE = "import json, sys, time, pathlib\nout = pathlib.Path(sys.argv[3], sys.argv[1] + '.json')\n"


@pytest.mark.parametrize(
    ("code", "status", "reason", "values"),
    [
        ("out.write_text(json.dumps({'values': {'a': 1}, 'error': None}))", "done", None, {"a": 1}),
        ("out.write_text(json.dumps({'values': {'a': 1}, 'error': 'E: no'})); sys.exit(1)", "failed", "E: no", {"a": 1}),
        ("sys.exit('dead')", "failed", "exit code 1; x.log ends with: dead | ", {}),
        ("out.write_text(json.dumps({'values': {'a': 1}, 'error': None})); time.sleep(60)", "stopped", "not finished after 3 s", {"a": 1}),
    ],
)
def test_what_became_of_a_section(tpu, monkeypatch, tmp_path, code, status, reason, values):
    fake_section(tpu, monkeypatch, tmp_path, WRITE + code)
    # What an earlier report left there is not this section's.
    (tmp_path / "x.json").write_text('{"values": {"old": 1}, "error": null}')
    found = tpu.report.run_apart(tmp_path, os.environ, False, tpu.report.Section("x", 1), 3.0)
    assert (found.status, found.reason, found.values) == (status, reason, values)


def test_the_variables_of_a_section(tpu):
    found = tpu.report.environment({"JAX_PLATFORMS": "cuda", "PYTHONPATH": "/mine", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"})
    assert found["JAX_PLATFORMS"] == "cuda,cpu"
    assert found["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"
    assert found["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert "JAX_DISABLE_MOST_OPTIMIZATIONS" not in found
    assert "JAX_PLATFORMS" not in tpu.report.environment({})
    assert tpu.report.environment({"JAX_PLATFORMS": "cuda"}, "/cache")["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--minutes", "0"], "--minutes = 0.0: must be > 0"),
        (["--minutes", "nan"], "--minutes = nan: must be > 0"),
        (["--minute"], "expected one argument; "),
        (["--fast"], "unrecognized arguments: --fast; "),
        (["--only", "speed"], "--only speed: no such section; known: machine, speed-tiny"),
    ],
)
def test_bad_settings_are_refused(tpu, tmp_path, capsys, words, expected):
    assert tpu.report.main(["--out", str(tmp_path / "report"), *words]) == 64
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_made_is_refused(tpu, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert tpu.report.main(["--out", str(tmp_path / "file")]) == 64
    assert "is a file; name a folder" in capsys.readouterr().err
    assert tpu.report.main(["--out", str(tmp_path / "file" / "below")]) == 64
    assert capsys.readouterr().err == f"error: {tmp_path / 'file' / 'below'}: Not a directory; choose another place\n"


def test_shares_of_the_hardware(tpu):
    speed = {"flops": 100e12, "transitions_per_second": 10.0, "input_bound": 0.25, "peak_bytes": 3e9, "planned_bytes": None}
    values = {"parameters": 110e6, "bfloat16": speed, "float32": speed}
    machine = {
        "devices": ["cuda:0"],
        "kind": "NVIDIA H100 80GB HBM3",
        "platform": "gpu",
        "versions": {"jax": "0.10.2"},
        "matmul_flops": {"bfloat16": 500e12},
    }
    sections = [
        {"name": "machine", "status": "done", "seconds": 1, "reason": None, "values": machine},
        {"name": "speed-contriever", "status": "done", "seconds": 1, "reason": None, "values": values},
    ]
    shared = tpu.summary.with_shares(sections)
    found = shared[1]["values"]
    # 100 of the 989.4 TFLOP/s that are published, of the 500 that were measured; float32 was not measured.
    assert found["bfloat16"]["mfu"] == pytest.approx(0.10107, rel=1e-4)
    assert found["bfloat16"]["utilisation"] == 0.2
    assert found["float32"]["utilisation"] is None
    assert tpu.summary.with_shares(sections[1:])[0]["values"]["bfloat16"]["mfu"] is None
    page = tpu.summary.markdown(shared, False)
    assert "| contriever | bfloat16 | 110.0 M | 10.0 | 10.1% | 20.0% | 25.0% | 3.00 | - |" in page
    assert "nothing to compare" in page
    assert "Attention" not in page


def test_published_sizes(tpu):
    """Parameters of one encoder: 109 M is BERT base without its pooler, 560 M XLM-R large, 22.6 M MiniLM-L6."""
    count = lambda name: sum(x.size for x in jax.tree.leaves(encoder_template(tpu.sizes.FULL.networks[name])))
    # BERT: V D + P D + types D + 2 D; a layer 4 (D^2 + D) + 2 D F + F + D + 4 D.
    bert = lambda v, d, layers, f, p, types: (v + p + types + 2) * d + layers * (4 * (d * d + d) + 2 * d * f + f + d + 4 * d)
    assert count("contriever") == bert(30522, 768, 12, 3072, 512, 2) == 108_891_648
    assert count("e5") == bert(250002, 1024, 24, 4096, 514, 1) == 558_840_832
    assert count("minilm") == bert(30522, 384, 6, 1536, 512, 2) == 22_565_376


def test_every_full_configuration_is_valid(tpu):
    sizes = tpu.sizes
    for name, network in sizes.FULL.networks.items():
        config = sizes.speed_config(name, sizes.FULL)
        assert make_embedder(config, network).config.width == network.width
        assert config.train.devices == 1
    for name in sizes.FULL.steps:
        config = sizes.training_config(name, sizes.FULL)
        assert config.model.embedder == "tiny"  # from random weights: nothing is downloaded
        assert config.model.layers == sizes.FULL.networks[name].num_hidden_layers
    assert sizes.training_config("contriever", sizes.FULL).model.compute_dtype == "bfloat16"


def test_attentions_agree_on_packed_rows_and_one_that_fails_is_noted(tpu, monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel")

    real = tpu.kernels.attentions
    monkeypatch.setattr(tpu.kernels, "attentions", lambda: {**real(), "broken": broken})
    found = list(tpu.kernels.compare_attentions({"packed": (2, 8, 4)}, 2, 8, ("float32",)))
    assert [row["attention"] for row in found] == ["plain", "xla", "broken"]
    assert found[0]["difference"] == 0
    assert 0 <= found[1]["difference"] < 1e-5
    assert found[2]["error"] == "RuntimeError: no kernel"
    assert tpu.kernels.packed_mask(1, 4, 2)[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # Q K^T of one head, 3 x 3 from vectors of 5: 90 FLOP; A V as many; twice more in the backward pass.
    assert tpu.kernels.attention_flops(1, 3, 1, 5) == 3 * 180


def test_a_section_keeps_what_it_measured_before_it_failed(tpu, monkeypatch, tmp_path):
    def section(job):
        yield {"first": job.seconds}
        yield {"second": 2}
        raise ArithmeticError("third")

    monkeypatch.setitem(tpu.section.SECTIONS, "machine", section)
    assert tpu.section.main(["machine", "--out", str(tmp_path), "--seconds", "7"]) == 1
    found = json.loads((tmp_path / "machine.json").read_text())
    assert found == {"values": {"first": 7, "second": 2}, "error": "ArithmeticError: third"}


def test_random_states_grow_by_a_pick(tpu):
    layout = StateLayout.make(SMALL.data, SMALL.rl.budget, small_tokenizer())
    batch = jax.tree.map(np.asarray, small_batch())
    picked, states = tpu.section.random_states(SimpleNamespace(learner=SimpleNamespace(config=SMALL, layout=layout)), batch)
    assert picked.shape == (SMALL.optim.batch, SMALL.rl.budget)
    assert all(len(set(row)) == SMALL.rl.budget for row in picked.tolist())
    lengths = (states >= 0).sum(-1)
    assert (np.diff(lengths, axis=1) > 0).all()
    assert (lengths[:, 0] == (batch.question_ids >= 0).sum(-1)).all()


def test_another_type_has_the_same_weights(tpu):
    backbone, params = tpu.sizes.SMOKE.networks["tiny"], {"params": {}}
    model = Model(backbone, make_embedder(SMALL, backbone), small_tokenizer(), params)
    learner = make_learner(model.embedder, SMALL, StateLayout.make(SMALL.data, SMALL.rl.budget, small_tokenizer()))
    it = tpu.section.Subject("small", model, learner, None, None, ())
    other = it.computing_in("bfloat16")
    assert other.model.params is params
    assert other.learner.config.model.compute_dtype == "bfloat16"
    assert other.learner.embedder.dtype == other.model.embedder.dtype == jnp.bfloat16
    assert it.learner.embedder.dtype == jnp.float32
    assert other.learner.layout == learner.layout


@pytest.mark.slow
@pytest.mark.processes
def test_a_report_on_a_cpu(tmp_path):
    # One section of each kind: at the smallest sizes, those left out are the same networks once more.
    sections = ["machine", "speed-tiny", "tiles", "attention", "index", "train-tiny"]
    command = [
        sys.executable,
        str(ROOT / "tpu" / "report.py"),
        "--cpu-smoke",
        "--minutes",
        "30",
        "--out",
        str(tmp_path),
        "--only",
        *sections,
    ]
    done = subprocess.run(command, env=environment() | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, capture_output=True, text=True)
    found = json.loads((tmp_path / "report.json").read_text())
    parts = {part["name"]: part for part in found["sections"]}
    assert done.returncode == 0, [(name, part["reason"]) for name, part in parts.items()]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(sections, "done")
    for dtype in ("bfloat16", "float32"):
        speed = parts["speed-tiny"]["values"][dtype]
        assert speed["transitions_per_second"] > 0
        assert speed["utilisation"] > 0
        assert 0 <= speed["input_bound"] <= 1
        assert speed["compilations"] == 0
        assert speed["planned_bytes"] > 0
        assert speed["mfu"] is None  # nobody publishes that of a CPU
    assert {row["attention"] for row in parts["attention"]["values"]["attention"]} == {"plain", "xla"}
    assert parts["index"]["values"]["index_chunks"] == 300
    assert parts["index"]["values"]["search_chunks"] == 1000
    training = parts["train-tiny"]["values"]
    assert training["updates"] >= 2
    assert (tmp_path / training["curves"]).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / training["metrics"]).read_text().count('"validation"') >= 2
    assert "qa2 from random weights" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.processes
def test_sigterm_ends_the_section_as_well(tpu, monkeypatch, tmp_path):
    """The machine's process must not go on with the accelerator when the report is stopped."""
    for name in ("report.py", "command.py", "summary.py"):
        (tmp_path / name).write_text((ROOT / "tpu" / name).read_text())
    (tmp_path / "section.py").write_text(WRITE + "import os; out.with_name('pid').write_text(str(os.getpid())); time.sleep(600)")
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(tmp_path / "report.py"), "--out", str(out)], env=variables, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / "pid").exists() or not (out / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((out / "pid").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
