"""How much memory a released checkpoint takes to load: that of its two encoders, of the nine copies that its file holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from qrag_jax.export.hub import load_model
from qrag_jax.export.reference_layout import ACTION, STATE
from qrag_jax.models import pickles
from qrag_jax.models.bert import BertConfig
from qrag_jax.models.registry import encoder_template, encoder_tensors
from tests.support.reference import write_small_reference

ROOT = Path(__file__).resolve().parents[2]
# e5's share of word vectors in the weights.
BACKBONE = BertConfig(20_000, 256, 6, 4, 1024, 64)

# VmHWM, which clear_refs resets, and not ru_maxrss, which begins with that of the process that started this one.
CHILD = """
import json, sys
from pathlib import Path
import jax
from qrag_jax.export.hub import load_model

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

small, large = sys.argv[1:]
load_model(small)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
params = load_model(large).params
print(json.dumps([peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params))]))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return write_small_reference(tmp_path_factory.mktemp("small") / "released")


def write_large(small: Path, folder: Path) -> Path:
    """A checkpoint as training leaves one: critic, policy, slow copies, and both moments of the optimiser."""
    import torch

    shutil.copytree(small, folder)
    (folder / "base_model/config.json").write_text(json.dumps(BACKBONE.to_hf()))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), encoder_template(BACKBONE))
    encoder = encoder_tensors(BACKBONE, params)
    copy = lambda prefix: {prefix + name: torch.from_numpy(tensor).clone() for name, tensor in encoder.items()}
    moments = {i: {"exp_avg": copy(""), "exp_avg_sq": copy("")} for i in range(2)}
    tree = {"critic": copy(STATE) | copy(ACTION), "policy": copy(STATE), "v_net_target": copy(STATE), "action_embed_target": copy(ACTION)}
    torch.save(tree | {"critic_optim": {"state": moments}, "scheduler": {"last_epoch": 3}}, folder / "model_best.pt")
    return folder


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_the_two_encoders(small: Path, tmp_path: Path) -> None:
    large = write_large(small, tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(small), str(large)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    grown, encoders = json.loads(done.stdout)
    assert (large / "model_best.pt").stat().st_size > 4.4 * encoders, "nine copies of one encoder"
    assert grown < 1.3 * encoders, f"{grown / encoders:.2f} times the two encoders"


def test_only_the_two_encoders_are_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default tier's share of the above: which tensors are read, and that the file is mapped."""
    import torch

    read: set[tuple[str, ...]] = set()
    maps: list[bool] = []
    real_read, real_load = pickles._TorchFile.read, torch.load
    monkeypatch.setattr(pickles._TorchFile, "read", lambda self, keys: read.add(keys) or real_read(self, keys))
    monkeypatch.setattr(torch, "load", lambda *args, **options: maps.append(options["mmap"]) or real_load(*args, **options))
    load_model(small)
    assert {keys[0] for keys in read} == {"critic"}
    assert all(maps)
    prefixes = (STATE, ACTION, "state_embed.cls_token", "state_embed.sep_token", "action_embed.rotary_emb.freqs")
    assert all(keys[1].startswith(prefixes) and "pooler" not in keys[1] for keys in read)
