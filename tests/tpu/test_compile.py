"""tpu/compile.py: what it reads from compiled programs, its records, what it refuses; and, in the slow tier, real compilations."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from types import SimpleNamespace

import jax
import pytest

from qrag_jax.config.presets import PRESETS, preset
from tests.conftest import ROOT
from tests.support.processes import environment

NAMES = ("abstract", "collectives", "command", "compile", "fits", "sizes", "topology")
GIB = 2**30


@pytest.fixture
def tpu(monkeypatch):
    """The modules of tpu/, which find each other as scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "tpu"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name, None)


def record(tpu, **values):
    """A record of an update that takes 3 GiB of 16."""
    plan = {"params": GIB // 4, "target": GIB // 4, "moments": GIB // 2, "temporaries": GIB, "other": GIB}
    given = {"topology": "v5e:2x4", "kind": "TPU v5 lite", "devices": 8, "compiler": "libtpu 1", "effort": "effort -1", "jax": "0"}
    given |= {"date": "2026-01-01", "preset": "e5", "benchmark": "hotpotqa", "task": "all", "mode": "sharded", "layers": 24}
    given |= {"of_layers": 24, "parameters": 1_117_700_000, "pool_rows": 544, "seconds": 60.0, "available": 16 * GIB, "fits": True}
    given |= {"needs": 3 * GIB, "plan": plan, "flops": 2e12, "bytes_accessed": 3e9}
    given["settings"] = {f"{section}.{name}": getattr(getattr(preset("e5"), section), name) for section, name in tpu.compile.SETTINGS}
    given["collectives"] = ({"kind": "all-gather", "count": 2, "bytes": 3 * 2**20},)
    return tpu.fits.Found(**given | values)


def test_collectives_are_counted_with_the_bytes_of_their_results(tpu):
    text = """
      %all-gather.1 = f32[8,128]{1,0} all-gather(f32[1,128]{1,0} %p), dimensions={0}
      ROOT %ar = (bf16[16]{0}, f32[]) all-reduce(%a, %b), to_apply=%add
      %s = (f32[4]{0}, f32[32]{0}) all-gather-start(f32[4]{0} %q), dimensions={0}
      %d = f32[32]{0} all-gather-done(%s)
      %rs = s8[3,5]{1,0} reduce-scatter(%c), dimensions={0}
      %add.7 = f32[8] add(%all-gather.1, %x)
    """
    found = [(one.kind, one.count, one.bytes) for one in tpu.collectives.collectives(text)]
    # 8 * 128 * 4 + 32 * 4; 16 * 2 + 4; 3 * 5 * 1.
    assert found == [("all-gather", 2, 4096 + 128), ("all-reduce", 1, 36), ("reduce-scatter", 1, 15)]
    assert tpu.collectives.collectives("%x = f32[2] add(%a, %b)") == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("the total memory required for HLO temporaries (200.00G) exceeds available HBM (15.75G)", 200 * GIB),
        ("Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm.", round(17.25 * GIB)),
        ("Used 512.0M of 256.0M hbm", 512 * 2**20),
        ("something else", None),
    ],
)
def test_a_refusal_tells_the_size(tpu, text, size):
    assert tpu.compile.refused_bytes(text) == size


def test_a_text_tells_whether_it_fits(tpu):
    text = tpu.fits.describe(record(tpu))
    assert "fits: 3.00 GiB of 16.00 GiB" in text
    assert "2 all-gather (3.0 MiB)" in text
    refused = record(
        tpu, fits=False, needs=17 * GIB, plan=None, refused="the state alone is too large; nothing was compiled", at_least=True
    )
    assert "does not fit: more than 17.00 GiB of 16.00 GiB (the state alone is too large" in tpu.fits.describe(refused)
    assert "ONLY 2 of its 24 layers" in tpu.fits.describe(record(tpu, layers=2))


def test_records_are_kept_in_one_file_and_replaced_by_key(tpu, tmp_path):
    fits, first = tpu.fits, record(tpu)
    fits.store(tmp_path, first)
    fits.store(tmp_path, record(tpu, mode="replicated", fits=False, plan=None, needs=17 * GIB, at_least=True))
    fits.store(tmp_path, replace(first, needs=4 * GIB))
    rows = fits.read(tmp_path / fits.FILE)
    assert [(row.mode, row.needs) for row in rows] == [("replicated", 17 * GIB), ("sharded", 4 * GIB)]
    assert json.loads((tmp_path / fits.FILE).read_text())["schema"] == 1
    table = (tmp_path / fits.TABLE).read_text().splitlines()
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert "**no**" in table[2]
    assert "yes" in table[3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "memory.json"),
        ('{"schema": 2, "rows": []}', "schema 2"),
        ('{"rows": 1}', "not a file of"),
        ('{"schema": 1, "rows": [{}]}', "not a file"),
    ],
)
def test_a_foreign_file_is_refused(tpu, tmp_path, text, says):
    (tmp_path / "memory.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        tpu.fits.store(tmp_path, record(tpu))
    assert (tmp_path / "memory.json").read_text() == text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--topology", "v5e"), "--topology = v5e: not known; use a TPU slice such as v5e:2x4"),
        (("--topology", "cpu:0"), "--topology = cpu:0: not known"),
        (("--topology", "v5e:2x4", "--effort", "2"), "--effort = 2.0: must be in -1..1"),
        (("--topology", "v5e:2x4", "--layers", "-1"), "--layers = -1"),
        (("--topology", "v5e:2x4", "--out", str(ROOT / "README.md")), "README.md: is a file; name a folder"),
        (("--topology", "v5e:2x4"), "needs libtpu, which is not installed; pip install 'jax[tpu]'"),
    ],
)
def test_bad_options_are_refused_in_one_line(tpu, monkeypatch, capsys, words, says):
    monkeypatch.setattr(tpu.topology.importlib.util, "find_spec", lambda name: None)
    assert tpu.compile.main(["--preset", "e5", *words]) == 64
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1


def options(**values):
    given = {"preset": "e5", "benchmark": None, "task": None, "mode": "replicated", "data_dir": None}
    return Namespace(**given | values)


def devices(count, name="v5e:2x4"):
    return SimpleNamespace(name=name, devices=(None,) * count, is_tpu=name.startswith("v"))


def test_settings_that_do_not_go_together_are_refused(tpu):
    settings = tpu.compile.settings
    with pytest.raises(ValueError, match=r"--mode sharded: cpu:1 is one device"):
        settings(options(mode="sharded"), devices(1, "cpu:1"))
    with pytest.raises(ValueError, match=r"optim\.batch = 8: does not divide over 16 devices"):
        settings(options(preset="gte"), devices(16))
    with pytest.raises(ValueError, match="preset = 'e6': unknown"):
        settings(options(preset="e6"), devices(8))
    assert settings(options(mode="sharded"), devices(8)).train.shard_state == "full"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_has_shapes_and_nothing_is_allocated(tpu, name):
    config = preset(name, "hotpotqa")
    before = jax.live_arrays()  # held, so that those of other tests cannot be collected meanwhile
    _, state = tpu.abstract.make_abstract(config, 1)
    batch = tpu.abstract.batch_shapes(config, 8)
    assert {id(array) for array in jax.live_arrays()} == {id(array) for array in before}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((state.params, asdict(batch))))
    assert batch.chunk_pool_ids.shape[0] % 8 == 0
    assert batch.chunk_pool_ids.shape[0] >= config.optim.batch * 10  # HotpotQA: ten paragraphs each
    assert batch.question_ids.shape == (config.optim.batch, config.data.question_tokens)


def compile_tiny(tmp_path, topology, mode):
    command = [sys.executable, "tpu/compile.py", "--preset", "tiny", "--topology", topology, "--mode", mode, "--out", str(tmp_path)]
    variables = environment() | {"PYTHONPATH": f"{ROOT}:{environment().get('PYTHONPATH', '')}"}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    "topology",
    ["cpu:8", pytest.param("v5e:2x4", marks=pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"))],
)
def test_the_tiny_preset_compiles_in_both_modes(tmp_path, topology):
    for mode in ("replicated", "sharded"):
        done = compile_tiny(tmp_path, topology, mode)
        assert done.returncode == 0, done.stdout + done.stderr
    whole, parts = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert (whole["mode"], parts["mode"]) == ("replicated", "sharded")
    assert whole["fits"] is (None if topology == "cpu:8" else True)
    for name in ("params", "target", "moments"):
        # Scales, biases and the step stay whole.
        assert parts["plan"][name] < whole["plan"][name] / 6
    assert whole["plan"]["temporaries"] > whole["plan"]["params"]
    assert {one["kind"] for one in whole["collectives"]} >= {"all-reduce"}
    assert {one["kind"] for one in parts["collectives"]} >= {"all-gather", "reduce-scatter"}
