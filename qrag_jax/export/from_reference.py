"""Released Q-RAG checkpoints (``model_best.pt`` + ``config.yaml`` of the reference code) -> an export folder.

In the checkpoint, ``critic.state_embed.model.*`` and ``critic.action_embed.model.model.*`` are the two encoders under their Hugging Face
names; ``v_net_target.*`` and ``action_embed_target.*`` their slow copies. The base model's folder gives what a checkpoint lacks: the
network's sizes and the tokenizer. Values are those of the reference code: integer positions, two halves, mean pooling divided by 10, or
of its SimpleEmbedder: the last token's vector, L2-normalised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qrag_jax.config import DataConfig, EvalConfig, ModelConfig, QHeadConfig, RLConfig, RunConfig, TrainConfig
from qrag_jax.config.benchmarks import BENCHMARKS
from qrag_jax.export.folder import Export, write_export
from qrag_jax.export.hydra import HydraConfig, boolean
from qrag_jax.export.reference_layout import ACTION, DIVISOR, HALVES, SPANS, STATE, THETA, rotary_table
from qrag_jax.models.embedder import make_embedder, pair
from qrag_jax.models.folder import read_backbone, read_tokenizer
from qrag_jax.models.pickles import StoredTensor, open_tensors
from qrag_jax.models.pretrained import ALIASES, HUB_NAME, find_folder
from qrag_jax.models.registry import BackboneConfig, Pooling, encoder_params
from qrag_jax.models.tokenizer import TextTokenizer

CHECKPOINT, CONFIG = "model_best.pt", "config.yaml"
# Classes of the reference code: encoders (the second one for Qwen3), and what turns a chunk's embedding by its position, or does not.
SIMPLE = "rl.bert_predictor.SimpleEmbedder"
ENCODERS = ("rl.bert_predictor.BertPredictor", SIMPLE)
ROTATED = ("rl.bert_predictor.EmbedderWithAbsoluteEncoding", "rl.bert_predictor.EmbedderWithRelativeEncoding")
UNROTATED = ("rl.bert_predictor.EmbedderNone",)
# The value head of an earlier design, the separator ids and the rotary table: computed with here, not learned.
OTHERS = re.compile(r"(state_embed|action_embed\.model)\.(cls_token|sep_token|head\.(weight|bias))$|action_embed\.rotary_emb\.freqs$")
T = TypeVar("T")


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """What a released checkpoint holds, in this library's terms. ``target_params`` None: not asked for, or the file has none."""

    config: RunConfig
    backbone: BackboneConfig
    params: dict[str, Any]
    target_params: dict[str, Any] | None
    tokenizer: TextTokenizer
    pooling: Pooling
    step: int


def import_reference(
    checkpoint: str | Path, out_dir: str | Path, *, base_model: str | Path | None = None, config: str | Path | None = None
) -> Path:
    """Writes the export folder of a released checkpoint and returns its path. Raises ValueError as :func:`read_reference` does."""
    found = read_reference(checkpoint, base_model=base_model, config=config)
    return write_export(out_dir, Export(found.config, found.backbone, found.params, found.tokenizer, found.pooling, step=found.step))


def read_reference(
    checkpoint: str | Path, *, base_model: str | Path | None = None, config: str | Path | None = None, targets: bool = False
) -> ReferenceCheckpoint:
    """Reads a checkpoint of the reference code. Nothing in its files is executed, and of its tensors only the two encoders are read.

    ``config`` None: config.yaml beside the checkpoint, or one folder up. ``base_model`` None: the model the config names, as a folder
    beside the config or as a hub name. ``targets``: read the target networks too. Raises ValueError that lists every problem found:
    settings, files, tensors.
    """
    checkpoint = Path(checkpoint)
    problems: list[str] = []

    def attempt(function: Callable[[], T]) -> T | None:
        try:
            return function()
        except ValueError as error:
            problems.append(str(error))
            return None

    tree = attempt(lambda: open_tensors(checkpoint))
    settings = attempt(lambda: HydraConfig(_find_config(checkpoint, config)))
    model = attempt(lambda: _model(settings)) if settings else None
    folder = attempt(lambda: _find_base(settings, base_model)) if settings or base_model else None
    backbone = attempt(lambda: read_backbone(folder)) if folder else None
    tokenizer = attempt(lambda: read_tokenizer(folder)) if folder else None
    critic = attempt(lambda: _part(tree, "critic", checkpoint)) if tree is not None else None
    params = target = run = None
    if critic and backbone:
        params = attempt(lambda: _both(critic, critic, backbone, f"{checkpoint}: critic"))
        opening = len(tokenizer.prefix) if tokenizer else 1
        run = attempt(lambda: _run_config(settings, critic, backbone, opening, model[0] if model else ModelConfig())) if settings else None
    if targets and tree and backbone and {"v_net_target", "action_embed_target"} <= set(tree):
        states, actions = (attempt(partial(_part, tree, name, checkpoint)) for name in ("v_net_target", "action_embed_target"))
        target = attempt(lambda: _both(states, actions, backbone, f"{checkpoint}: targets")) if states and actions else None
    if critic and tokenizer and folder:
        attempt(lambda: _check_tokenizer(critic, tokenizer, folder))
    if run and backbone and model:
        attempt(lambda: make_embedder(run, backbone, model[1]))
    if problems or not (tree and run and backbone and params and tokenizer and model):
        raise ValueError("; ".join(problems))
    step = tree.get("scheduler", {}).get("last_epoch", 0)
    return ReferenceCheckpoint(run, backbone, params, target, tokenizer, model[1], int(step))


def _find_config(checkpoint: Path, config: str | Path | None) -> Path:
    if config is not None:
        return Path(config)
    beside, above = checkpoint.parent / CONFIG, checkpoint.parent.parent / CONFIG
    return above if above.is_file() and not beside.is_file() else beside


def _find_base(settings: HydraConfig | None, base_model: str | Path | None) -> Path:
    if base_model is not None or settings is None:
        if not Path(base_model or "").is_dir():
            raise ValueError(f"base model {base_model}: no such folder")
        return Path(base_model or "")
    name = settings.get("algo.model.model_name", str)
    beside = settings.path.parent / name
    if beside.is_dir():
        return beside
    asked = f"{settings.path}: algo.model.model_name"
    if not (Path(name).is_dir() or name in ALIASES or HUB_NAME.fullmatch(name)):
        raise ValueError(f"{asked} = {name!r}: no folder {beside}, and not a hub name; give the base model's folder with --base-model")
    try:
        return find_folder(name, weights=False, revision=settings.get("algo.model.revision", str, None), field="base-model")
    except ValueError as error:
        raise ValueError(f"{asked}: {error}; or place its files in {beside}") from error


def _part(tree: Mapping[str, Any], name: str, checkpoint: Path) -> dict[str, StoredTensor]:
    part = tree.get(name)
    if not isinstance(part, dict) or not part:
        found = ", ".join(map(str, tree)) or "nothing"
        raise ValueError(f"{checkpoint}: has no {name!r}: not a checkpoint of the reference code (found: {found})")
    if strangers := [key for key, value in part.items() if not isinstance(value, StoredTensor)]:
        raise ValueError(f"{checkpoint}: {name}: not tensors: {', '.join(strangers)}")
    return part


def _both(states: Mapping[str, StoredTensor], actions: Mapping[str, StoredTensor], backbone: BackboneConfig, where: str) -> dict[str, Any]:
    """Parameters of the two encoders; lists what does not fit in either."""
    encoders, problems = [], []
    for part, prefix in ((states, STATE), (actions, ACTION)):
        own = {name.removeprefix(prefix): tensor for name, tensor in part.items() if name.startswith(prefix)}
        try:
            encoders.append(encoder_params(backbone, own))
        except ValueError as error:
            problems.append(f"{prefix}*: {error}")
    known = (STATE, ACTION)
    if strangers := sorted(name for name in {**states, **actions} if not name.startswith(known) and not OTHERS.match(name)):
        problems.append(f"unexpected: {', '.join(strangers)}")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    state, action = encoders
    return pair(state, action)


def _check_tokenizer(critic: Mapping[str, StoredTensor], tokenizer: TextTokenizer, folder: Path) -> None:
    for name, ids in (("cls_token", tokenizer.prefix), ("sep_token", tokenizer.suffix)):
        stored = critic.get(f"state_embed.{name}")
        if stored is not None and (trained := tuple(np.asarray(stored).tolist())) != ids:
            raise ValueError(f"{folder}: its tokenizer's {name} is {ids}, the checkpoint's was {trained}; give the right --base-model")


def _run_config(
    settings: HydraConfig, critic: Mapping[str, StoredTensor], backbone: BackboneConfig, opening: int, model: ModelConfig
) -> RunConfig:
    """The run's configuration: what the reference code's Q values depend on, and the hyperparameters of its value function.

    ``opening``: special tokens before a text.
    """
    # At evaluation the reference code cuts the texts of a state to the algorithm's own setting, not to that of the environments.
    text = settings.first(("algo.pqn.hyperparams.max_action_length_in_memory", "max_action_length_in_memory"), int)
    budget = settings.get("envs.test_env.max_steps", int)
    train_budget = settings.get("envs.max_steps", int, budget)
    target = settings.get("envs.train_dataset._target_", str, "").lower()
    task = settings.get("envs.task", str, "")
    benchmark = next((name for name, one in BENCHMARKS.items() if one.reference and one.reference in target), "reference")
    own = task.split("_")[0]
    data = DataConfig(
        benchmark=benchmark,
        # Of the multi-hop sets that code gives the set's own name.
        task=own if benchmark not in BENCHMARKS or own in BENCHMARKS[benchmark].names else BENCHMARKS[benchmark].default_task,
        chunks=max(train_budget, settings.get("envs.num_sentences", int, DataConfig.chunks)),
        chunk_by="sentence" if "babilong" in target or "niah" in task else "tokens",
        question_tokens=text,
        chunk_tokens=settings.get("max_action_length", int),
        state_chunk_tokens=text - opening,  # cut first, then joined without its opening token
        # Any budget may be asked for; what a state has beyond the encoder's limit is cut, and said.
        state_tokens=backbone.max_tokens,
        state_order="document" if settings.first(SORTED, boolean) else "picked",
        chunk_text="reference",
        reference_state_spaces=True,
    )
    rl = RLConfig(
        budget=train_budget,
        **{ours: settings.get(f"algo.pqn.hyperparams.{theirs}", float) for ours, theirs in HYPERPARAMETERS.items()},
        alpha_end=settings.get("algo.pqn.hyperparams.alpha", float),
        penalize_extra_steps=settings.get("feedback.ground_truth.penalize_extra_steps", boolean, False),
    )
    train = TrainConfig(steps=settings.get("steps_count", int, TrainConfig.steps))
    return RunConfig(data=data, model=model, qhead=_qhead(settings, critic, backbone), rl=rl, train=train, eval=EvalConfig(budget=budget))


def _model(settings: HydraConfig) -> tuple[ModelConfig, Pooling]:
    """What the encoders' classes make of token vectors. Raises ValueError, naming the setting, on classes that are not known here."""
    positions = settings.get("envs.positions_processor", str)
    state, action, wrapper = "algo.pqn.state_embed", "algo.action_model", f"algo.action_embed_dict.{positions}"
    target = {name: settings.get(f"{name}._target_", str) for name in (state, action, wrapper)}
    for name, known in ((state, ENCODERS), (action, (target[state],)), (wrapper, ROTATED if positions != "none" else UNROTATED)):
        if target[name] not in known:
            raise ValueError(f"{settings.path}: {name}._target_ = {target[name]!r} is not supported here; supported: {', '.join(known)}")
    for name in (state, action):
        if (outputs := settings.get(f"{name}.n_output", int, 1)) != 1:
            raise ValueError(f"{settings.path}: {name}.n_output = {outputs} is not supported; supported: 1")
    embedder = settings.get("algo.model.model_name", str)
    if target[state] != SIMPLE:
        return ModelConfig(embedder=embedder, divisor=DIVISOR), "mean"
    normalize, other = (settings.get(f"{name}.normalize_embeds", boolean, True) for name in (state, action))
    if normalize != other:
        raise ValueError(f"{settings.path}: {action}.normalize_embeds = {other}: must be that of {state}, {normalize}")
    return ModelConfig(embedder=embedder, normalize=normalize, divisor=1.0), "last"


SORTED = ("envs.test_env.sort_by_index", "envs.env.sort_by_index", "envs.sort_by_index")
STRETCH = "algo.action_embed_dict.random.interpolate_factor"
HYPERPARAMETERS = {"gamma": "gamma", "alpha": "alpha", "lam": "Lambda", "tau": "tau"}


def _qhead(settings: HydraConfig, critic: Mapping[str, StoredTensor], backbone: BackboneConfig) -> QHeadConfig:
    positions = settings.get("envs.positions_processor", str)
    if positions not in (known := ("relative", "absolute", "random", "none")):
        raise ValueError(f"{settings.path}: envs.positions_processor = {positions!r}: must be one of {', '.join(known)}")
    step = settings.get("envs.positions_processor_dict.relative.step_size", float, 20.0)
    if positions == "relative" and step not in SPANS:
        raise ValueError(f"{settings.path}: envs.positions_processor_dict.relative.step_size = {step:g} is not supported; supported: 20")
    if (stretch := settings.get(STRETCH, float, 1.0)) != 1.0 and positions == "random":
        raise ValueError(f"{settings.path}: {STRETCH} = {stretch:g} is not supported; supported: 1")
    head = QHeadConfig(
        positions=positions,
        position_resolution="integer",
        halves=HALVES,
        theta=THETA,
        delta=step if positions == "relative" else QHeadConfig.delta,
        span=SPANS.get(step, QHeadConfig.span),
        max_offset=settings.get("envs.positions_processor_dict.random.max_chunks_count", int, QHeadConfig.max_offset),
    )
    frequencies = critic.get("action_embed.rotary_emb.freqs")
    if positions == "none" or frequencies is None:
        return head
    expected = rotary_table(backbone.width)
    if frequencies.shape != expected.shape or not np.allclose(np.asarray(frequencies), expected, rtol=1e-5):
        raise ValueError(
            f"action_embed.rotary_emb.freqs: not the table of theta {THETA:g} at width {backbone.width}; no other is supported"
        )
    return head
