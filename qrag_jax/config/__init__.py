"""All settings of a run, as frozen dataclasses that check themselves. No jax here."""

from qrag_jax.config.eval import EvalConfig
from qrag_jax.config.model import Attention, ModelConfig, QHeadConfig
from qrag_jax.config.run import (
    TD_ONLY,
    DataConfig,
    Objective,
    OptimConfig,
    RLConfig,
    RunConfig,
    Stage,
    TrainConfig,
)

__all__ = [
    "TD_ONLY",
    "Attention",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "Objective",
    "OptimConfig",
    "QHeadConfig",
    "RLConfig",
    "RunConfig",
    "Stage",
    "TrainConfig",
]
