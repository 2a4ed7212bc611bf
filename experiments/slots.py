"""The devices of processes that train at the same time on one machine: each has an accelerator, or a part of the CPU's cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

CORES = "QRAG_CORES"
"""The environment variable with the numbers of the cores that a process uses, separated by commas; without it, all."""
LOOK = "import jax; print(jax.default_backend(), jax.local_device_count())"


def slots(parallel: int, shared: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each of ``parallel`` processes; ``shared``: of all. A single one has all devices; several have an accelerator
    each, or a part of the CPU's cores.

    Another process looks for the devices, so that this one holds none. Raises ValueError if there are fewer devices than processes.
    """
    if parallel == 1:
        return [dict(shared)]
    found = subprocess.run([sys.executable, "-c", LOOK], env=dict(shared), capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"parallel = {parallel}: JAX finds no devices: {found.stderr.strip().splitlines()[-1]}")
    backend, count = found.stdout.split()[-2:]
    if backend == "cpu":
        return [{**shared, **own_cores(slot, parallel)} for slot in range(parallel)]
    if parallel > int(count):
        raise ValueError(f"parallel = {parallel}: must be <= {count}, the {backend} devices here")
    return [{**shared, **visible(backend, slot)} for slot in range(parallel)]


def own_cores(slot: int, parallel: int) -> dict[str, str]:
    """The environment variable with the cores of parallel process ``slot``; none if there are fewer cores than processes."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = cores[slot::parallel]
    return {CORES: ",".join(map(str, own))} if len(cores) >= parallel else {}


def take_cores() -> None:
    """Keeps this process on its own cores. Call it before JAX counts them."""
    if cores := os.environ.get(CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))


def visible(backend: str, slot: int) -> dict[str, str]:
    """Environment variables with which a process sees only accelerator ``slot``."""
    if backend == "tpu":
        return {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1", **_one("TPU_VISIBLE_CHIPS", slot)}
    return _one("CUDA_VISIBLE_DEVICES", slot) | _one("ROCR_VISIBLE_DEVICES", slot)


def _one(name: str, slot: int) -> dict[str, str]:
    """The variable ``name`` with the device of a slot, out of the devices that this process may use."""
    allowed = os.environ.get(name)
    return {name: allowed.split(",")[slot] if allowed else str(slot)}
