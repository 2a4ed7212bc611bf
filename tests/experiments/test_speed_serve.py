"""``python -m experiments.speed.serve``: what it refuses, what it takes for wrong, and the whole at tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.speed.load import Asker, Outcome
from experiments.speed.serve import main
from experiments.speed.serve_report import markdown


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("--clients", "0"), "--clients = 0: give one or more numbers of 1 or more"),
        (("--seconds", "0"), "--seconds = 0: must be above 0"),
        (("--budget", "0"), "--budget = 0: must be 1 or more"),
        (("--questions", "0"), "--questions = 0: must be 1 or more"),
        (("--chunks", "many"), "--chunks = many: must be a positive number such as 400, 10k or 1m"),
    ):
        assert main(["--run-dir", str(tmp_path / "run"), *words]) == 64
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_answer_is_wrong_if_its_q_differs() -> None:
    asker, outcome = Asker(1, {"a": ([3, 7], [0.5, 0.25])}, 2), Outcome()
    answer = lambda *steps: {"steps": [{"chunk": chunk, "q": q} for chunk, q in steps]}
    asker.compare("a", answer((3, 0.5), (7, 0.2501)), outcome)
    assert (outcome.wrong, outcome.other_order) == (0, 0)
    asker.compare("a", answer((7, 0.4999), (3, 0.25)), outcome)
    assert (outcome.wrong, outcome.other_order) == (0, 1)
    for wrong in (answer((3, 0.5), (7, 0.26)), answer((3, 0.5)), answer()):
        asker.compare("a", wrong, outcome)
    assert (outcome.wrong, outcome.other_order) == (3, 1)
    assert asker.ask("a") == "no connection"  # nothing listens on port 1


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_nothing_is_lost_or_wrong_through_a_restart(tmp_path: Path) -> None:
    words = ("--chunks", "300", "--clients", "1", "3", "--seconds", "1", "--questions", "4", "--budget", "2")
    assert main(["--run-dir", str(tmp_path / "run"), *words]) == 0
    report = json.loads((tmp_path / "run/serve.json").read_text())
    assert [row["clients"] for row in report["load"]] == [1, 3]
    assert all(row["questions"] > 0 and row["wrong"] == 0 and not row["not_answered_at_once"] for row in report["load"])
    restart = report["restart"]
    assert (restart["exit_code"], restart["wrong"], restart["never_answered"]) == (0, 0, 0)
    assert restart["said"] == "stopped; every accepted request was answered"
    assert min(restart["answered_before"], restart["answered_after"]) > 0
    assert restart["asked_again"].get("cut off", 0) <= 3  # queued by the system when the port was closed: one a client at most
    assert (tmp_path / "run/serve.md").read_text() == markdown(report)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["serve.json", "serve.md"]
