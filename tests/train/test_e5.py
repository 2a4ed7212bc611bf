"""The paper's preset e5 from training to the reloaded retriever, shrunk only in the size of its encoder: an XLM-R of 2 layers, 32 wide."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.cli import main
from qrag_jax.data import load
from qrag_jax.models.folder import write_folder
from qrag_jax.models.registry import encoder_template
from qrag_jax.models.tokenizer import train_wordpiece
from qrag_jax.models.xlm_roberta import XlmRobertaConfig
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rundir.checkpoint import saved_steps
from tests.support.processes import start_python
from tests.support.runs import last_state, records, wait_until

EPISODES = "episodes/hotpotqa-all.jsonl"
NAMES = ("Ostrel", "Grenn", "Lorne", "Sund", "Brask", "Ilm", "Holm", "Pell", "Finn", "Varr")


def questions(split: str, count: int) -> list[dict[str, object]]:
    """Two of ten paragraphs answer: where the person lives, and the river of that town. Half of the paragraphs are long."""

    def one(n: int) -> dict[str, object]:
        name = lambda k: f"{NAMES[(n + k) % 10]} {split}{n}"
        towns = [
            [f"{name(k)} town", [f"{name(k)} town lies on the river {name(k + 3)}.", " It has a fair." * 40 * (k % 2)]] for k in range(9)
        ]
        person = [f"Ada {n}", [f"Ada {n} lives in {name(n % 9)} town."]]
        return {
            "_id": f"{split}{n}",
            "question": f"On which river does Ada {n} live?",
            "answer": name(n % 9 + 3),
            "type": "bridge",
            "context": [*towns[: n % 10], person, *towns[n % 10 :]],
            "supporting_facts": [[person[0], 0], [towns[n % 9][0], 0]],
        }

    return [one(n) for n in range(count)]


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """The command without its run directory: data, encoder, and fewer updates; all else is the preset's."""
    files = {"hotpot_fit.json": questions("fit", 80), "hotpot_eval.json": questions("eval", 12)}
    (tmp_path / "data" / "hotpotqa").mkdir(parents=True)
    for name, found in files.items():
        (tmp_path / "data" / "hotpotqa" / name).write_text(json.dumps(found))
    texts = [" ".join(parts) for found in files["hotpot_fit.json"] for _, parts in found["context"]]  # type: ignore[attr-defined]
    tokenizer = train_wordpiece([*texts, *(str(found["question"]) for found in files["hotpot_fit.json"])], 400)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = XlmRobertaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=514, **size)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (draw.standard_normal(leaf.shape) * 0.2).astype(np.float32), encoder_template(config))
    write_folder(tmp_path / "encoder", config, params, tokenizer, pooling="mean", divisor=1.0, max_tokens=512)
    return (
        *("--preset", "e5", "--data-dir", str(tmp_path / "data"), "--model.embedder", str(tmp_path / "encoder"), "--train.devices", "1"),
        *("--train.steps", "6", "--train.log-every", "1", "--train.eval-every", "2", "--train.checkpoint-every", "2"),
        *("--train.eval-episodes", "4"),
    )


@pytest.mark.slow
@pytest.mark.processes
def test_train_kill_resume_evaluate_export_reload(words: tuple[str, ...], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start_python("-m", "experiments.hotpotqa", *words, "--run-dir", str(killed))
    wait_until(lambda: saved_steps(killed)[:1] >= [2], process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for run_dir in (killed, whole):
        assert main("hotpotqa", "", [*words, "--run-dir", str(run_dir)]) == 0

    # Killed and resumed, or not: the same.
    assert records(killed) == records(whole)
    assert [r["step"] for r in records(whole) if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    state, other = last_state(whole), last_state(killed)
    assert all(np.array_equal(other[name], value) for name, value in state.items())
    assert (killed / EPISODES).read_bytes() == (whole / EPISODES).read_bytes()

    # What was trained is the paper's run, but for the encoder's size.
    stored = json.loads((whole / "export" / "qrag.json").read_text())["config"]
    assert (stored["data"]["state_order"], stored["data"]["chunk_text"], stored["data"]["chunk_tokens"]) == ("picked", "reference", 220)
    assert (stored["qhead"]["positions"], stored["rl"]["budget"], stored["optim"]["schedule"]) == ("none", 2, "quarter_cosine")

    # Evaluated again, and from an export that was moved: the same picks.
    again = tmp_path / "again"
    assert evaluate.main([str(whole), "--run-dir", str(again)]) == 0
    assert (again / EPISODES).read_bytes() == (whole / EPISODES).read_bytes()
    shutil.move(whole / "export", tmp_path / "moved")
    moved = Retriever.from_pretrained(tmp_path / "moved")
    examples = list(load(moved.config.data, "test", seed=0, haystacks=1))
    expected = {one["id"]: one["picked"] for one in map(json.loads, (again / EPISODES).read_text().splitlines())}
    found = {example.id: list(path.picked) for example, path in zip(examples, moved.run(examples, 2), strict=True)}
    assert found == expected
    assert len(found) == 12
