"""Makes the reader that a run names: ``none``, ``flax:NAME_OR_PATH`` or ``openai:URL,MODEL``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrag_jax.config import EvalConfig
from qrag_jax.config.eval import check_reader_name
from qrag_jax.reader.cache import ResponseCache
from qrag_jax.reader.protocol import Answer, Prompt, Reader
from qrag_jax.rundir.log import progress

SLICE = 32  # prompts answered between two writes of the cache


class CachedReader:
    """A deterministic reader that is never asked the same prompt twice, in this run or a later one."""

    def __init__(self, reader: Reader, cache: ResponseCache) -> None:
        self.reader, self.cache, self.name = reader, cache, reader.name

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers in order. Prompts that are not in the cache are asked in slices, and each slice is cached at once."""
        fresh = [prompt for prompt in dict.fromkeys(prompts) if self.cache.get(self.name, prompt) is None]
        with progress(total=len(fresh), unit="answer", desc="reader", disable=not fresh, leave=False) as bar:
            for start in range(0, len(fresh), SLICE):
                part = fresh[start : start + SLICE]
                for prompt, answer in zip(part, self.reader.answer(part), strict=True):
                    self.cache.put(self.name, prompt, answer)
                bar.update(len(part))
        found = [self.cache.get(self.name, prompt) for prompt in prompts]
        return [answer for answer in found if answer is not None]


def make_reader(settings: EvalConfig, folder: Path) -> Reader | None:
    """The reader of ``settings``, None for ``none``. Its answers are cached in ``folder``. Raises ValueError if it cannot be loaded."""
    kind, _, rest = settings.reader.partition(":")
    if kind == "flax":
        from qrag_jax.reader.flax_reader import FlaxReader, reader_dtype, reader_mesh

        reader = FlaxReader.from_pretrained(
            rest,
            dtype=reader_dtype(settings.reader_dtype),
            max_new_tokens=settings.reader_tokens,
            mesh=reader_mesh(settings.reader_devices),
        )
        return CachedReader(reader, ResponseCache(folder))
    return _endpoint(settings, folder) if kind == "openai" else None


def open_reader(name: str, *, max_new_tokens: int = 256, timeout: float = 120.0, retries: int = 5) -> Reader:
    """The reader ``name``, flax:NAME or openai:URL,MODEL, for one prompt at a time; its answers are not cached. ``timeout`` and
    ``retries`` are those of an endpoint.

    Raises ValueError on another name, and if it cannot be loaded.
    """
    check_reader_name(name, "reader")
    kind, _, rest = name.partition(":")
    if kind == "flax":
        from qrag_jax.reader.flax_reader import FlaxReader, reader_dtype

        return FlaxReader.from_pretrained(rest, dtype=reader_dtype("auto"), max_new_tokens=max_new_tokens, batch=1)
    from qrag_jax.reader.openai_reader import OpenAIReader

    url, _, model = rest.rpartition(",")
    return OpenAIReader(url, model, timeout=timeout, retries=retries, concurrency=1, max_new_tokens=max_new_tokens)


def check_reader(settings: EvalConfig) -> None:
    """Checks the reader before a long training, without loading weights or asking prompts. Raises ValueError on faults."""
    kind, _, rest = settings.reader.partition(":")
    if kind == "flax":
        from qrag_jax.models.decoder_loading import check_mesh, open_decoder
        from qrag_jax.reader.chat import load_tokenizer
        from qrag_jax.reader.flax_reader import find_reader, reader_mesh

        path = find_reader(rest)
        check_mesh(open_decoder(path).config, reader_mesh(settings.reader_devices))
        load_tokenizer(path)
    elif kind == "openai":
        _endpoint(settings, None)


def _endpoint(settings: EvalConfig, folder: Path | None) -> Reader:
    from qrag_jax.reader.openai_reader import OpenAIReader

    url, _, model = settings.reader.removeprefix("openai:").rpartition(",")
    return OpenAIReader(
        url,
        model,
        timeout=settings.reader_timeout,
        concurrency=settings.reader_concurrency,
        max_new_tokens=settings.reader_tokens,
        cache_dir=folder,
    )
