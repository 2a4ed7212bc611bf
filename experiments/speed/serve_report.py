"""The page of ``experiments.speed.serve``."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """serve.md from serve.json."""
    machine, settings, restart = report["machine"], report["settings"], report["restart"]
    lines = [
        "# `qrag serve` under load",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, which the clients share; Python {machine['python']}, "
        f"jax {machine['packages']['jax']}. {settings['chunks']:,} chunks, {report['width']} wide; {settings['budget']} picks a question; "
        f"{settings['questions']} different questions. Each answer is compared with a direct search.",
        "",
        "| clients | questions | questions/s | p50, s | p99, s | wrong | refused or lost | own memory, MB | load average |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["load"]:
        own = " to ".join("?" if value is None else f"{value:,.0f}" for value in row["own_mb"])
        lost = sum(row["not_answered_at_once"].values())
        average = "?" if row["load_average"] is None else f"{row['load_average']:.1f}"
        lines.append(
            f"| {row['clients']} | {row['questions']:,} | {row['questions_per_s']:.1f} | {row['p50_s']:.3f} | {row['p99_s']:.3f} "
            f"| {row['wrong']} | {lost} | {own} | {average} |"
        )
    swapped = sum(row["other_order"] for row in report["load"])
    again = ", ".join(f"{count:,} {kind}" for kind, count in sorted(restart["asked_again"].items())) or "none"
    return "\n".join(
        [
            *lines,
            "",
            f"{swapped:,} answers had the same Q as the direct search up to rounding, and another chunk with that Q. Own memory leaves the "
            "mapped files of the index out: before and after each row.",
            "",
            "## A restart under load",
            "",
            f"SIGTERM while {restart['clients']} clients asked: the server ended with exit code {restart['exit_code']} after "
            f'{restart["drain_seconds"]:.1f} s and said "{restart["said"]}". It was started again on the same port and answered after '
            f"{restart['start_seconds']:.1f} s. Clients asked again whatever was refused: of {restart['answered_before']:,} questions "
            f"answered before and {restart['answered_after']:,} after, {restart['wrong']} were wrong and {restart['never_answered']} never "
            f"answered. The longest time without an answer was {restart['longest_without_an_answer_s']:.1f} s. Asked again: {again}. (no "
            "connection: nothing listened. refused: status 429 or 503. cut off: sent, and the connection closed without an answer.)",
            "",
        ]
    )
