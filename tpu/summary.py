"""Formats figures: FLOP/s, shares of the hardware's peak, and the tables of report.md. Sections are as in report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Sections = Sequence[Mapping[str, Any]]
DTYPES = ("bfloat16", "float32")
# Published FLOP/s in bfloat16 without sparsity, by JAX's name of the chip.
PUBLISHED = {
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def flops(value: float) -> str:
    """FLOP/s with a readable unit."""
    return f"{value / 1e12:.2f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.1f} GFLOP/s"


def values_of(sections: Sections, name: str) -> dict[str, Any]:
    """What a section measured; empty if it has not run."""
    return next((section["values"] for section in sections if section["name"] == name), {})


def with_shares(sections: Sections) -> list[dict[str, Any]]:
    """The sections, with two more figures for each speed: "utilisation", the share of the measured matrix product in the same type, and
    "mfu", the share of the chip's published bfloat16 peak. They are null if the speed that they compare with is not known."""
    machine = values_of(sections, "machine")
    products, published = machine.get("matmul_flops", {}), PUBLISHED.get(machine.get("kind", ""))
    found = []
    for section in sections:
        values = dict(section["values"])
        if section["name"].startswith("speed-"):
            for dtype in [name for name in DTYPES if name in values]:
                speed = values[dtype]["flops"]
                shares = {"utilisation": _share(speed, products.get(dtype)), "mfu": _share(speed, published)}
                values[dtype] = {**values[dtype], **shares}
        found.append({**section, "values": values})
    return found


def _share(value: float, whole: float | None) -> float | None:
    return None if whole is None else value / whole


def markdown(sections: Sections, smoke: bool) -> str:
    """report.md."""
    parts = ["# Report", *(["Smallest sizes on a CPU: these figures say only that everything runs."] if smoke else [])]
    if machine := values_of(sections, "machine"):
        parts.append(_machine(machine))
    for title, table in (
        ("Training speed, random weights, one device", _speeds(sections)),
        ("Tiles: contriever in bfloat16", _tiles(values_of(sections, "tiles"))),
        ("Attention: milliseconds forward, and forward with backward", _attention(values_of(sections, "attention"))),
        ("Index and search", _index(values_of(sections, "index"))),
        ("qa2 from random weights", _trainings(sections)),
    ):
        if len(table) > 2:
            parts.append(f"## {title}\n\n" + "\n".join(table))
    parts.append("## Sections\n\n" + "\n".join(_states(sections)))
    return "\n\n".join(parts) + "\n"


def _table(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def _row(*cells: object) -> str:
    return f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _gigabytes(count: float | None) -> str | None:
    return None if count is None else f"{count / 1e9:.2f}"


def _machine(values: Mapping[str, Any]) -> str:
    products = ", ".join(f"{flops(speed)} in {name}" for name, speed in values.get("matmul_flops", {}).items())
    gradient = values.get("gradient", {})
    far = [f"{gradient[name]:.1e} {text}" for name, text in GRADIENTS.items() if gradient.get(name) is not None]
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    return "\n".join(
        (
            f"- {len(values['devices'])} x {values['kind']} ({values['platform']}); {versions}",
            f"- matrix product: {products or '-'}",
            f"- gradient of one update: {', '.join(far) or 'nothing to compare'}",
        )
    )


GRADIENTS = {"of_all_devices": "between all devices and one", "of_the_host": "between one device and the CPU"}


def _speeds(sections: Sections) -> list[str]:
    rows = _table("network", "type", "parameters", "transitions/s", "MFU", "of measured product", "idle", "peak GB", "planned GB")
    for section in sections:
        for dtype in DTYPES:
            if section["name"].startswith("speed-") and (found := section["values"].get(dtype)):
                size, name = f"{section['values']['parameters'] / 1e6:.1f} M", section["name"].removeprefix("speed-")
                shares = map(_percent, (found["mfu"], found["utilisation"], found["input_bound"]))
                memory = map(_gigabytes, (found["peak_bytes"], found["planned_bytes"]))
                rows.append(_row(name, dtype, size, f"{found['transitions_per_second']:.1f}", *shares, *memory))
    return rows


def _tiles(values: Mapping[str, Any]) -> list[str]:
    rows = _table("tokens of a tile", "transitions/s", "TFLOP/s", "peak GB", "planned GB")
    for found in values.get("tiles", ()):
        speed = f"{found['flops'] / 1e12:.2f}"
        memory = map(_gigabytes, (found["peak_bytes"], found["planned_bytes"]))
        rows.append(_row(f"{found['tile_tokens']:,}", f"{found['transitions_per_second']:.1f}", speed, *memory))
    return rows


def _attention(values: Mapping[str, Any]) -> list[str]:
    rows = _table("shape", "rows x tokens", "type", "attention", "forward", "both", "TFLOP/s", "largest difference")
    for found in values.get("attention", ()):
        first = (found["shape"], f"{found['rows']} x {found['tokens']}", found["dtype"], found["attention"])
        if "error" in found:
            rows.append(_row(*first, found["error"].split("\n")[0][:60], None, None, None))
            continue
        times = (f"{1e3 * found[name]:.2f}" for name in ("forward_seconds", "both_seconds"))
        rows.append(_row(*first, *times, f"{found['flops'] / 1e12:.2f}", f"{found['difference']:.1e}"))
    return rows


def _index(values: Mapping[str, Any]) -> list[str]:
    rows = _table("what", "figure")
    if "index_chunks" in values:
        rows.append(_row(f"building an index of {values['index_chunks']} chunks", f"{values['index_chunks_per_second']:.0f} chunks/s"))
    if "state_seconds" in values:
        rows.append(_row("embedding one state", f"{1e3 * values['state_seconds']:.2f} ms"))
    for count in (1, 32):
        if (seconds := values.get(f"scan_seconds_{count}")) is not None:
            what = (
                f"a step of {count} question(s) over {values['search_chunks']} {values['search_vectors']} of width {values['search_width']}"
            )
            rows.append(_row(what, f"{1e3 * seconds:.2f} ms"))
    return rows


def _trainings(sections: Sections) -> list[str]:
    rows = _table("network", "type", "updates", "seconds", "transitions/s", "best validation Fact EM", "curves")
    for section in sections:
        if section["name"].startswith("train-") and (found := section["values"]):
            updates, seconds = f"{found['updates']} of {found['of_updates']}", f"{found['training_seconds']:.0f}"
            speed, best = f"{found['transitions_per_second']:.1f}", f"{found['best_fact_em']:.3f}"
            name, curves = section["name"].removeprefix("train-"), f"[{found['curves']}]({found['curves']})"
            rows.append(_row(name, found["compute_dtype"], updates, seconds, speed, best, curves))
    return rows


def _states(sections: Sections) -> list[str]:
    cell = lambda text: None if text is None else text.replace("\n", " ").replace("|", "/")
    return [
        *_table("section", "status", "seconds", "why"),
        *(_row(s["name"], s["status"], f"{s['seconds']:.0f}", cell(s["reason"])) for s in sections),
    ]
