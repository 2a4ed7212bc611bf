"""Converts prompts to the token ids that a chat model expects, with the model's own template."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from qrag_jax.models.folder import VOCABULARIES, read_object
from qrag_jax.models.tokenizer import load_auto_tokenizer
from qrag_jax.reader.protocol import Prompt

# A fixed date, Llama 3's own fallback: with the real date, a template's prompts would change every day.
DATE = "26 Jul 2024"


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model folder or a GGUF file. Raises ValueError if there is none, or if it has no chat template."""
    # Without any of these, transformers would create a tokenizer with an empty vocabulary.
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in VOCABULARIES):
        raise ValueError(f"{path}: no tokenizer; expected one of {', '.join(VOCABULARIES)}")
    if path.is_file() and importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"{path}: transformers needs PyTorch to read the tokenizer of a .gguf file: pip install 'qrag-jax[reader,torch]', or give a "
            "folder of safetensors"
        )
    where = {"gguf_file": path.name} if path.is_file() else {}
    try:
        tokenizer = load_auto_tokenizer(path.parent if path.is_file() else path, **where)
    except Exception as error:  # the type of exception depends on which file is missing
        raise ValueError(f"{path}: no tokenizer in it can be read: {' '.join(str(error).split()) or repr(error)}") from error
    if not tokenizer.chat_template:
        raise ValueError(f"{path}: its tokenizer has no chat template; use a model that was tuned to answer (-Instruct, -Chat)")
    return tokenizer


def chat_tokens(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The prompt in the model's own format, up to the start of its answer. Models that can think first are asked not to.

    A special token that stands in a message, such as the end of a turn in the text of a document, is broken by a space, so that it is text.
    Raises ValueError if the template refuses the prompt (some allow no system message).
    """
    special = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    messages = [{**message, "content": _as_text(message["content"], special)} for message in prompt.messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string=DATE)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses the prompt: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _as_text(content: str, special: Sequence[str]) -> str:
    for token in special:
        content = content.replace(token, f"{token[0]} {token[1:]}")
    return content


def stop_tokens(path: Path, tokenizer: Any) -> tuple[int, ...]:
    """All tokens that end an answer, from generation_config.json, config.json and the tokenizer. Raises ValueError if there are none."""
    files = [path / name for name in ("generation_config.json", "config.json") if (path / name).is_file()]
    named = [read_object(file).get("eos_token_id") for file in files] + [tokenizer.eos_token_id]
    stops = {token for entry in named if entry is not None for token in (entry if isinstance(entry, list) else [entry])}
    if not stops:
        raise ValueError(f"{path}: no eos_token_id in generation_config.json, config.json or the tokenizer, so no answer would end")
    return tuple(sorted(stops))
