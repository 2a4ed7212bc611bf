"""Checks what a run is to learn from, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from qrag_jax.config import RLConfig, RunConfig, Stage
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample


def check_objectives(config: RunConfig, stages: Sequence[tuple[Stage, Sequence[QAExample]]]) -> None:
    """Says whether values are learned from labels, too, and which settings of the supervised loss a run does not use. Raises ValueError on
    an order that its questions lack."""
    rl = config.rl
    if rl.supervised_weight:
        say(f"learning from rewards, and from labels with a weight of {rl.supervised_weight:g} (rl.supervised_weight 0: rewards alone)")
    supervised = rl.supervised_weight > 0 or any((stage.objective or rl.objective) == "supervised" for stage, _ in stages)
    if not supervised and rl.supervised_loss != RLConfig.supervised_loss:
        say(f"rl.supervised_loss = {rl.supervised_loss!r} is not used: no stage is supervised, and rl.supervised_weight is 0")
    if rl.gold_order == RLConfig.gold_order:
        return
    if not supervised and not rl.demonstrations:
        say(f"rl.gold_order = {rl.gold_order!r} is not used: no stage is supervised, and rl.supervised_weight and rl.demonstrations are 0")
    elif rl.gold_order == "bridge" and not any(examples[i].path for _, examples in stages for i in range(config.optim.batch)):
        raise ValueError(
            f"rl.gold_order = 'bridge': the questions of {config.data.benchmark} do not say in which order they need their supporting "
            "chunks; use policy or document"
        )
