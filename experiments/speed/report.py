"""Writes speed.md: the content of speed.json as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qrag_jax.config.lengths import format_tokens

RATIOS = {
    "step_over_plain_dot": ("search step / plain dot product", "1 = the lower limit of every exhaustive search"),
    "textbook_over_step": ("re-rotation in NumPy as the equations are written / search step", "how many times as fast a step is"),
    "numpy_over_step": ("re-rotation in NumPy, with tables, in blocks / search step", "how many times as fast a step is"),
    "pytorch_over_step": ("PyTorch re-rotation / search step", "how many times as fast a step is"),
    "sentence_transformers_over_build": ("sentence-transformers / this library, same weights", "how many times as fast embedding is"),
    "sentence_transformers_over_build_minilm": ("sentence-transformers / this library, MiniLM", "how many times as fast embedding is"),
    "build_linearity": ("time per chunk, largest index / smallest", "1 = linear"),
    "build_share_of_peak": ("index build / matrix-product peak", "share of the machine's GFLOP/s; padding is not counted"),
    "memory_over_index": ("memory of a search / index on disk", "resident, mapped pages included"),
}
BUILD = ("median_s", "chunks_per_s", "over_smallest", "tokens_per_chunk", "gflops", "share_of_peak")
ENCODERS = ("ours", "theirs_32", "theirs_256")
WAYS = ("step", "plain_dot", "textbook", "numpy", "pytorch")
STEP_RATIOS = ("step_over_plain_dot", "textbook_over_step", "numpy_over_step", "pytorch_over_step", "gb_per_s")


def markdown(report: Mapping[str, Any]) -> str:
    """The text of speed.md. Null figures are shown as "not measured"; the reasons are listed at the end."""
    longest = report["search"][-1]
    lines = [
        "# Speed",
        _setting(report),
        f"## The ratios that matter (searches at {format_tokens(longest['tokens'])} tokens, {longest['chunks']} chunks)",
        _table(("ratio", "", "meaning"), ((name, _n(report["ratios"][key]), meaning) for key, (name, meaning) in RATIOS.items())),
        *_encoders(report),
        *_searches(report),
        *_memory(report["memory"]),
    ]
    if reasons := _reasons(report):
        lines += ["## Not measured", "\n".join(f"- {reason}" for reason in reasons)]
    return "\n\n".join(lines) + "\n"


def _setting(report: Mapping[str, Any]) -> str:
    """Machine, text and retriever."""
    machine, haystack, settings = (report[name] for name in ("machine", "haystack", "settings"))
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    matmul = machine["matmul"]
    passes = "" if haystack["passes"] == 1 else f", read {haystack['passes']} times"
    return (
        f"{machine['cpu'] or 'CPU of unknown name'}, {machine['cores']} cores; Python {machine['python']}, {packages}. "
        f"float32 matrix product of {matmul['size']} rows: "
        f"{_n(matmul['jax']['gflops'])} GFLOP/s in JAX, {_n(matmul['numpy']['gflops'])} in NumPy; "
        f"a dot product reads {_n(machine['plain_dot']['gb_per_s'])} GB/s from memory. {settings['repeats']} samples in turn, medians. "
        f"Text: {haystack['source']}, {haystack['sentences']} sentences{passes}. "
        f"Retriever: {report['retriever']['source']}, {report['retriever']['width']} wide, chunks of at most "
        f"{report['retriever']['chunk_tokens']} tokens."
    )


def _encoders(report: Mapping[str, Any]) -> list[str]:
    """Tables of index builds, and of sentence-transformers on the same texts."""
    return [
        "## Building an index",
        _table(
            ("chunks", "builds", "s", "chunks/s", "time per chunk / smallest", "tokens per chunk", "GFLOP/s", "share of peak"),
            ((r["chunks"], r["samples"], *(_n(r[name]) for name in BUILD)) for r in report["build"]),
        ),
        f"Operations per chunk: {report['build_flops']}.",
        "## Compared with sentence-transformers",
        _table(
            ("model", "texts", "here, s", "theirs at 32, s", "theirs at 256, s", "theirs / here", "largest difference"),
            (
                (r["model"], r["texts"], *(_ms(r[name], 1) for name in ENCODERS), _n(r["theirs_over_ours"]), _n(r["largest_difference"]))
                for r in report["compare"]
            ),
        ),
    ]


def _searches(report: Mapping[str, Any]) -> list[str]:
    """Tables of a step at every length; of positions, batches and storage at the longest length; of whole questions."""
    return [
        "## A search step after three picks (ms)",
        _table(
            (
                *("tokens", "chunks", "step", "plain dot", "NumPy as written", "NumPy", "PyTorch"),
                *("step / dot", "as written / step", "NumPy / step", "PyTorch / step", "GB/s"),
            ),
            (
                (format_tokens(r["tokens"]), r["chunks"], *(_ms(r[name]) for name in WAYS), *(_n(r[name]) for name in STEP_RATIOS))
                for r in report["search"]
            ),
        ),
        "## At the longest length (ms per step)",
        _table(("positions", "step", "/ integer"), ((r["positions"], _ms(r), _n(r["over_integer"])) for r in report["positions"])),
        _table(
            ("questions per pass", "pass", "per question", "alone / together"),
            ((r["questions"], _ms(r), _n(1e3 * r["s_per_question"]), _n(r["alone_over_together"])) for r in report["batches"]),
        ),
        _table(
            ("stored as", "step", "/ float32", "recall@10", "largest error of Q", "mean error of Q", "spread of Q"),
            (
                (r["dtype"], _ms(r), *(_n(r[k]) for k in ("over_float32", "recall_at_10", "q_error_max", "q_error_mean", "q_std")))
                for r in report["storage"]
            ),
        ),
        "## A whole question, four picks (s)",
        _table(
            ("tokens", "chunks", "greedy", "beam 4", "beam / greedy"),
            (
                (format_tokens(r["tokens"]), r["chunks"], _ms(r["greedy"], 1), _ms(r["beam"], 1), _n(r["beam_over_greedy"]))
                for r in report["questions"]
            ),
        ),
    ]


def _memory(memory: Mapping[str, Any]) -> list[str]:
    sizes = (_mb(memory.get(f"{name}_bytes")) for name in ("index", "before", "peak", "search", "anonymous"))
    return [
        "## Memory of a search in a fresh process (MB)",
        _table(
            ("index on disk", "before", "peak", "of the search", "without mapped files", "search / index"), [(*sizes, _n(memory["ratio"]))]
        ),
    ]


def _reasons(report: Mapping[str, Any]) -> list[str]:
    """The figures that were not measured, with the reasons."""
    reasons = [f"{r['chunks']} chunks, {r['reason']}" for r in report["build"] if r["reason"]]
    reasons += [f"{r['model']}: {r['reason']}" for r in report["compare"] if r["reason"]]
    if reason := report["search"][-1]["pytorch_reason"]:
        reasons.append(f"PyTorch re-rotation: {reason}")
    if reason := report["memory"]["reason"]:
        reasons.append(f"memory: {reason}")
    return reasons


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _n(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _ms(times: Mapping[str, Any] | None, scale: float = 1e3) -> str:
    return _n(None if times is None else scale * times["median_s"])


def _mb(size: int | None) -> str:
    return _n(None if size is None else size / 1e6)
