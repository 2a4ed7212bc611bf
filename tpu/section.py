"""Runs one section of report.py: python tpu/section.py NAME --out DIR --seconds 60 [--cpu-smoke]

report.py starts a process for each section. So a section has the device to itself, its peak memory is its own, and its failure does not
affect the others. Each figure is written to DIR/NAME.json as soon as it is measured. You can also run a section alone.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import bench
import check
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from kernels import compare_attentions
from measure import Subject, fastest, make_subject, matmul_peak, peak_memory, subject
from sizes import Sizes, sizes, speed_config, training_config

from qrag_jax.data.text.haystack import load_haystack
from qrag_jax.evaluate import plots
from qrag_jax.models.tokenizer import train_wordpiece
from qrag_jax.retrieve.device_rows import DeviceRows
from qrag_jax.retrieve.device_scan import DeviceScorer
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import PoolRows
from qrag_jax.rl.rollout import picks_before, state_rows
from qrag_jax.rl.supervised import make_learner
from qrag_jax.rundir.compilations import leave_products_to_cublas
from qrag_jax.rundir.files import write_json
from qrag_jax.rundir.log import Pruned, RunLog
from qrag_jax.train import training
from qrag_jax.train.model import random_model
from qrag_jax.train.parallel import Parallel, make_parallel
from qrag_jax.train.plan import make_plan
from qrag_jax.types import TaskBatch

Values = dict[str, Any]  # of a section's JSON file
SPARE = 30.0  # seconds that a training section keeps for its last validation and its checkpoint


@dataclass(frozen=True)
class Job:
    """The input of a section."""

    sizes: Sizes
    seconds: float
    """The section is stopped after this time."""
    out: Path


def machine(job: Job) -> Iterator[Values]:
    """Devices and versions; the speed of a matrix product; check.py's comparison of gradients."""
    device = jax.local_devices()[0]
    yield {
        "devices": [str(d) for d in jax.devices()],
        "kind": device.device_kind,
        "platform": device.platform,
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }
    yield {"matmul_flops": {name: matmul_peak(name, device, job.sizes.matmul) for name in ("float32", "bfloat16")}}
    found = check.compare_gradients(subject("tiny", job.sizes.batch * len(jax.devices())))
    yield {"gradient": {"of_all_devices": found.devices, "loss_of_all_devices": found.loss, "of_the_host": found.host, "ok": found.ok}}
    if not found.ok:
        raise ArithmeticError("the gradient is wrong, so no training on this machine can be trusted")


def speed(name: str, job: Job) -> Iterator[Values]:
    """Updates of one network on one device, in bfloat16 and then in float32. Both programs are compiled at once, before either runs."""
    it = make_subject(name, speed_config(name, job.sizes), job.sizes.networks[name])
    subjects = [it.computing_in("bfloat16"), it.computing_in("float32")]
    ways = [make_parallel(one.learner.update, "jit", one.devices) for one in subjects]
    config, batch = it.learner.config, it.batches[0]
    work = bench.model_flops(it, batch, *random_states(it, batch))
    yield {
        "parameters": sum(x.size for x in jax.tree.leaves(it.model.params)),
        "episodes": config.optim.batch,
        "picks": config.rl.budget,
        "chunks": config.data.chunks,
        "tile_tokens": config.model.tile_tokens,
    }
    start = jax.eval_shape(it.start)
    plans, began = [], time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        for one, plan in zip(subjects, threads.map(partial(planned_bytes, start, batch), ways), strict=True):
            plans.append(plan)
            yield {f"{one.learner.config.model.compute_dtype}_compile_seconds": time.perf_counter() - began}
    for one, way, plan in zip(subjects, ways, plans, strict=True):
        # The peak is that of the whole process, so a larger earlier peak hides a later one (docs/tpu.md says so).
        found = bench.speed_of(one, bench.time_training(one, way, job.sizes.updates), job.sizes.updates, work)
        yield {one.learner.config.model.compute_dtype: found | {"planned_bytes": plan}}


def tiles(job: Job) -> Iterator[Values]:
    """Updates of contriever in bfloat16 with tiles of several sizes: larger ones need more memory, and smaller ones leave a device idle."""
    it = make_subject("contriever", speed_config("contriever", job.sizes), job.sizes.networks["contriever"]).computing_in("bfloat16")
    config, batch = it.learner.config, it.batches[0]
    work = bench.model_flops(it, batch, *random_states(it, batch))
    start = jax.eval_shape(it.start)
    rows: list[Values] = []
    for tokens in job.sizes.tiles:
        tiled = replace(config, model=replace(config.model, tile_tokens=tokens))
        one = replace(it, learner=make_learner(it.model.embedder, tiled, it.learner.layout))
        way = make_parallel(one.learner.update, "jit", one.devices)
        plan = planned_bytes(start, batch, way)
        found = bench.speed_of(one, bench.time_training(one, way, job.sizes.updates), job.sizes.updates, work)
        rows.append({"tile_tokens": tokens, "planned_bytes": plan, **found})
        yield {"tiles": rows}


def planned_bytes(state: Any, batch: TaskBatch, way: Parallel) -> int | None:
    """Compiles an update. Returns the bytes that it needs, as XLA plans them; None if XLA does not say."""
    memory = way.update.lower(state, batch).compile().memory_analysis()  # type: ignore[attr-defined]
    return None if memory is None else make_plan(state, way.parts, memory, len(way.devices), None).total


def random_states(it: Subject, batch: TaskBatch) -> tuple[np.ndarray, np.ndarray]:
    """Random picks [B, T], as of an untrained policy, and the states [B, T, Ls] before each of them."""
    budget, count = it.learner.config.rl.budget, batch.chunk_mask.shape[1]
    rng = np.random.default_rng(0)
    picked = np.stack([rng.permutation(np.flatnonzero(mask))[:budget] for mask in np.asarray(batch.chunk_mask)])
    rows = jax.jit(lambda batch, picked: state_rows(batch, picked, it.learner.layout))
    return picked, np.stack([rows(batch, picks_before(jnp.asarray(picked), t, count)) for t in range(budget)], axis=1)


def attention(job: Job) -> Iterator[Values]:
    """Attention kernels compared, at the shapes of packed chunks and states, with the heads of BERT base."""
    rows: list[Values] = []
    for found in compare_attentions(job.sizes.attention, *job.sizes.heads, ("bfloat16", "float32")):
        rows.append(found)
        yield {"attention": rows}


def index(job: Job) -> Iterator[Values]:
    """An index of Python's documentation built with a network of contriever's size in bfloat16; a search step over random unit vectors."""
    retriever, texts = untrained_retriever(job.sizes)
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for turn in ("compiling", "measured"):
            began = time.perf_counter()
            Index.build(retriever, texts, Path(folder, turn))
            seconds.append(time.perf_counter() - began)
    yield {"index_chunks": len(texts), "index_chunks_per_second": len(texts) / seconds[1], "first_build_seconds": seconds[0]}

    config, width, chunks = retriever.config, retriever.embedder.config.width, job.sizes.search_chunks
    vectors = np.random.default_rng(0).standard_normal((chunks, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scorer = DeviceScorer(DeviceRows(PoolRows(vectors, np.arange(chunks))), config.qhead)
    yield {"search_chunks": chunks, "search_width": width, "search_vectors": "random unit vectors"}
    texts = texts[:3]
    state = fastest(lambda: retriever.embed_states(["Where is the milk?"], [texts], 4))
    yield {"state_seconds": state}
    picks = [chunks // 4, chunks // 2, 3 * chunks // 4]
    for count in (1, 32):
        # Three picks: with a budget of four, the last step has the largest number of position ranges.
        found = fastest(lambda: scorer(vectors[:count], [picks] * count, 1), 5)  # noqa: B023
        yield {f"scan_seconds_{count}": found, f"scan_bytes_per_second_{count}": vectors.nbytes / found}
    yield {"peak_bytes": peak_memory(jax.local_devices()[0])}


def untrained_retriever(sizes: Sizes) -> tuple[Retriever, list[str]]:
    """A retriever of contriever's size with random weights; and chunks: sentences of Python's documentation. When all are used, they are
    repeated with a number in front, because an index embeds equal texts only once."""
    sentences = load_haystack(None, "train", sizes.index_chunks).sentences
    passes = range(-(-sizes.index_chunks // len(sentences)))
    texts = [f"{turn} {text}" if turn else text for turn in passes for text in sentences][: sizes.index_chunks]
    config = speed_config("contriever", sizes)
    config = replace(config, model=replace(config.model, compute_dtype="bfloat16"))
    model = random_model(config, sizes.networks["contriever"], train_wordpiece(sentences, config.model.vocab_size))
    return Retriever(config, model.embedder, jax.device_put(model.params), model.tokenizer), texts


def train(name: str, job: Job) -> Iterator[Values]:
    """BabiLong qa2, trained from random weights for some minutes, as ``experiments.babilong`` does; metrics and curves are kept."""
    config = training_config(name, job.sizes)
    limit = time.perf_counter() + job.seconds - SPARE
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder, "run"))

        def late() -> bool:
            trained = max(record.get("seconds", 0.0) for record in log.read())
            return time.perf_counter() > limit or trained > job.sizes.train_seconds

        try:
            training.run(config, log.path.parent, test=False, prune=late)
            ended = "all updates"
        except Pruned:
            ended = "time"
        records = log.read()
        shutil.copy(log.path, job.out / f"train-{name}.jsonl")
    plots.curves(records, job.out / f"train-{name}.png", f"qa2, {name}, random weights")
    updates = [record for record in records if record["kind"] == "train"]
    validations = [record for record in records if record["kind"] == "validation"]
    yield {
        "updates": updates[-1]["step"],
        "of_updates": config.train.steps,
        "ended_by": ended,
        "training_seconds": updates[-1]["seconds"],
        "transitions_per_second": float(np.median([record["transitions_per_second"] for record in updates])),
        "best_fact_em": max(record["fact_em"] for record in validations),
        "validation": [{"step": record["step"], "fact_em": record["fact_em"]} for record in validations],
        "compute_dtype": config.model.compute_dtype,
        "peak_bytes": peak_memory(jax.local_devices()[0]),
        "curves": f"train-{name}.png",
        "metrics": f"train-{name}.jsonl",
    }


SECTIONS: dict[str, Callable[[Job], Iterator[Values]]] = {
    "machine": machine,
    "attention": attention,
    "index": index,
    "tiles": tiles,
    **{f"speed-{name}": partial(speed, name) for name in ("tiny", "minilm", "contriever", "e5")},
    **{f"train-{name}": partial(train, name) for name in ("tiny", "contriever")},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a section. Returns 0, or 1 if it failed; its file then also holds the error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.json")
    parser.add_argument("--seconds", type=float, default=300, help="time that the section has (default: 300)")
    parser.add_argument("--cpu-smoke", action="store_true", help="use the smallest sizes, to test that everything works")
    options = parser.parse_args(argv)
    file, values = options.out / f"{options.name}.json", Values()
    leave_products_to_cublas()
    try:
        for found in SECTIONS[options.name](Job(sizes(smoke=options.cpu_smoke), options.seconds, options.out)):
            values |= found
            write_json(file, {"values": values, "error": None})
    except Exception as error:  # any error: the report continues with the next section
        traceback.print_exc()
        write_json(file, {"values": values, "error": f"{type(error).__name__}: {str(error)[:500]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
