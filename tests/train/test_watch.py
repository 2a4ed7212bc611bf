"""What watches a run changes nothing in it; and a run works in a thread."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.config import RunConfig
from qrag_jax.config.watch import Watch
from qrag_jax.train import model, run
from tests.support.runs import assert_same_run


def test_updates_that_are_not_made_cannot_be_profiled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^profile = '5:9': must end at update 8 or before, the last one \(train\.steps\)$"):
        run(RunConfig.from_json('{"train": {"steps": 8}}'), tmp_path, watch=Watch(profile="5:9"))
    assert list(tmp_path.iterdir()) == []


def test_a_reward_of_ones_own_is_given_as_a_function(tmp_path: Path) -> None:
    config, own = RunConfig(), RunConfig.from_json('{"rl": {"reward": "own"}}')
    with pytest.raises(ValueError, match=r"^rl\.reward = 'own': no function was given; 'own' and qrag_jax\.train\.run\("):
        run(own, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^rl\.reward = 'support': a function was given"):
        run(config, tmp_path / "run", reward=lambda picked, support: 1.0 * support[picked])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.quick
def test_a_watched_run_in_a_thread_is_the_same_run(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "VOCABULARY_EXAMPLES", 64)
    config = RunConfig.from_json((whole / "config.json").read_text())
    rows: list[Any] = []
    watch = Watch(track=("tensorboard", "wandb"), profile="12:13")
    thread = threading.Thread(target=lambda: rows.extend(run(config, tmp_path / "run", watch=watch)))
    thread.start()
    thread.join()
    assert len(rows) == 1
    assert_same_run(tmp_path / "run", whole)
    said = capsys.readouterr().out
    for expected in ("devices: 1 x cpu\n", "compiling the update for qa1", "compiled in ", "updates 12 to 13 are recorded"):
        assert expected in said
    assert [f"validation after update {step}: Fact EM " in said for step in (0, 10, 20, 30, 40)] == [True] * 5
    (trace,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/context_*.png"))
