"""Decoders as the parity tests run them: transformers', and ours."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qrag_jax.models.decoder import Decoder


def torch_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()


def torch_logits(model: Any, rows: np.ndarray) -> np.ndarray:
    import torch

    mask = rows >= 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(np.maximum(rows, 0)).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions).long(),
        )
    return output.logits.numpy()


def torch_greedy(model: Any, rows: np.ndarray, count: int, stop: int | None = None) -> np.ndarray:
    import torch

    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor(np.maximum(rows, 0)).long(),
            attention_mask=torch.tensor(rows >= 0).long(),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
        )
    return out[:, rows.shape[1] :].numpy()


@cache
def jitted(model: Decoder) -> Any:
    return jax.jit(lambda params, rows: model.apply({"params": params}, rows))
