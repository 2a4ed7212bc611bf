"""The layout of the reference code's checkpoints: names, everything besides the encoders, and the settings of the retriever.

``from_reference`` reads such checkpoints. This module writes them, so that the reference code's own scripts can load a retriever that was
trained with this library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qrag_jax.export.folder import Export
from qrag_jax.models.embedder import encoders
from qrag_jax.models.pickles import import_torch
from qrag_jax.models.registry import backbone_of, encoder_tensors

# Prefixes of the encoders' Hugging Face names in the critic.
STATE, ACTION = "state_embed.model.", "action_embed.model.model."
# Constants of the reference code's value functions.
DIVISOR, HALVES, THETA = 10.0, 2, 10_000.0
# step_size of the relative positions -> their span inside an interval.
SPANS = {20.0: 18.0}
# Width of the value head, which that code creates and saves but does not use.
HEAD_WIDTH = 256


def rotary_table(width: int) -> np.ndarray:
    """``action_embed.rotary_emb.freqs``: theta^(-2i/w) for the pairs of one half of width w."""
    half = width // HALVES
    return (THETA ** (-np.arange(0, half, 2) / half)).astype(np.float32)


def write_checkpoint(export: Export, folder: Path) -> None:
    """Writes ``model_best.pt`` and ``config.yaml``."""
    torch = import_torch()

    def tensors(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: tensors(value) for name, value in tree.items()}
        return torch.from_numpy(tree) if isinstance(tree, np.ndarray) else tree

    torch.save(tensors(reference_state(export)), folder / "model_best.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(reference_settings(export), sort_keys=False), encoding="utf-8")


def refuse_what_reference_lacks(export: Export) -> None:
    """Raises ValueError, naming every setting with which the reference code would compute other values."""
    config = export.config
    wanted: dict[str, tuple[Any, Any]] = {
        "pooling": (export.pooling, "mean"),
        "model.normalize": (config.model.normalize, False),
        "model.divisor": (config.model.divisor, DIVISOR),
        "qhead.halves": (config.qhead.halves, HALVES),
        "qhead.theta": (config.qhead.theta, THETA),
    }
    if config.qhead.positions == "relative":
        wanted |= {
            "qhead.position_resolution": (config.qhead.position_resolution, "integer"),
            "qhead.delta": (config.qhead.delta, 20.0),
            "qhead.span": (config.qhead.span, SPANS[20.0]),
        }
    if other := [f"{name} = {value!r} (it has {fixed!r})" for name, (value, fixed) in wanted.items() if value != fixed]:
        raise ValueError(f"the reference code would compute other Q values: {', '.join(other)}; choose another --format")
    if len(export.tokenizer.prefix) != 1 or len(export.tokenizer.suffix) != 1:
        raise ValueError("the reference code needs a tokenizer with one opening and one closing special token; choose another --format")


def reference_state(export: Export) -> dict[str, Any]:
    """The reference code's checkpoint: networks, target networks (equal to them), an optimiser that has not stepped, and the schedule.

    Value heads and the encoders' poolers, which that code creates but never uses, are zero.
    """
    width, optim = export.backbone.width, export.config.optim
    special = {"cls_token": np.array(export.tokenizer.prefix), "sep_token": np.array(export.tokenizer.suffix)}
    head = {"head.weight": np.zeros((HEAD_WIDTH, width), np.float32), "head.bias": np.zeros(HEAD_WIDTH, np.float32)}
    pooler = {"pooler.dense.weight": np.zeros((width, width), np.float32), "pooler.dense.bias": np.zeros(width, np.float32)}
    has_pooler = backbone_of(export.backbone) in ("bert", "xlm-roberta")

    def named(prefix: str, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
        encoder = encoder_tensors(export.backbone, params) | (pooler if has_pooler else {})
        tensors = special | head | {f"model.{name}": tensor for name, tensor in encoder.items()}
        return {prefix + name: tensor for name, tensor in tensors.items()}

    state, action = encoders(export.params)
    states, actions = named("state_embed.", state), named("action_embed.model.", action)
    if export.config.qhead.positions != "none":
        actions["action_embed.rotary_emb.freqs"] = rotary_table(width)
    critic = states | actions
    rate = optim.learning_rate
    group = {"lr": rate, "initial_lr": rate, "betas": (optim.b1, optim.b2), "eps": optim.eps, "weight_decay": optim.weight_decay}
    group |= dict.fromkeys(("amsgrad", "maximize", "capturable", "differentiable"), False) | {"foreach": None, "fused": None}
    group["decoupled_weight_decay"] = True
    learned = [name for name in critic if not name.endswith(("cls_token", "sep_token"))]
    schedule = {"warmup": optim.warmup, "total": export.config.train.steps, "ratio": optim.end_ratio, "base_lrs": [rate]}
    schedule |= {"_is_initial": False, "_get_lr_called_within_step": False, "_last_lr": [rate], "lr_lambdas": [None]}
    return {
        "critic": critic,
        "policy": dict(states),
        "random_policy": {},
        "v_net_target": dict(states),
        "action_embed_target": dict(actions),
        "critic_optim": {"state": {}, "param_groups": [group | {"params": list(range(len(learned)))}]},
        "scheduler": schedule | {"last_epoch": export.step, "_step_count": export.step + 1},
        "alpha": export.config.rl.alpha,
    }


def reference_settings(export: Export) -> dict[str, Any]:
    """The part of the reference code's config.yaml that describes the retriever. The user adds the data sets."""
    config = export.config
    base = {"pretrained_model_name_or_path": "${algo.model.model_name}"}
    embedder = {
        "_target_": "rl.bert_predictor.BertPredictor",
        "num_hidden_layers": 2,
        "model_dim": export.backbone.width,
        "output_size": HEAD_WIDTH,
        "n_output": 1,
        "bert": {"_target_": "transformers.AutoModel.from_pretrained"} | base,
        "tokenizer": {"_target_": "transformers.AutoTokenizer.from_pretrained"} | base,
    }
    encoding, rotary = "rl.bert_predictor.Embedder", {"model": "${algo.action_model}", "max_seq_len": 5000}
    chosen = "${algo.action_embed_dict.${envs.positions_processor}}"
    return {
        "envs": {
            "max_steps": config.rl.budget,
            "num_sentences": config.data.chunks,
            "task": config.data.task,
            "positions_processor": config.qhead.positions,
            "positions_processor_dict": {
                "none": {"_target_": "envs.text_env.AbsolutePositionProcessor"},
                "absolute": {"_target_": "envs.text_env.AbsolutePositionProcessor"},
                "random": {"_target_": "envs.text_env.RandomPositionProcessor", "max_chunks_count": config.qhead.max_offset},
                "relative": {"_target_": "envs.text_env.RelativePositionProcessor", "step_size": 20},
            },
            "sort_by_index": config.data.state_order == "document",
            "test_env": {"max_steps": config.eval.budget, "sort_by_index": "${envs.sort_by_index}"},
        },
        "algo": {
            "model": {"model_name": "base_model", "predictor": {"max_seq_len": 5000, "interpolate_factor": 1}},
            "action_model": embedder,
            "action_embed_dict": {
                "absolute": {"_target_": f"{encoding}WithAbsoluteEncoding"} | rotary,
                "random": {"_target_": f"{encoding}WithAbsoluteEncoding", "interpolate_factor": 1} | rotary,
                "relative": {"_target_": f"{encoding}WithRelativeEncoding"} | rotary | {"max_seq_len": 1000},
                "none": {"_target_": f"{encoding}None", "model": "${algo.action_model}"},
            },
            "pqn": {
                "_target_": "rl.pqn.PQN",
                "state_embed": "${algo.action_model}",
                "action_embed": chosen,
                "state_embed_target": "${algo.action_model}",
                "action_embed_target": chosen,
                "hyperparams": {
                    "gamma": config.rl.gamma,
                    "alpha": config.rl.alpha,
                    "Lambda": config.rl.lam,
                    "tau": config.rl.tau,
                    "max_grad_norm": config.optim.max_grad_norm,
                    "accumulate_grads": 1,
                    "action_embed_length": "${max_action_length}",
                    "max_action_length_in_memory": "${max_action_length_in_memory}",
                },
            },
        },
        "max_action_length": config.data.chunk_tokens,
        "max_action_length_in_memory": max(config.data.question_tokens, config.data.state_chunk_tokens + len(export.tokenizer.prefix)),
    }
