"""Settings to start from, by name or from a run. The paper's presets follow its appendix F and the reference code's configurations."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qrag_jax.config import DataConfig, EvalConfig, ModelConfig, OptimConfig, QHeadConfig, RLConfig, RunConfig, TrainConfig, benchmarks
from qrag_jax.config.benchmarks import longest, made_to_length, picks
from qrag_jax.config.parse import unknown
from qrag_jax.config.trees import parse_json

YAML = (".yaml", ".yml")
TILE_TOKENS = 8192  # of the paper's presets


def tiny(benchmark: str, task: str) -> RunConfig:
    """Encoders of two layers, 128 wide, trained from scratch: minutes on two CPU cores, nothing to download."""
    facts = benchmarks.task(benchmark, task)
    config = RunConfig(
        data=DataConfig(
            benchmark=benchmark, task=task, chunk_by=facts.chunk_by, question_tokens=12, chunk_tokens=16, state_chunk_tokens=12
        ),
        # A narrow vector divided by 10 reaches Q = 1 only after its layer norms have grown; 4 here is like 10 at a width of 768.
        model=ModelConfig(divisor=4.0),
        qhead=QHeadConfig(positions=facts.positions),
        rl=RLConfig(alpha_end=0.01),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(steps=1000),
    )
    if facts.documents == "stories":
        return _tiny_stories(config)
    if facts.documents == "needles":
        return _tiny_needles(config)
    chunks, words = (40, 4096) if made_to_length(benchmark) else (longest(benchmark), 8192)
    return replace(
        config,
        data=replace(config.data, chunks=chunks, question_tokens=48, chunk_tokens=96, state_chunk_tokens=64),
        model=replace(config.model, vocab_size=words, max_positions=512),
        rl=replace(config.rl, budget=picks(benchmark)),
        eval=replace(config.eval, budget=picks(benchmark)),
    )


def _tiny_stories(config: RunConfig) -> RunConfig:
    """BabiLong. Chains of three facts (qa3) are learned after chains of two (qa2), in documents long enough for most stories of qa3, and
    from rewards and labels together."""
    if config.data.task == "qa2":
        return replace(config, train=replace(config.train, steps=2500))
    if config.data.task != "qa3":
        return config
    return replace(
        config,
        data=replace(config.data, chunks=100),
        rl=replace(config.rl, budget=5, supervised_weight=0.1, supervised_loss="softmax", gold_order="policy"),
        train=replace(config.train, steps=3000, curriculum=("qa2:40:600",)),
        eval=replace(config.eval, beam=4),
    )


def rewards_alone(config: RunConfig) -> RunConfig:
    """``config`` as the paper trains: without labels in the loss of the values."""
    if not config.rl.supervised_weight:
        return config
    unused = {name: getattr(RLConfig, name) for name in ("supervised_weight", "supervised_loss", "gold_order")}
    return replace(config, rl=replace(config.rl, **unused))


def _tiny_needles(config: RunConfig) -> RunConfig:
    """RULER's needle tasks. Only a retriever that has seen many needles can tell one from thousands, so training documents are full of
    them, and the labels are used beside the rewards: the softmax compares the needle asked for with all others at once. A low gamma makes
    a wrong first pick costly, however many picks are left. A task whose questions all ask for four needles learns from rewards alone,
    and in short documents first, where four are found by chance."""
    task = config.data.task
    # Longest question, chunk and chunk in a state, in tokens; uuids are long, and inside a state a needle's key is enough.
    uuids, queries = (48, 64, 32), (64, 36, 36)
    sizes = {"niah": (64, 64, 36), "niah_mk3": uuids, "niah_multikey_3": uuids, "niah_mq": queries, "niah_multiquery": queries}
    question, chunk, inside = sizes.get(task, (32, 36, 36))
    config = replace(
        config,
        data=replace(config.data, chunks=100, shared_noise=100, question_tokens=question, chunk_tokens=chunk, state_chunk_tokens=inside),
        model=replace(config.model, max_positions=512),
    )
    if task in ("niah_mv", "niah_multivalue", "niah_mq", "niah_multiquery"):
        train = replace(config.train, curriculum=(f"{task}:10:300",), steps=1500)
        return replace(config, rl=replace(config.rl, budget=6), train=train)
    rl = replace(config.rl, gamma=0.5, supervised_weight=0.1, supervised_loss="softmax")
    if task == "niah":
        return replace(config, rl=replace(rl, gold_order="policy"), train=replace(config.train, steps=1000))
    return replace(config, rl=rl, train=replace(config.train, steps=600))


def minilm(benchmark: str, task: str) -> RunConfig:
    """all-MiniLM-L6-v2 (22 M parameters), fine-tuned on a CPU or one small accelerator."""
    facts = benchmarks.task(benchmark, task)
    config = _paper(benchmark, task, "minilm", chunk_tokens=128, budget=picks(benchmark))
    sizes: dict[str, Any] = {"chunks": 40, "shared_noise": 32} if made_to_length(benchmark) else {"chunks": longest(benchmark)}
    if facts.documents == "stories":
        sizes |= {"chunk_tokens": 24, "state_chunk_tokens": 16}
    return replace(
        config,
        data=replace(config.data, state_order="document", chunk_text=DataConfig.chunk_text, **sizes),
        qhead=QHeadConfig(positions=facts.positions),
        rl=replace(config.rl, alpha=0.05, alpha_end=0.05, lam=0.5, tau=0.05, random_updates=20),
        optim=replace(config.optim, learning_rate=1e-4, weight_decay=1e-3, warmup=20, batch=16),
        train=TrainConfig(steps=300, eval_every=50, checkpoint_every=50),
        eval=EvalConfig(tokens=("1k", "4k"), episodes=100, budget=picks(benchmark)),
    )


def multihop(benchmark: str, task: str) -> RunConfig:
    """MiniLM for questions over one large collection: low-rank adapters, taught along the supporting chunks (softmax), which compete with
    the chunks of all questions of a batch. Stories and needles, which other stories would contradict, keep their own documents."""
    config, facts = minilm(benchmark, task), benchmarks.task(benchmark, task)
    together = facts.documents == "paragraphs" and not made_to_length(benchmark)
    data = replace(config.data, chunks=max(40, config.data.chunks), question_tokens=128, haystack="batch" if together else "own")
    return replace(
        config,
        data=data,
        model=replace(config.model, lora_rank=16),
        qhead=replace(config.qhead, positions="none") if together else config.qhead,
        rl=replace(config.rl, budget=4, objective="supervised", supervised_loss="softmax", gold_order="policy"),
        optim=replace(config.optim, learning_rate=1e-3),
        train=replace(config.train, steps=130, eval_every=40, checkpoint_every=40, eval_episodes=64),
    )


def contriever(benchmark: str, task: str) -> RunConfig:
    """facebook/contriever, the paper's model for BabiLong and RULER: 64-token chunks, 6 picks, 50 000 updates of 96 transitions."""
    config = _paper(benchmark, task, "contriever", chunk_tokens=64, budget=6)
    return replace(
        config,
        rl=replace(config.rl, alpha=0.01, alpha_end=0.01, lam=0.65, tau=0.1, random_updates=_random_updates(16 * 6)),
        # The paper: 64 to 128 transitions. 16 episodes of 6.
        optim=replace(config.optim, learning_rate=5e-5, end_ratio=0.0, weight_decay=1e-2, batch=16),
        train=replace(config.train, steps=50_000),
    )


def e5(benchmark: str, task: str) -> RunConfig:
    """intfloat/multilingual-e5-large, the paper's model for HotpotQA and MuSiQue: batches of 96 transitions, 10 000 updates."""
    budget = picks(benchmark)
    tokens = max(part.paragraph_tokens for part in benchmarks.parts(benchmark))
    config = _paper(benchmark, task, "e5", chunk_tokens=tokens, budget=budget)
    return replace(
        config,
        rl=replace(config.rl, random_updates=_random_updates(96)),
        optim=replace(config.optim, learning_rate=1.5e-5, schedule="quarter_cosine", weight_decay=5e-4, batch=96 // budget),
        train=replace(config.train, steps=10_000),
        eval=replace(config.eval, budget=budget),
    )


def gte(benchmark: str, task: str) -> RunConfig:
    """Alibaba-NLP/gte-multilingual-base, the paper's model for HotpotQA and MuSiQue together: 256-token chunks, 6 picks, 50 000 updates of
    48 transitions (the paper: 32, which 6 picks on 8 devices cannot make)."""
    config = _paper(benchmark, task, "gte", chunk_tokens=256, budget=6)
    return replace(
        config,
        rl=replace(config.rl, alpha=0.005, alpha_end=0.005, lam=0.6, tau=0.02, random_updates=_random_updates(8 * 6)),
        # The paper: 32 transitions, in two batches of 16. The nearest that 8 devices can share: 8 episodes of 6.
        optim=replace(config.optim, learning_rate=5e-6, weight_decay=1e-3, batch=8),
        train=replace(config.train, steps=50_000),
    )


def qwen3_embedding(benchmark: str, task: str) -> RunConfig:
    """Qwen/Qwen3-Embedding-0.6B with the values of the reference code's Qwen3 configuration: the last token's vector at length 1, not
    divided by 10. What that configuration leaves open is as in the preset gte."""
    config = gte(benchmark, task)
    return replace(
        config,
        model=replace(config.model, embedder="qwen3-embedding", normalize=True, divisor=1.0, remat=True),
        rl=replace(config.rl, lam=0.65),
        optim=replace(config.optim, learning_rate=5e-5, end_ratio=0.0, weight_decay=1e-2),
    )


def _paper(benchmark: str, task: str, embedder: str, *, chunk_tokens: int, budget: int) -> RunConfig:
    """What all of the paper's runs share. Except for ``minilm``, they are for accelerators: settings with which an update fits into 16 GB
    a device on 8 devices, which can share every batch (docs/results/memory.md). The paper accumulates the gradient over small batches;
    here it is accumulated over tiles (``model.tile_tokens``)."""
    facts, small = benchmarks.task(benchmark, task), embedder == "minilm"
    memory: dict[str, Any] = {"tile_tokens": 512} if small else {"tile_tokens": TILE_TOKENS, "compute_dtype": "bfloat16", "remat": True}
    return RunConfig(
        data=DataConfig(
            benchmark=benchmark,
            task=task,
            chunk_by=facts.chunk_by,
            chunk_text="reference",
            state_order=facts.reference_state_order,
            chunks=160 if made_to_length(benchmark) else max(160, longest(benchmark)),
            shared_noise=256,
            question_tokens=64,
            chunk_tokens=chunk_tokens,
            state_chunk_tokens=min(chunk_tokens, 64),
        ),
        model=ModelConfig(embedder=embedder, **memory),
        qhead=QHeadConfig(positions="relative" if facts.ordered else "none"),
        rl=RLConfig(budget=budget),
        optim=OptimConfig(warmup=1000),
        train=TrainConfig(log_every=50, eval_every=500, checkpoint_every=500, eval_episodes=300, shard_state="auto"),
    )


def _random_updates(transitions: int) -> int:
    """Number of updates, of ``transitions`` each, in the random phase of the reference code, which lasts for about 400 transitions."""
    return math.ceil(400 / transitions)


PRESETS: dict[str, Callable[[str, str], RunConfig]] = {
    "tiny": tiny,
    "minilm": minilm,
    "multihop": multihop,
    "contriever": contriever,
    "e5": e5,
    "gte": gte,
    "qwen3-embedding": qwen3_embedding,
}


def is_run(name: str) -> bool:
    """Whether a preset is a file of settings (.json or .yaml), or the folder of a run or of an export, instead of one of PRESETS."""
    return name not in PRESETS and (name.endswith((".json", *YAML)) or Path(name).is_dir())


def preset(name: str, benchmark: str | None = None, task: str | None = None) -> RunConfig:
    """The settings of preset ``name`` for a task of a benchmark. ``name`` is one of PRESETS, a .json or .yaml file of settings (a run's
    config.json, a sweep's best.json), or the folder of a run or of an export.

    If ``benchmark`` is None, it is that of the file, or babilong; if ``task`` is None, it is that of the file, or the benchmark's usual
    one. Raises ValueError on an unknown name, a bad file, and a file with settings for another benchmark.
    """
    if is_run(name):
        config = read(name)
        parts = re.split(r"[:+]", config.data.benchmark)
        if benchmark is not None and benchmark not in (config.data.benchmark, *parts):
            raise ValueError(f"preset {name}: holds settings for {config.data.benchmark}, not for {benchmark}")
        config = replace(config, data=replace(config.data, task=config.data.task if task is None else task))
        if benchmark is not None:
            try:
                benchmarks.task(config.data.benchmark, config.data.task)
            except ValueError as error:
                raise ValueError(f"preset {_file(name)}: {error}" if task is None else str(error)) from error
        return config
    if name not in PRESETS:
        raise unknown("preset", name, (*PRESETS, "a .json or .yaml file", "the folder of a run or of an export"))
    benchmark = benchmark or DataConfig.benchmark
    return PRESETS[name](benchmark, benchmarks.parts(benchmark)[0].default_task if task is None else task)


def read(name: str) -> RunConfig:
    """The configuration in a .json or .yaml file, or in the folder of a run or of an export. Raises ValueError if there is none."""
    path = _file(name)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in YAML:
            return RunConfig.from_yaml(text)
        return RunConfig.from_json(json.dumps(parse_json(text).get("config")) if path.name == "qrag.json" else text)
    except FileNotFoundError:
        raise ValueError(f"preset {name}: no such file") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"preset {path}: {error}") from error


def _file(name: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        return path
    found = [file for file in (path / "config.json", path / "qrag.json") if file.is_file()]
    if not found:
        raise ValueError(f"preset {name}: holds neither config.json nor qrag.json; give the folder of a run or of an export")
    return found[0]
