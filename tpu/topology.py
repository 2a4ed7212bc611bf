"""Devices to compile for: those of a TPU slice, which need not be here, or simulated ones, for which XLA compiles as for CPUs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

GIB = 2**30
# Memory of one device. For a TPU, what its compiler lets a program use.
TPU_BYTES = {"TPU v4": 15.25 * GIB, "TPU v5 lite": 15.75 * GIB, "TPU v5": 95.74 * GIB, "TPU v6 lite": 31.25 * GIB}
H100_BYTES = 80 * GIB
KNOWN = "a TPU slice such as v5e:2x4, v6e:2x4 or v5p:2x2x2; h100:N; or cpu:N"
WITHOUT_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",  # no TPU machine to ask for its place in a slice
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of the machine, which has none; without any, libtpu prints a warning
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no device from others
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Topology:
    """``devices`` to compile for; ``kind``: what they are; ``bytes``: the memory of each, None if unknown."""

    name: str
    devices: tuple[jax.Device, ...]
    kind: str
    bytes: int | None
    compiler: str
    """Who says what a program needs."""

    @property
    def is_tpu(self) -> bool:
        return self.kind.startswith("TPU")


def find_topology(name: str) -> Topology:
    """Must be called before anything uses a device. Raises ValueError on a name that is not known, and without libtpu for a TPU."""
    match = re.fullmatch(r"(?P<chip>h100|cpu):(?P<count>[1-9]\d{0,2})", name)
    jax.config.update("jax_platforms", "cpu")
    if match:
        jax.config.update("jax_num_cpu_devices", int(match["count"]))
        kind, memory = ("NVIDIA H100", H100_BYTES) if match["chip"] == "h100" else ("CPU", None)
        return Topology(name, tuple(jax.devices()), kind, memory, f"XLA for CPUs, jaxlib {importlib.metadata.version('jaxlib')}")
    if not re.fullmatch(r"v\d\w*:\d+(x\d+){1,2}", name):
        raise ValueError(f"--topology = {name}: not known; use {KNOWN}")
    return tpu_topology(name)


def tpu_topology(name: str) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology = {name}: compiling for TPUs needs libtpu, which is not installed; pip install 'jax[tpu]' (it needs no TPU)"
        )
    for variable, value in WITHOUT_HOST.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    sizes = [int(size) for size in name.partition(":")[2].split("x")]
    try:
        if max(sizes) == 1:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, chips_per_host_bounds=(1, 1, 1))
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # jax and libtpu raise several kinds
        raise ValueError(f"--topology = {name}: libtpu does not know it ({str(error).splitlines()[0][:200]}); use {KNOWN}") from error
    devices: tuple[Any, ...] = tuple(found.devices)
    memory = TPU_BYTES.get(devices[0].device_kind)
    compiler = f"libtpu {importlib.metadata.version('libtpu')}"
    return Topology(name, devices, devices[0].device_kind, None if memory is None else int(memory), compiler)
