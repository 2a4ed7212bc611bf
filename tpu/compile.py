"""Whether a run fits, before a machine is rented: python tpu/compile.py --topology v5e:2x4 --preset e5 --benchmark hotpotqa --out DIR

The update of a preset is compiled ahead of time for devices that need not be here: by libtpu for a TPU slice (pip install 'jax[tpu]'), by
XLA's compiler for GPUs for h100:N (pip install 'jax[cuda12]'). cpu:N compiles for CPUs, code not optimised.
Nothing is allocated or downloaded; only shapes are used. It prints what each device needs (parameters, moving average, Adam, temporaries)
and what it has, FLOP, bytes moved, and what devices send each other.
A compilation takes one core, and minutes: about half a minute for two layers, many for 24.
DIR gets memory.json, all records so far, and memory-table.md, a table of them; the same update replaces its record.
Exit codes: 0 it fits (or, with cpu:N, it compiles), 1 it does not fit; otherwise 64 bad settings or no such place, 74 the
disk is full, 75 SIGTERM, 130 Ctrl-C.
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
from fits import PARTS, Found, describe, store
from topology import KNOWN, Topology, find_topology

from qrag_jax.config import RunConfig
from qrag_jax.config.presets import preset
from qrag_jax.models.registry import BACKBONES, backbone_of
from qrag_jax.rl.learner import TrainState
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import say
from qrag_jax.train.parallel import make_parallel
from qrag_jax.train.plan import make_plan
from qrag_jax.train.sharding import ShardState, state_bytes

MODES: dict[str, ShardState] = {"replicated": "none", "sharded": "full"}
EFFORT = -1.0  # the least: programs are a little slower and larger than at XLA's usual 0, and ready in two thirds of the time
# The program is never run. Its code does not change what it needs.
CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# "... the total memory required for HLO temporaries (200.00G) exceeds ..."; "Used 17.2G of 15.75G hbm."
REFUSED = re.compile(r"(?:required[^(]*\(|Used )(?P<size>[\d.]+)(?P<unit>[KMG])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
SETTINGS = (
    *(("model", name) for name in ("compute_dtype", "remat", "tile_tokens", "attention")),
    *(("optim", "batch"), ("rl", "budget"), ("data", "question_tokens"), ("data", "chunk_tokens"), ("data", "state_chunk_tokens")),
)


def settings(options: argparse.Namespace, topology: Topology) -> RunConfig:
    """The configuration of the preset in this mode on these devices. Raises ValueError on settings that do not go together."""
    config, count = preset(options.preset, options.benchmark, options.task), len(topology.devices)
    if options.mode == "sharded" and count == 1:
        raise ValueError(f"--mode sharded: {topology.name} is one device, which holds all of the state; use --mode replicated")
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
    """Compiles what the options ask for. Raises ValueError on bad settings."""
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
    # pmap cannot compile for devices that are not here; a program of shard_map is the same.
    kind, shard_state = ("jit" if count == 1 else "shard_map"), MODES[options.mode]
    parallel = make_parallel(learner.update, kind, topology.devices, shard_state)
    held = state_bytes(state, parallel.parts)
    if topology.bytes is not None and held > topology.bytes:
        return Found(**known, seconds=0.0, fits=False, needs=held, refused="its state alone; so nothing was compiled", at_least=True)
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
    """What the compiler says about a program, by names of :class:`Found`."""
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
    """The bytes that a program needs, from the compiler's refusal."""
    found = REFUSED.search(text)
    return None if found is None else round(float(found["size"]) * UNITS[found["unit"]])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, help=KNOWN)
    parser.add_argument("--preset", required=True, help="a preset of the experiments, a .json file with a configuration, or a run's folder")
    parser.add_argument("--benchmark", help="or a mixture, such as hotpotqa+musique (default: that of a file, or babilong)")
    parser.add_argument("--task", help="default: that of a file, or the benchmark's usual one")
    parser.add_argument("--mode", choices=list(MODES), default="replicated", help="whether each device holds all of the state or a part")
    parser.add_argument("--data-dir", help="counts the texts of a batch in these files (default: the most that a batch can have)")
    parser.add_argument("--layers", type=int, default=0, help="compile only so many layers: quicker, and too small (default: all)")
    parser.add_argument("--effort", type=float, default=EFFORT, help=f"of the TPU's compiler, -1 to 1; usual is 0 (default: {EFFORT:g})")
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
    options = make_parser().parse_args(argv)
    return execute(lambda: run(options))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    raise SystemExit(main())
