"""Devices to compile for: TPUs and GPUs, which need not be on this machine, or simulated CPU devices."""

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
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 85899345920 clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 }
}
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 10 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""  # describes the device to XLA; the numbers are from nvidia-smi and the data sheet
CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
KNOWN = "a TPU slice such as v5e:2x4, v6e:2x4 or v5p:2x2x2; h100:N; or cpu:N"
WITHOUT_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a TPU VM's metadata server: this machine is not one
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any type; without one, libtpu prints a warning
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling uses no device
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
    """The compiler, and its version."""

    @property
    def is_tpu(self) -> bool:
        return self.kind.startswith("TPU")

    @property
    def is_cpu(self) -> bool:
        return self.kind == "CPU"


def find_topology(name: str) -> Topology:
    """Must be called before anything uses a device. Raises ValueError on an unknown name, and if the compiler is missing."""
    match = re.fullmatch(r"(?P<chip>h100|cpu):(?P<count>[1-9]\d{0,2})", name)
    jax.config.update("jax_platforms", "cpu")
    if match and match["chip"] == "h100":
        return h100_topology(name, int(match["count"]))
    if match:
        jax.config.update("jax_num_cpu_devices", int(match["count"]))
        return Topology(name, tuple(jax.devices()), "CPU", None, f"XLA for CPUs, jaxlib {importlib.metadata.version('jaxlib')}")
    if not re.fullmatch(r"v\d\w*:\d+(x\d+){1,2}", name):
        raise ValueError(f"--topology = {name}: not known; use {KNOWN}")
    return tpu_topology(name)


def h100_topology(name: str, count: int) -> Topology:
    """GPUs of one machine. Raises ValueError without JAX's plugin for CUDA."""
    plugins = [found for found in CUDA_PLUGINS if found in {one.name for one in importlib.metadata.distributions()}]
    if not plugins:
        raise ValueError(f"--topology = {name}: compiling for GPUs needs JAX's plugin for CUDA (and no GPU); pip install 'jax[cuda12]'")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the check needs a GPU
    from jax.experimental import topologies

    found = topologies.get_topology_desc("", "cuda", target_config=H100, topology=f"1x1x{count}")
    compiler = f"XLA for GPUs, {plugins[0]} {importlib.metadata.version(plugins[0])}"
    return Topology(name, tuple(found.devices), "NVIDIA H100", H100_BYTES, compiler)


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
