"""How XLA compiles the programs of tests. Most of the time of this suite is compiling.

JAX's own switch, ``jax_disable_most_optimizations``, saves a third of it. XLA's older code generator for the CPU, which this module adds
to the switch where jaxlib still has it, saves another third. JAX's only setting for it is XLA_FLAGS, which would change all programs of a
process. So this module wraps the function that makes the options of a compilation.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import compiler

from qrag_jax.rundir.compilations import cache_folder

SHORTEST = 0.1  # seconds of the shortest compilation that is kept
SWITCH = "jax_disable_most_optimizations"
QUICK = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}  # jaxlib 0.12 refuses the name


def keep() -> None:
    """Keeps compiled programs, in this process and in those that it starts, where later runs of the tests find them, from any clone."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("tests")))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(SHORTEST)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)


def quick() -> bool:
    """Whether programs are compiled quickly now."""
    return bool(jax.config.read(SWITCH))


def compile_quickly(yes: bool) -> None:
    jax.config.update(SWITCH, yes)


def install() -> None:
    """Adds ``QUICK`` to JAX's switch."""
    options_of = compiler.get_compile_options
    if hasattr(options_of, "__wrapped__"):
        return

    @functools.wraps(options_of)
    def get_compile_options(*args: Any, env_options_overrides: Mapping[str, Any] | None = None, **options: Any) -> Any:
        overrides = {**(QUICK if quick() else {}), **(env_options_overrides or {})}
        return options_of(*args, env_options_overrides=overrides or None, **options)

    compiler.get_compile_options = get_compile_options
