"""A result of compile.py for one update: as a record, as text for the terminal, and with others in a file and a table."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collectives import Collective

from qrag_jax.rundir.files import read_json, write_json, write_text
from qrag_jax.train.plan import GIB

SCHEMA = 1
FILE, TABLE, LOCK = "memory.json", "memory-table.md", ".memory.lock"
HEADS = (
    *("preset", "benchmark", "devices", "state", "fits", "GiB a device", "of", "parameters", "average", "Adam", "temporaries", "other"),
    *("TFLOP", "GB moved", "collectives (MiB)", "compiled by"),
)
PARTS = ("params", "target", "moments", "temporaries", "other")


@dataclass(frozen=True)
class Found:
    """One update, compiled or refused by the compiler. Bytes are those of one device. FLOP and bytes moved count each loop's body once."""

    topology: str
    kind: str
    devices: int
    compiler: str
    effort: str
    jax: str
    date: str
    preset: str
    benchmark: str
    task: str
    mode: str
    layers: int
    of_layers: int
    """Number of layers of the network, of which ``layers`` were compiled."""
    settings: dict[str, Any]
    parameters: int
    pool_rows: int
    seconds: float
    """How long compiling took."""
    available: int | None
    fits: bool | None
    needs: int | None
    """Bytes in all. Known even if the compiler refuses the program."""
    refused: str | None = None
    """Why the compiler refused it, or why it was not asked."""
    at_least: bool = False
    """Whether the state alone does not fit, so that nothing was compiled; ``needs`` is then the state."""
    plan: dict[str, int] | None = None
    """``needs`` by :class:`qrag_jax.train.plan.Plan`'s names, ``PARTS``."""
    argument_bytes: int | None = None
    output_bytes: int | None = None
    alias_bytes: int | None = None
    """Bytes of the results that overwrite arguments."""
    temporary_bytes: int | None = None
    code_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    collectives: tuple[dict[str, Any], ...] = ()
    """:class:`collectives.Collective` by its names."""

    @property
    def key(self) -> tuple[Any, ...]:
        """A later record with this key replaces this one."""
        return self.preset, self.benchmark, self.task, self.topology, self.mode, self.layers

    @property
    def verdict(self) -> str:
        if self.fits is None:
            return "unknown"
        return "fits" if self.fits else "does not fit"


def gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def describe(found: Found) -> str:
    """A text for the terminal."""
    run, part = found.settings, found.plan or {}
    has = "an unknown amount" if found.available is None else f"{gib(found.available)} GiB"
    rows = {
        "update": f"{found.preset} on {found.benchmark}/{found.task}: {run['optim.batch']} episodes of {run['rl.budget']} picks, "
        f"{run['model.compute_dtype']}, {'remat, ' if run['model.remat'] else ''}tiles of {run['model.tile_tokens']} tokens",
        "network": f"{found.parameters / 1e6:.1f} M parameters in all"
        + (f"; ONLY {found.layers} of its {found.of_layers} layers" if found.layers < found.of_layers else f", {found.layers} layers"),
        "compiled for": f"{found.devices} x {found.kind}, state {found.mode}, by {found.compiler} in {found.seconds:.0f} s",
        "each device": f"{found.verdict}: {found.at_least * 'more than '}{gib(found.needs)} GiB of {has}"
        + (f" ({found.refused})" if found.refused else ""),
    }
    if part:
        rows |= {
            "  parameters": f"{gib(part['params'])} GiB, their moving average {gib(part['target'])}, Adam {gib(part['moments'])}",
            "  temporaries": f"{gib(part['temporaries'])} GiB (gradients and activations)",
            "  other": f"{gib(part['other'])} GiB (batch, results, program)",
            "  XLA's figures": f"arguments {gib(found.argument_bytes)} GiB, results {gib(found.output_bytes)}, in place of arguments "
            f"{gib(found.alias_bytes)}, temporaries {gib(found.temporary_bytes)}, program {gib(found.code_bytes)}",
            "work": f"{found.flops / 1e12:.3f} TFLOP, {(found.bytes_accessed or 0) / 1e9:.1f} GB moved (a loop's body counts once)"
            if found.flops
            else "the compiler does not say",
            "collectives": "; ".join(told(Collective(**one)) for one in found.collectives) or "none",
        }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def told(one: Collective) -> str:
    return f"{one.count} {one.kind} ({one.bytes / 2**20:.1f} MiB)"


def store(folder: Path, found: Found) -> None:
    """Adds a record to the folder's FILE, or replaces the one with its key, and writes TABLE. Raises ValueError on a foreign FILE."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [row for row in read(folder / FILE) if row.key != found.key] if (folder / FILE).exists() else []
        rows = sorted([*rows, found], key=lambda row: row.key)
        write_json(folder / FILE, {"schema": SCHEMA, "rows": [asdict(row) for row in rows]})
        write_text(folder / TABLE, table(rows) + "\n")


def read(file: Path) -> list[Found]:
    """Raises ValueError when the file is damaged, or not compile.py's."""
    tree = read_json(file)
    try:
        if tree["schema"] != SCHEMA:
            raise ValueError(f"{file}: has schema {tree['schema']}, this version reads {SCHEMA}; give another --out")
        return [Found(**row) for row in tree["rows"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file}: not a file of tpu/compile.py ({error}); give another --out") from error


def table(rows: Sequence[Found]) -> str:
    """A table in Markdown, with a line for each record."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|---|---|---|" + "---:|" * 9 + "---|---|"]
    for row in rows:
        name = row.preset if row.layers == row.of_layers else f"{row.preset}, {row.layers} of {row.of_layers} layers"
        parts = [gib(row.plan[part]) if row.plan else "-" for part in PARTS]
        work = [f"{row.flops / 1e12:.2f}" if row.flops else "-", f"{row.bytes_accessed / 1e9:.1f}" if row.bytes_accessed else "-"]
        sent = "; ".join(f"{one['count']} {one['kind']} ({one['bytes'] / 2**20:.0f})" for one in row.collectives)
        fits = {None: "-", True: "yes", False: "**no**"}[row.fits]
        where = f"{row.devices} x {row.kind}"
        by = "not compiled" if row.at_least else f"{row.compiler}, {row.effort}, {row.seconds:.0f} s"
        cells = (
            name,
            row.benchmark,
            where,
            row.mode,
            fits,
            row.at_least * "> " + gib(row.needs),
            gib(row.available),
            *parts,
            *work,
            sent or "-",
            by,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
