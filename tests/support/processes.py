"""Starts Python processes. A start that imports JAX costs 5 to 10 seconds; docs/testing.md says which tests may start one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qrag_jax.rundir import hosts
from tests.conftest import ROOT
from tests.support.compiling import quick


def environment() -> dict[str, str]:
    """This process's, with compilation as the test has it: optimised or not."""
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(quick()))}


def start_python(*words: str, **variables: str) -> subprocess.Popen[str]:
    """Starts ``python WORDS`` at the root of the repository; stdout and stderr go to one pipe."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment() | variables, **pipes)


@contextmanager
def processes(*commands: tuple[str, ...]) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts ``python COMMAND`` for each command, as the processes of one run, on four simulated devices in all."""
    count = len(commands)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}"}
    started = []
    try:
        for number, words in enumerate(commands):
            several = dict(zip(hosts.VARIABLES, (address, str(count), str(number)), strict=True)) if count > 1 else {}
            started.append(start_python(*words, **devices, **several))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()  # also closes its pipe


def finish_all(started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """Waits until all processes have ended, checks their exit code, and returns the output of each."""
    outputs = [process.communicate(timeout=1200)[0] for process in started]
    assert [process.returncode for process in started] == [code] * len(started), "\n".join(outputs)
    return outputs


def wait_for_all(happened: Callable[[], bool], started: list[subprocess.Popen[str]]) -> None:
    """Checks every 20 ms, as long as all processes are alive."""
    while not happened():
        assert all(process.poll() is None for process in started), finish_all(started)
        time.sleep(0.02)
