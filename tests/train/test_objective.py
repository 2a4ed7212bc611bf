"""Settings of the supervised loss: what is said of them, and what is refused."""

from __future__ import annotations

import pytest

from qrag_jax.config import Stage
from qrag_jax.train.objective import check_objectives
from qrag_jax.types import QAExample
from tests.support.small import SMALL, changed


class Questions(list[QAExample]):
    def __init__(self, path: tuple[int, ...] = ()) -> None:
        super().__init__([QAExample(str(i), "?", ("a", "b"), "", (0, 1), path=path) for i in range(SMALL.optim.batch)])


@pytest.mark.parametrize(
    ("rl", "objective", "said"),
    [
        ({}, None, ""),
        ({"supervised_loss": "softmax"}, None, "rl.supervised_loss = 'softmax' is not used"),
        ({"supervised_loss": "softmax"}, "supervised", ""),
        ({"supervised_loss": "softmax", "supervised_weight": 0.1}, None, "learning from rewards, and from labels with a weight of 0.1"),
        ({"supervised_loss": "softmax", "objective": "supervised"}, None, ""),
        ({"gold_order": "policy"}, None, "rl.gold_order = 'policy' is not used"),
        ({"gold_order": "policy", "demonstrations": 0.1}, None, ""),
    ],
)
def test_labels_beside_rewards_and_a_setting_without_use_are_said(rl, objective, said, capsys):
    check_objectives(changed(SMALL, rl=rl), [(Stage("qa1", 16, 10, objective), Questions()), (Stage("qa1", 16, 40), Questions())])
    assert capsys.readouterr().out.count("\n") == bool(said)
    check_objectives(changed(SMALL, rl=rl), [(Stage("qa1", 16, 40, objective), Questions())])
    assert said in capsys.readouterr().out


def test_an_order_that_the_questions_lack_is_refused():
    config = changed(SMALL, rl={"objective": "supervised", "gold_order": "bridge"})
    check_objectives(config, [(Stage("qa1", 16, 40), Questions((1, 0)))])
    with pytest.raises(ValueError, match=r"rl.gold_order = 'bridge': the questions of babilong do not say .*; use policy or document"):
        check_objectives(config, [(Stage("qa1", 16, 40), Questions())])
