"""Whether a run fits, before a machine is rented: python tpu/compile.py --topology v5e:2x4 --preset e5 --benchmark hotpotqa --out DIR

The training update of a preset is compiled ahead of time, for a TPU slice by libtpu, which needs no TPU. Nothing is allocated or
downloaded: only shapes are used. It prints the bytes that each device needs (state, arguments, results, temporaries) against what it has,
FLOP and bytes moved, and the collectives. h100:N and cpu:N compile for N CPU devices: an estimate, and marked as one.
DIR gets compile.json (all results so far) and compile.md (a table of them).
Exit codes: 0 it fits, 1 it does not, 64 bad settings, 74 DIR cannot be written to, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
from abstract import batch_shapes, make_abstract
from collectives import Collective, collectives
from topology import GIB, Topology, find_topology

from qrag_jax.config import RunConfig
from qrag_jax.config.presets import preset
from qrag_jax.models.registry import BACKBONES, backbone_of
from qrag_jax.rundir.files import read_json, write_json, write_text
from qrag_jax.rundir.log import say
from qrag_jax.train.parallel import make_parallel
from qrag_jax.train.plan import Plan, gib, make_plan

Mode = Literal["replicated", "sharded"]
REFUSED = re.compile(r"(?:memory required.*?|Used )\(?(?P<size>[\d.]+)(?P<unit>[GMK])")


@dataclass(frozen=True)
class Compiled:
    """What is known of one update, compiled or refused. Bytes are those of one device; FLOP and bytes moved count each loop's body once."""

    topology: str
    kind: str
    compiler: str
    jax: str
    date: str
    preset: str
    benchmark: str
    task: str
    mode: Mode
    devices: int
    layers: int
    settings: dict[str, Any]
    parameters: int
    pool_rows: int
    seconds: float
    """Of compiling."""
    fits: bool | None
    needs: int | None
    """Bytes, also if the compiler refused the program and said so."""
    available: int | None
    plan: dict[str, int | None] | None
    argument_bytes: int | None = None
    output_bytes: int | None = None
    alias_bytes: int | None = None
    temporary_bytes: int | None = None
    code_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    collectives: tuple[Collective, ...] = ()
    refused: str | None = None
    """What the compiler said instead."""


def check(options: argparse.Namespace) -> Compiled:
    """Compiles what the options ask for. Raises ValueError on bad settings."""
    topology = find_topology(options.topology)
    config = settings(options, topology)
    learner, state = make_abstract(config)
    count = len(topology.devices)
    if config.optim.batch % count:
        raise ValueError(f"optim.batch = {config.optim.batch}: does not divide over {count} devices; use a multiple of {count}")
    kind = "jit" if count == 1 else "shard_map"
    parallel = make_parallel(learner.update, kind, topology.devices, config.train.shard_state)
    batch = batch_shapes(config, count)
    known: dict[str, Any] = {
        "topology": topology.name,
        "kind": topology.kind,
        "compiler": topology.compiler,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "preset": options.preset,
        "benchmark": config.data.benchmark,
        "task": config.data.task,
        "mode": options.mode,
        "devices": count,
        "layers": network_layers(learner),
        "settings": chosen(config),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "pool_rows": batch.chunk_pool_ids.shape[0],
        "available": topology.bytes,
    }
    lowered = parallel.lower(state, batch)
    began = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=dict(options.option) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).strip()
        return Compiled(
            **known, seconds=time.perf_counter() - began, fits=False, needs=refused_bytes(text), plan=None, refused=text.split("\n")[0]
        )
    return Compiled(**known, seconds=time.perf_counter() - began, **analysis(compiled, state, count, topology.bytes))


def settings(options: argparse.Namespace, topology: Topology) -> RunConfig:
    """The preset's, for this number of devices and this mode, with the attention that such devices use."""
    config = preset(options.preset, options.benchmark, options.task)
    if options.data_dir is not None:
        config = replace(config, data=replace(config.data, data_dir=options.data_dir))
    sharded = options.mode == "sharded"
    if sharded and len(topology.devices) == 1:
        raise ValueError(f"--mode sharded: {topology.name} is one device, which holds all of the state; use --mode replicated")
    train = replace(config.train, parallel="auto", devices=0, shard_state="full" if sharded else "none")
    return replace(config, train=train)


def analysis(compiled: Any, state: Any, count: int, available: int | None) -> dict[str, Any]:
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    plan = make_plan(state, compiled.input_shardings[0][0], memory, count, available)
    return {
        "fits": plan.fits,
        "needs": plan.total,
        "plan": {name: value for name, value in asdict(plan).items() if name not in ("devices", "available")},
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": tuple(collectives(compiled.as_text())),
    }


def network_layers(learner: Any) -> int:
    return int(learner.embedder.config.num_hidden_layers)


def chosen(config: RunConfig) -> dict[str, Any]:
    """The settings that decide how much memory is needed."""
    return {
        "model.compute_dtype": config.model.compute_dtype,
        "model.remat": config.model.remat,
        "model.tile_tokens": config.model.tile_tokens,
        "model.attention": config.model.attention,
        "optim.batch": config.optim.batch,
        "rl.budget": config.rl.budget,
        "data.chunk_tokens": config.data.chunk_tokens,
        "train.shard_state": config.train.shard_state,
    }


def refused_bytes(text: str) -> int | None:
    found = REFUSED.search(text)
    return found and int(float(found["size"]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found["unit"]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology")
    parser.add_argument("--preset")
    parser.add_argument("--benchmark")
    parser.add_argument("--task")
    parser.add_argument("--data-dir")
    parser.add_argument("--mode", default="replicated")
    parser.add_argument("--option", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=0)
    o = parser.parse_args()
    num = lambda v: {"true": True, "false": False}.get(v) if v in ("true", "false") else float(v)
    o.option = [(x.split("=")[0], num(x.split("=")[1])) for x in o.option]
    import json
    found = check(o)
    print(json.dumps(asdict(found), indent=1))
