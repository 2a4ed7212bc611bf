"""All settings of a run, as frozen dataclasses that check themselves. No jax here."""

from qrag_jax.config.eval import EvalConfig
from qrag_jax.config.run import (
    TD_ONLY,
    Attention,
    DataConfig,
    ModelConfig,
    Objective,
    OptimConfig,
    QHeadConfig,
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
