"""What a run is about to do, in words: its model, devices, questions and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from qrag_jax.config import RunConfig, Stage
from qrag_jax.data.documents import ENDLESS
from qrag_jax.evaluate.sets import EvaluationSet
from qrag_jax.train.model import Model
from qrag_jax.types import QAExample, TaskBatch

Stages = Sequence[tuple[Stage, Sequence[QAExample]]]


def size(tree: Any) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def modules(model: Model) -> dict[str, int]:
    """ "state_encoder.layer_0" -> its parameters, for each module of each encoder."""
    return {f"{encoder}.{name}": size(part) for encoder, parts in model.params["params"].items() for name, part in parts.items()}


def model_line(config: RunConfig, model: Model) -> str:
    """The encoders in one line: kind, layers, width, parameters."""
    names, backbone = list(model.params["params"]), model.backbone
    layers = backbone.num_hidden_layers
    kind = f"{type(backbone).__name__.removesuffix('Config')}, {layers} layer{'s' * (layers > 1)}, width {backbone.width}"
    total = size(model.params)
    each = f" ({total // len(names):,} each)" if len(names) > 1 else ""
    how = "trained" if not config.model.lora_rank else f"fixed, with adapters of rank {config.model.lora_rank}"
    return f"model: {' and '.join(names).replace('_', ' ')}, {kind}: {total:,} parameters{each}, {how}"


def devices_line(devices: Sequence[jax.Device]) -> str:
    """Number and kind of the devices, and how many processes share them."""
    kinds = sorted({device.device_kind for device in devices})
    hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"devices: {len(devices)} x {', '.join(kinds)}{hosts}"


def count(number: int) -> str:
    """A number of questions; those that are generated do not end."""
    return "generated as needed" if number >= ENDLESS else f"{number:,}"


def questions_lines(config: RunConfig, stages: Stages, validation: EvaluationSet, tests: Sequence[EvaluationSet] = ()) -> list[str]:
    """How many questions of each split are read."""
    lines = []
    for number, (stage, examples) in enumerate(stages):
        first = 1 if not number else stages[number - 1][0].until + 1
        drawn = (stage.until - first + 1) * config.optim.batch
        which = f"updates {first:,} to {stage.until:,}" if len(stages) > 1 else f"{stage.until:,} updates"
        lines.append(
            f"training questions ({stage.task}, {stage.chunks} chunks): {count(len(examples))}; {which} read {drawn:,}, "
            f"{config.optim.batch} each"
        )
    checks = config.train.steps // config.train.eval_every + bool(config.train.steps % config.train.eval_every) + 1
    lines.append(f"validation questions: {asked(validation):,}, {checks} times")
    if tests:
        lines.append("test questions: " + ", ".join(f"{asked(one):,} of {one.name}" for one in tests))
    return lines


def asked(questions: EvaluationSet) -> int:
    """How many questions of a set are asked."""
    return sum(map(len, questions.groups))


def example_lines(example: QAExample) -> list[str]:
    """A question with its answer and its supporting chunks."""
    lines = [f"question: {example.question}", f"answer: {example.answer}", f"chunks: {len(example.chunks)}, supporting:"]
    return lines + [f"  {i}: {example.chunks[i]}" for i in example.support]


def shapes_line(batch: TaskBatch) -> str:
    """The arrays of a batch."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in vars(batch).items())


def duration(seconds: float) -> str:
    """Seconds for people: 0.12 s, 45 s, 3.4 minutes, 2.1 hours."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
