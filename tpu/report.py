"""What one accelerator does with this project, in at most ten minutes: python tpu/report.py --out DIR

machine      devices, speed of a matrix product, the gradient compared (check.py)
speed-*      updates of four networks with random weights, in bfloat16 and float32: transitions/s, MFU, idle share, peak memory
tiles        updates of contriever's size with tiles of several sizes
attention    attention kernels compared
index        chunks/s of building an index, a search step over 400 000 chunks (10M tokens)
train-*      BabiLong qa2, trained for two minutes with the tiny network and with one of contriever's size: metrics and curves
Each section is a process of its own. DIR gets report.json and report.md after every section, so a report that is cut short leaves what it
had. A section that needs more time than is left is skipped; one that fails or takes too long is noted, and the next one runs.
Exit codes: 0 every section is done or skipped, 1 a section failed or was stopped, 64 bad settings, 74 DIR cannot be written to,
130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from summary import markdown, with_shares

from qrag_jax.rundir.files import read_json, write_json, write_text
from qrag_jax.rundir.log import say

MINUTES = 10.0
PATIENCE = 2.0  # so that one slow section does not take the time of all that follow
LOG_LINES = 5  # of a section that ended without saying why


@dataclass(frozen=True)
class Section:
    name: str
    seconds: float
    """What it should need on an H100, compiling included; it is not begun with less time left."""


# What matters most comes first. An H100 needed so long to begin and to compile (docs/results/h100.md); the last ones may have to wait for
# another call with --only.
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
    """What became of a section. ``values`` holds what was measured before it ended, however it ended."""

    name: str
    status: Literal["done", "failed", "stopped", "skipped"]
    seconds: float = 0.0
    reason: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


Run = Callable[[Section, float], Result]
"""Runs a section, which has this many seconds."""


def run_sections(
    plan: Sequence[Section],
    minutes: float,
    run: Run,
    write: Callable[[Sequence[Result]], None],
    clock: Callable[[], float] = time.monotonic,
    patience: float = PATIENCE,
) -> list[Result]:
    """Runs the sections in turn, and calls ``write`` with all results so far after each of them.

    A section is stopped after ``patience`` times what it should need, or when ``minutes`` are over.
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
                # With more time in all, each section has more: some machines compile slowly.
                result = run(section, min(left, patience * section.seconds * max(1.0, minutes / MINUTES)))
            except Exception as error:  # one section must not end the report
                result = Result(section.name, "failed", clock() - start, f"{type(error).__name__}: {error}")
        results.append(result)
        write(results)
        say(f"{result.name}: {result.status} ({result.seconds:.0f} s){f': {result.reason}' if result.reason else ''}")
    return results


def run_apart(out: Path, variables: Mapping[str, str], smoke: bool, section: Section, seconds: float) -> Result:
    """Runs a section as a process of its own, tpu/section.py, which is killed after ``seconds``. Its output goes to NAME.log."""
    words = [sys.executable, str(Path(__file__).with_name("section.py")), section.name, "--out", str(out), "--seconds", str(seconds)]
    words += ["--cpu-smoke"] if smoke else []
    file, log, began = out / f"{section.name}.json", out / f"{section.name}.log", time.monotonic()
    file.unlink(missing_ok=True)
    code: int | None = None  # stays so when the time is over
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
    """The variables of a section's process: what the caller has set stays. ``cache``: those of the smallest sizes on a CPU, whose compiled
    programs go into this folder."""
    # A GPU belongs to one section at a time, so it may have nearly all memory. (A peak is what is in use, not what is set aside.)
    found = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TF_CPP_MIN_LOG_LEVEL": "2", "HF_HUB_OFFLINE": "1"}
    if cache is not None:
        # Many small programs, some of them the same.
        found |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": cache}
        found |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    root = str(Path(__file__).resolve().parents[1])
    found |= {**given, "PYTHONPATH": os.pathsep.join(filter(None, (root, given.get("PYTHONPATH"))))}
    platforms = [name for name in given.get("JAX_PLATFORMS", "").split(",") if name]
    if cache is not None:
        found["JAX_PLATFORMS"] = "cpu"
    elif platforms and "cpu" not in platforms:
        found["JAX_PLATFORMS"] = ",".join([*platforms, "cpu"])  # the gradient is compared with the CPU's
    return found


def write_report(out: Path, minutes: float, smoke: bool, results: Sequence[Result]) -> None:
    """Writes report.json and report.md."""
    sections = with_shares([asdict(result) for result in results])
    write_json(out / "report.json", {"schema": 1, "minutes": minutes, "cpu_smoke": smoke, "sections": sections})
    write_text(out / "report.md", markdown(sections, smoke))


def choose(only: Sequence[str]) -> list[Section]:
    """The sections of these names, in the order of the plan; all of them without any. Raises ValueError on an unknown name."""
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
        # A CPU's times say nothing about how far a section has come.
        results = run_sections(plan, options.minutes, apart, write, patience=math.inf if options.cpu_smoke else PATIENCE)
    say(f"\n{(out / 'report.md').read_text(encoding='utf-8')}\nreport.json and report.md are in {out}")
    return int(any(result.status in ("failed", "stopped") for result in results))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report; a file of the same name is replaced")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the whole report takes no longer (default: 10)")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help=f"of {', '.join(section.name for section in PLAN)}")
    parser.add_argument(
        "--cpu-smoke", action="store_true", help="the smallest sizes, on a CPU: shows that everything runs, measures nothing"
    )
    options = parser.parse_args(argv)
    try:
        return run(options)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 64
    except OSError as error:
        sys.stderr.write(f"error: --out = {options.out}: cannot be written to ({error.strerror})\n")
        return 74
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the section's process is then killed with this one
    raise SystemExit(main())
