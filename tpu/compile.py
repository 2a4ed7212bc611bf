"""Checks that a run fits before you rent a machine: python tpu/compile.py --topology v5e:2x4 --preset e5 --benchmark hotpotqa --out DIR

Compiles the update of a preset ahead of time. The devices need not be on this machine: libtpu compiles for a TPU slice (pip install
'jax[tpu]'), and XLA's GPU compiler for h100:N (pip install 'jax[cuda12]'). cpu:N compiles for CPUs, without optimising the code.
Only shapes are used: nothing is allocated or downloaded. The command prints the memory that each device needs (parameters, moving average,
Adam, temporaries) and has, the FLOP, the bytes moved, and the data that devices send each other.
Compiling takes one core for about half a minute (two layers) to many minutes (24 layers).
DIR gets memory.json with all results so far, and memory-table.md with the same as a table. A second result for the same update replaces
the first.
Exit codes: 0 it fits (with cpu:N: it compiles), 1 it does not fit, 64 bad settings or a DIR that cannot be used, 74 the disk is full,
75 SIGTERM, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
from abstract import batch_shapes, make_abstract, network
from collectives import collectives
from command import Parser, run_command
from fits import PARTS, Found, describe, store
from topology import KNOWN, Topology, find_topology

from qrag_jax.config import RunConfig
from qrag_jax.config.presets import preset
from qrag_jax.models.registry import BACKBONES, backbone_of
from qrag_jax.rl.learner import TrainState
from qrag_jax.rundir.log import say
from qrag_jax.train.parallel import make_parallel
from qrag_jax.train.plan import make_plan
from qrag_jax.train.sharding import ShardState, state_bytes

MODES: dict[str, ShardState] = {"replicated": "none", "sharded": "full"}
EFFORT = -1.0  # the lowest: programs are a little slower and larger than with XLA's default 0, but compile in two thirds of the time
# The program never runs, and its memory does not depend on how well its code is optimised.
CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# "... the total memory required for HLO temporaries (200.00G) exceeds ..."; "Used 17.2G of 15.75G hbm."
REFUSED = re.compile(r"(?:required[^(]*\(|Used )(?P<size>[\d.]+)(?P<unit>[KMG])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
SETTINGS = (
    *(("model", name) for name in ("compute_dtype", "remat", "tile_tokens", "attention")),
    *(("optim", "batch"), ("rl", "budget"), ("data", "question_tokens"), ("data", "chunk_tokens"), ("data", "state_chunk_tokens")),
)


def settings(options: argparse.Namespace, topology: Topology) -> RunConfig:
    """The configuration of the preset in this mode on these devices. Raises ValueError on settings that contradict each other."""
    config, count = preset(options.preset, options.benchmark, options.task), len(topology.devices)
    if options.mode == "sharded" and count == 1:
        raise ValueError(f"--mode sharded: {topology.name} is one device, so nothing can be split; use --mode replicated")
    if config.optim.batch % count:
        raise ValueError(f"optim.batch = {config.optim.batch}: does not divide over {count} devices; use another --topology or --preset")
    if config.rl.reward != "support":
        raise ValueError(f"rl.reward = {config.rl.reward!r}: the update of this reward is not one program; use a preset with support")
    attention = config.model.attention
    if attention == "auto" and topology.is_tpu and BACKBONES[backbone_of(network(config))].fuses:
        attention = "fused"  # what auto means on a TPU
    return replace(
        config,
        data=replace(config.data, data_dir=options.data_dir or config.data.data_dir),
        model=replace(config.model, attention=attention),
        train=replace(config.train, shard_state=MODES[options.mode]),
    )


def compile_update(options: argparse.Namespace) -> Found:
    """Compiles the update that the options describe. Raises ValueError on bad settings."""
    topology = find_topology(options.topology)
    config, count = settings(options, topology), len(topology.devices)
    whole = network(config).num_hidden_layers
    layers = options.layers or whole
    if not 1 <= layers <= whole:
        raise ValueError(f"--layers = {options.layers}: must be in 1..{whole}, the layers of {config.model.embedder}")
    learner, state = make_abstract(config, layers)
    batch = batch_shapes(config, count)
    known: dict[str, Any] = {
        "topology": topology.name,
        "kind": topology.kind,
        "devices": count,
        "compiler": topology.compiler,
        "effort": f"effort {options.effort:g}" if topology.is_tpu else "code not optimised" if topology.is_cpu else "not tuned on a device",
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "preset": options.preset,
        "benchmark": config.data.benchmark,
        "task": config.data.task,
        "mode": options.mode,
        "layers": layers,
        "of_layers": whole,
        "settings": {f"{section}.{name}": getattr(getattr(config, section), name) for section, name in SETTINGS},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "pool_rows": batch.chunk_pool_ids.shape[0],
        "available": topology.bytes,
    }
    # pmap cannot compile for devices of another machine; shard_map gives the same program.
    kind, shard_state = ("jit" if count == 1 else "shard_map"), MODES[options.mode]
    parallel = make_parallel(learner.update, kind, topology.devices, shard_state)
    held = state_bytes(state, parallel.parts)
    if topology.bytes is not None and held > topology.bytes:
        return Found(
            **known, seconds=0.0, fits=False, needs=held, refused="the state alone is too large; nothing was compiled", at_least=True
        )
    lowered = parallel.lower(state, batch)
    began = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options(topology, options.effort))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).strip().split("\n")[0]
        return Found(**known, seconds=time.perf_counter() - began, fits=False, needs=refused_bytes(text), refused=text)
    return Found(**known, seconds=time.perf_counter() - began, **analysis(compiled, state, parallel.parts, topology))


def compiler_options(topology: Topology, effort: float) -> dict[str, Any]:
    if topology.is_tpu:
        return {"exec_time_optimization_effort": effort}
    return CPU_OPTIONS if topology.is_cpu else {}


def analysis(compiled: jax.stages.Compiled, state: TrainState, parts: int, topology: Topology) -> dict[str, Any]:
    """The compiler's figures for a program, by the names of :class:`Found`."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None
    plan = make_plan(state, parts, memory, len(topology.devices), topology.bytes)
    return {
        "fits": plan.fits,
        "needs": plan.total,
        "plan": {name: getattr(plan, name) for name in PARTS},
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": tuple(asdict(one) for one in collectives(compiled.as_text() or "")),
    }


def refused_bytes(text: str) -> int | None:
    """The bytes that a program needs, from the message with which the compiler refused it."""
    found = REFUSED.search(text)
    return None if found is None else round(float(found["size"]) * UNITS[found["unit"]])


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--topology", required=True, help=KNOWN)
    parser.add_argument("--preset", required=True, help="a preset of the experiments, a .json or .yaml file of settings, or a run's folder")
    parser.add_argument(
        "--benchmark", help="a benchmark, or a mixture such as hotpotqa+musique (default: that of the preset's file, or babilong)"
    )
    parser.add_argument("--task", help="(default: that of the preset's file, or the benchmark's usual one)")
    parser.add_argument(
        "--mode",
        choices=list(MODES),
        default="replicated",
        help="replicated: each device holds all of the state; sharded: a part of it (default: replicated)",
    )
    parser.add_argument("--data-dir", help="folder whose files give the number of texts in a batch (default: the largest possible number)")
    parser.add_argument(
        "--layers", type=int, default=0, help="compile only this many layers: faster, but the figures are too small (default: all)"
    )
    parser.add_argument(
        "--effort",
        type=float,
        default=EFFORT,
        help=f"how hard the TPU compiler optimises, -1 to 1; XLA's own default is 0 (default: {EFFORT:g})",
    )
    parser.add_argument("--out", type=Path, help="folder for memory.json and memory-table.md (default: none)")
    return parser


def run(options: argparse.Namespace) -> int:
    if not -1 <= options.effort <= 1:
        raise ValueError(f"--effort = {options.effort}: must be in -1..1")
    if options.layers < 0:
        raise ValueError(f"--layers = {options.layers}: must be >= 1, or 0 for all")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out = {options.out}: is a file; name a folder")
    found = compile_update(options)
    say(describe(found))
    if options.out is not None:
        store(options.out, found)
    return int(found.fits is False)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    raise SystemExit(main())
