"""Redraws the committed pictures of docs/results from the data in their folders; :mod:`experiments.report` calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments import seeds, tables
from experiments.ablations import report as ablations
from experiments.checks import read_results
from experiments.open import report as opened
from experiments.paper.plots import draw_context
from experiments.speed.plots import read_speed, speed

Draw = Callable[[Path], None]


def redraw(results: Path) -> int:
    """Redraws every picture in a folder of ``results`` whose data is there; returns their number. Raises ValueError on bad data."""
    drawn = [(path, draw) for path, draw in drawings(results).items() if path.is_file()]
    for path, draw in drawn:
        draw(path)
    return len(drawn)


def without_data(results: Path) -> list[Path]:
    """Pictures in a folder of ``results`` that cannot be drawn from the data there."""
    return sorted(set(results.glob("*/*.png")) - drawings(results).keys())


def drawings(results: Path) -> dict[Path, Draw]:
    """Every picture that can be drawn from the data in the folders of ``results``: path -> the function that draws it there."""
    found: dict[Path, Draw] = {}
    for path in sorted(results.glob("*/results.json")):
        found[path.with_name("context.png")] = partial(draw_context, read_results(path))
    for path in sorted(results.glob("*/seeds.json")):
        found |= seeds.drawings(path.parent)
    for path in sorted(results.glob("*/ablations.json")):
        found[path.with_name("ablations.png")] = partial(ablations.draw, ablations.read_ablations(path))
    for path in sorted(results.glob("*/speed.json")):
        found[path.with_name("speed.png")] = partial(speed, read_speed(path))
    for path in sorted(results.glob("*/tables.json")):
        found |= tables.drawings(path.parent)
    for path in sorted(results.glob("*/open.json")):
        found |= opened.drawings(path.parent)
    for path in sorted(results.glob("*/sweep.json")):
        from experiments.sweep import report as sweeps  # needs the sweep extra

        found |= sweeps.drawings(path.parent)
    return found
