"""What one accelerator does with this project, in at most ten minutes: python tpu/report.py --out DIR

machine      devices, speed of a matrix product, the gradient compared (check.py)
speed-*      updates of four networks with random weights, in bfloat16 and float32: transitions/s, MFU, idle share, peak memory
tiles        updates of contriever's size with tiles of several sizes
attention    attention kernels compared
index        chunks/s of building an index, a search step over 400 000 chunks (10M tokens)
train-*      BabiLong qa2, trained for two minutes with the tiny network and with one of contriever's size: metrics and curves
Each section runs in a process of its own. report.json and report.md in DIR are written after every section, so a report that is stopped
keeps all finished sections. A section is skipped if there is too little time left for it. If a section fails or takes too long, the report
says so and continues with the next one.
Exit codes: 0 every section is done or skipped, 1 a section failed or took too long, 64 bad settings or a DIR that cannot be used, 74 the
disk is full, 75 SIGTERM, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from command import Parser, run_command
from summary import markdown, with_shares

from qrag_jax.rundir.files import read_json, write_json, write_text
from qrag_jax.rundir.log import say

MINUTES = 10.0
PATIENCE = 2.0  # a section is stopped after this many times its seconds, so that the others have time left
LOG_LINES = 5  # shown of the log of a section that ended without a reason


@dataclass(frozen=True)
class Section:
    name: str
    seconds: float
    """How long it should take on an H100, with compilation. It is skipped if less time is left."""


# The most important sections come first. The seconds are from an H100 (docs/results/h100.md). They add up to more than ten minutes, so the
# last sections may need a second call with --only.
PLAN = (
    Section("machine", 60),
    Section("speed-tiny", 40),
    Section("speed-contriever", 75),
    Section("index", 60),
    Section("train-tiny", 120),
    Section("speed-e5", 120),
    Section("tiles", 120),
    Section("train-contriever", 160),
    Section("attention", 60),
    Section("speed-minilm", 60),
)


@dataclass(frozen=True)
class Result:
    """How a section ended. ``values``: what it had measured by then."""

    name: str
    status: Literal["done", "failed", "stopped", "skipped"]
    seconds: float = 0.0
    reason: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


Run = Callable[[Section, float], Result]
"""Runs a section, for at most this many seconds."""


def run_sections(
    plan: Sequence[Section],
    minutes: float,
    run: Run,
    write: Callable[[Sequence[Result]], None],
    clock: Callable[[], float] = time.monotonic,
    patience: float = PATIENCE,
) -> list[Result]:
    """Runs the sections in turn, and calls ``write`` with all results so far after each of them.

    A section is stopped after ``patience`` times its seconds, or when ``minutes`` are over.
    """
    began, results = clock(), list[Result]()
    for section in plan:
        left = began + 60 * minutes - clock()
        if left < section.seconds:
            reason = f"needs about {section.seconds:.0f} s, {max(left, 0):.0f} s were left; give more --minutes, or --only {section.name}"
            result = Result(section.name, "skipped", reason=reason)
        else:
            start = clock()
            try:
                # With more minutes, each section may take longer: some machines compile slowly.
                result = run(section, min(left, patience * section.seconds * max(1.0, minutes / MINUTES)))
            except Exception as error:  # one section must not end the report
                result = Result(section.name, "failed", clock() - start, f"{type(error).__name__}: {error}")
        results.append(result)
        write(results)
        say(f"{result.name}: {result.status} ({result.seconds:.0f} s){f': {result.reason}' if result.reason else ''}")
    return results


def run_apart(out: Path, variables: Mapping[str, str], smoke: bool, section: Section, seconds: float) -> Result:
    """Runs a section in a process of its own (tpu/section.py), which is killed after ``seconds``. Its output goes to NAME.log."""
    words = [sys.executable, str(Path(__file__).with_name("section.py")), section.name, "--out", str(out), "--seconds", str(seconds)]
    words += ["--cpu-smoke"] if smoke else []
    file, log, began = out / f"{section.name}.json", out / f"{section.name}.log", time.monotonic()
    file.unlink(missing_ok=True)
    code: int | None = None  # stays None if the time runs out
    with log.open("w", encoding="utf-8") as output, contextlib.suppress(subprocess.TimeoutExpired):
        code = subprocess.run(words, stdout=output, stderr=output, env=variables, timeout=seconds).returncode
    spent = time.monotonic() - began
    found = read_json(file) if file.exists() else {"values": {}, "error": None}
    if code == 0:
        return Result(section.name, "done", spent, None, found["values"])
    if code is None:
        return Result(section.name, "stopped", spent, f"not finished after {seconds:.0f} s", found["values"])
    last = " | ".join(log.read_text(encoding="utf-8", errors="replace").split("\n")[-LOG_LINES:])
    return Result(section.name, "failed", spent, found["error"] or f"exit code {code}; {log.name} ends with: {last}", found["values"])


def environment(given: Mapping[str, str], cache: str | None = None) -> dict[str, str]:
    """The environment variables of a section's process. Variables that the caller has set are kept. ``cache``: for the smallest sizes on
    a CPU, the folder for compiled programs; otherwise None."""
    # One section uses the GPU at a time, so it may reserve nearly all memory. (Peaks are of memory in use, not of memory reserved.)
    found = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TF_CPP_MIN_LOG_LEVEL": "2", "HF_HUB_OFFLINE": "1"}
    if cache is not None:
        # Many small programs, several of which occur in more than one section.
        found |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": cache}
        found |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    root = str(Path(__file__).resolve().parents[1])
    found |= {**given, "PYTHONPATH": os.pathsep.join(filter(None, (root, given.get("PYTHONPATH"))))}
    platforms = [name for name in given.get("JAX_PLATFORMS", "").split(",") if name]
    if cache is not None:
        found["JAX_PLATFORMS"] = "cpu"
    elif platforms and "cpu" not in platforms:
        found["JAX_PLATFORMS"] = ",".join([*platforms, "cpu"])  # to compare gradients with the CPU
    return found


def write_report(out: Path, minutes: float, smoke: bool, results: Sequence[Result]) -> None:
    """Writes report.json and report.md."""
    sections = with_shares([asdict(result) for result in results])
    write_json(out / "report.json", {"schema": 1, "minutes": minutes, "cpu_smoke": smoke, "sections": sections})
    write_text(out / "report.md", markdown(sections, smoke))


def choose(only: Sequence[str]) -> list[Section]:
    """The named sections, in the order of the plan; all sections if none is named. Raises ValueError on an unknown name."""
    if unknown := sorted(set(only) - {section.name for section in PLAN}):
        raise ValueError(f"--only {unknown[0]}: no such section; known: {', '.join(section.name for section in PLAN)}")
    return [section for section in PLAN if not only or section.name in only]


def run(options: argparse.Namespace) -> int:
    if not 0 < options.minutes < math.inf:
        raise ValueError(f"--minutes = {options.minutes}: must be > 0")
    plan, out = choose(options.only), options.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out = {out}: is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    write = partial(write_report, out, options.minutes, options.cpu_smoke)
    with tempfile.TemporaryDirectory() as cache:
        variables = environment(os.environ, cache if options.cpu_smoke else None)
        apart = partial(run_apart, out, variables, options.cpu_smoke)
        # On a CPU, the seconds of the plan mean nothing, so sections are not stopped early.
        results = run_sections(plan, options.minutes, apart, write, patience=math.inf if options.cpu_smoke else PATIENCE)
    say(f"\n{(out / 'report.md').read_text(encoding='utf-8')}\nreport.json and report.md are in {out}")
    return int(any(result.status in ("failed", "stopped") for result in results))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report; an older report in it is replaced")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="longest time of the whole report (default: 10)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SECTION", help=f"run only these sections, of {', '.join(one.name for one in PLAN)}"
    )
    parser.add_argument("--cpu-smoke", action="store_true", help="run the smallest sizes on a CPU, to test that everything works")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
