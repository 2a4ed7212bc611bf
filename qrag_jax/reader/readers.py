"""The reader that a run names: ``none``, ``flax:NAME_OR_PATH`` or ``openai:URL,MODEL``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrag_jax.reader.cache import ResponseCache
from qrag_jax.reader.protocol import Answer, Prompt, Reader
from qrag_jax.runlog import progress

SLICE = 32  # prompts answered between two writes of the cache


class CachedReader:
    """A deterministic reader that is never asked the same prompt twice, in this run or a later one."""

    def __init__(self, reader: Reader, cache: ResponseCache) -> None:
        self.reader, self.cache, self.name = reader, cache, reader.name

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers in order; those not in the cache are asked in slices, each kept as soon as it is there."""
        fresh = [prompt for prompt in dict.fromkeys(prompts) if self.cache.get(self.name, prompt) is None]
        with progress(total=len(fresh), unit="answer", desc="reader", disable=not fresh, leave=False) as bar:
            for start in range(0, len(fresh), SLICE):
                part = fresh[start : start + SLICE]
                for prompt, answer in zip(part, self.reader.answer(part), strict=True):
                    self.cache.put(self.name, prompt, answer)
                bar.update(len(part))
        found = [self.cache.get(self.name, prompt) for prompt in prompts]
        return [answer for answer in found if answer is not None]


def make_reader(text: str, folder: Path, max_new_tokens: int) -> Reader | None:
    """``text`` as :class:`~qrag_jax.config.EvalConfig` has checked it; ``folder`` keeps the answers. None for ``none``."""
    kind, _, rest = text.partition(":")
    if kind == "flax":
        from qrag_jax.reader.flax_reader import FlaxReader

        return CachedReader(FlaxReader.from_pretrained(rest, max_new_tokens=max_new_tokens), ResponseCache(folder))
    if kind == "openai":
        from qrag_jax.reader.openai_reader import OpenAIReader

        url, _, model = rest.rpartition(",")
        return OpenAIReader(url, model, max_new_tokens=max_new_tokens, cache_dir=folder)
    return None
