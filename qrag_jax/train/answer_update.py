"""An update whose rewards come from a frozen reader: rollout, answers, then targets and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from qrag_jax.evaluate.answers import score_answer
from qrag_jax.reader.answer_reward import AnswerReward
from qrag_jax.reader.make import make_reader
from qrag_jax.rl.learner import Learner, Metrics, TrainState
from qrag_jax.rl.rewards import support_reward
from qrag_jax.train.parallel import Phases
from qrag_jax.types import QAExample, TaskBatch


class AnswerUpdate:
    """The update of ``learner`` for an ``rl.reward`` other than "support". The reader is never updated, so it is not in the train state.

    ``phases`` are the two halves of the learner's update on the run's devices; the host asks the reader between them. ``folder`` keeps the
    answers, so that a resumed run asks nothing twice.
    """

    def __init__(self, learner: Learner, phases: Phases, folder: Path) -> None:
        config = learner.config
        reader = make_reader(config.eval, folder)
        assert reader is not None, "the configuration has checked that a reader is given"
        self.reader = reader
        self._kind = config.rl.reward
        self._reward = AnswerReward(reader, config.data.benchmark, self._score)
        self._benchmark = config.data.benchmark
        self._support = jax.jit(jax.vmap(lambda picked, support: support_reward(picked, support, config.rl.penalize_extra_steps)))
        self._phases = phases

    def __call__(self, state: TrainState, batch: TaskBatch, examples: Sequence[QAExample], task: str) -> tuple[TrainState, Metrics]:
        """State and metrics after an update on ``batch``, made from ``examples``. Raises ReaderError when the reader cannot be reached."""
        episode = self._phases.collect(state, batch)
        picked = np.asarray(episode.picked).reshape(len(examples), -1)
        rewards = self._reward(examples, picked, task)
        if self._kind == "mixed":
            rewards = (rewards + np.asarray(self._support(picked, batch.support))) / 2
        return self._phases.learn(state, batch, episode, rewards.reshape(episode.picked.shape))

    def _score(self, task: str, prediction: str, example: QAExample) -> float:
        em, f1 = score_answer(self._benchmark, task, prediction, example)
        return f1 if self._kind == "answer_f1" and f1 is not None else em
