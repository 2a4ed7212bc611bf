"""Saved figures, and the checks for each of them: it has labels and a title, and its legends and texts cover nothing."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the test saves, in order."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, path: Path, **options: Any) -> None:
        save(self, path, **options)
        saved.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def legends(figure: Figure) -> list[list[str]]:
    """The names in each legend."""
    return [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes if axis.get_legend()]


def check(figure: Figure) -> None:
    """Fails on an axis without a label, a figure without a title, a legend over data, overlapping texts, and parts that are cut off."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    shown = [axis for axis in figure.axes if axis.axison]
    boxes = {"title": figure._suptitle} if figure._suptitle else {}  # type: ignore[attr-defined]
    assert figure.get_suptitle() or all(axis.get_title() for axis in shown), "a picture says what it shows"
    for number, axis in enumerate(shown):
        for name, side in (("x", axis.xaxis), ("y", axis.yaxis)):
            ticks = [tick for tick in side.get_ticklabels() if tick.get_visible() and tick.get_text()] if side.get_visible() else []
            words = any(char.isalpha() for tick in ticks for char in tick.get_text().replace("k", "").replace("m", ""))
            alone = not (figure.axes[0].get_shared_y_axes().joined(axis, figure.axes[0]) and axis is not figure.axes[0])
            assert side.get_label_text() or words or not ticks or not alone, f"axes {number}: the {name}-axis has no label"
            for one, other in combinations([tick.get_window_extent(renderer) for tick in ticks], 2):
                assert not one.overlaps(other), f"axes {number}: tick labels of the {name}-axis lie over each other"
            if side.get_label_text():
                boxes[f"{name} label of {number}"] = side.label
        if axis.get_title():
            boxes[f"title of {number}"] = axis.title
        if axis.get_legend():
            boxes[f"legend of {number}"] = axis.get_legend()
    extents = {name: part.get_window_extent(renderer) for name, part in boxes.items()}
    for name, extent in extents.items():
        for number, axis in enumerate(shown):
            assert not extent.overlaps(axis.bbox), f"the {name} covers the data of axes {number}"
        assert figure.bbox.x0 - 1 <= extent.x0, f"the {name} is cut off at the left"
        assert extent.x1 <= figure.bbox.x1 + 1, f"the {name} is cut off at the right"
        assert figure.bbox.y0 - 1 <= extent.y0, f"the {name} is cut off below"
        assert extent.y1 <= figure.bbox.y1 + 1, f"the {name} is cut off above"
    for one, other in combinations(extents, 2):
        assert not extents[one].overlaps(extents[other]), f"the {one} and the {other} lie over each other"
