"""The drawings of a search trace, as SVG whose text keeps its size: places along the document are percentages, heights are pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from qrag_jax.retrieve.types import Step

ROW, HEIGHT = 30, 190  # pixels: a row of the ruler, a curve
COLOURS = 5  # in the template, from Okabe and Ito; with six shapes, a combination repeats after 30 picks
SHAPES = (
    '<circle r="10"/>',
    '<rect x="-9" y="-9" width="18" height="18" rx="2"/>',
    '<path d="M0-12.5 12.5 0 0 12.5-12.5 0z"/>',
    '<path d="M0-14 14 10H-14z"/>',
    '<path d="M-6-10.5H6L12 0 6 10.5H-6L-12 0z"/>',
    '<path d="M0 14 14-10H-14z"/>',
)
DROP = (0, 0, 0, 2.5, 0, -2.5)  # offset of the number below the middle of each shape
INLINE = 'width="28" height="28" viewBox="-14 -14 28 28"'  # attributes of a sign in text


@dataclass(frozen=True)
class View:
    """The data that every part of the page uses."""

    steps: tuple[Step, ...]
    chunks: int
    threshold: float | None
    support: tuple[int, ...]
    positions: str
    score: str = "Q"

    @cached_property
    def kept(self) -> int:
        """Number of picks before the stop."""
        return next((t for t, step in enumerate(self.steps) if step.stop), len(self.steps))

    @cached_property
    def found(self) -> set[int]:
        """Supporting chunks among the picks."""
        return {step.pick.chunk for step in self.steps} & set(self.support)

    @cached_property
    def ticks(self) -> list[float]:
        """Ticks of the Q axis, the same at every step; the first and the last are its ends."""
        from matplotlib.ticker import MaxNLocator

        values = [] if self.threshold is None else [self.threshold]
        for step in self.steps:
            values += [step.pick.q, *(other.q for other in step.runners_up)]
            values += [] if step.curve is None else [float(q) for q in step.curve if not math.isnan(q)]
        return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(min(values), max(values))]

    @cached_property
    def chunk_ticks(self) -> list[int]:
        from matplotlib.ticker import MaxNLocator

        ticks = MaxNLocator(4, steps=[1, 2, 5, 10], integer=True).tick_values(0, max(1, self.chunks - 1))
        inside = [int(tick) for tick in ticks if 0 <= tick < self.chunks]
        return inside if self.chunks - inside[-1] < self.chunks / 6 else [*inside, self.chunks - 1]

    def x(self, chunk: int | float) -> str:
        """The place along the document where a chunk begins."""
        return f"{100 * chunk / self.chunks:.4g}%"

    def middle(self, chunk: int) -> str:
        return self.x(chunk + 0.5)

    def y(self, q: float) -> str:
        low, high = self.ticks[0], self.ticks[-1]
        return f"{HEIGHT * (high - q) / (high - low):.4g}"

    def cuts(self, t: int) -> list[int]:
        """Bounds of the intervals into which the picks before step ``t`` cut the document (eq. 6): interval j begins at the j-th pick.

        Only relative positions have intervals; with others, the document is one interval.
        """
        picks = sorted(step.pick.chunk for step in self.steps[:t]) if self.positions == "relative" else []
        return [0, *picks, self.chunks]

    def interval(self, t: int) -> int:
        """The interval in which step ``t`` picked."""
        return sum(cut <= self.steps[t].pick.chunk for cut in self.cuts(t)[1:-1])

    def neighbours(self, t: int) -> int:
        """Number of earlier picks so near that their signs would cover the sign of step ``t``."""
        return sum(abs(step.pick.chunk - self.steps[t].pick.chunk) < self.chunks / 10 for step in self.steps[:t])

    def verdict(self, t: int) -> tuple[str, str]:
        """The stop decision of step ``t``, and why."""
        q = self.steps[t].pick.q
        if t == self.kept:
            return "the search would stop here", f"Q {show(q)} is below the stop threshold {show(self.threshold or 0.0)}"
        if t > self.kept:
            return "left out", f"the search would have stopped at step {self.kept + 1}"
        if self.threshold is None:
            return "kept", "no stop threshold"
        if t == 0:
            return "kept", "the first pick always is"
        return "kept", f"Q {show(q)} reaches the stop threshold {show(self.threshold)}"


def show(value: float) -> str:
    """A value of Q as text."""
    return f"{value:.3f}".replace("-", "−")


def marker(view: View, t: int, place: str) -> str:
    """The numbered sign of step ``t``; it is hollow if the search would have left out the pick."""
    shape, kind = t % len(SHAPES), f"c{t % COLOURS}" + (" out" if t >= view.kept else "")
    return f'<svg class="mark {kind}" {place} aria-hidden="true">{SHAPES[shape]}<text y="{DROP[shape]}">{t + 1}</text></svg>'


def _chunk_axis(view: View, top: int) -> str:
    marks = (
        f'<svg x="{view.middle(tick)}" y="{top}" class="tick"><line y2="5"/>'
        f'<text y="19" text-anchor="{"end" if tick > 0.97 * view.chunks else "middle"}">{tick:,}</text></svg>'
        for tick in view.chunk_ticks
    )
    return f'<line class="axis" x1="0" x2="100%" y1="{top}" y2="{top}"/>{"".join(marks)}'


def ruler(view: View) -> str:
    """The whole document, one row per step: bands for the intervals cut so far, and the pick. Supporting chunks are shown above."""
    rows, top = [], 0
    if view.support:
        signs = (
            f'<svg x="{view.middle(chunk)}" y="{ROW / 2}" class="known {"hit" if chunk in view.found else "missed"}">'
            f'<title>supporting chunk {chunk:,}: {"picked" if chunk in view.found else "missed"}</title><path d="M0 7-6-5H6z"/></svg>'
            for chunk in view.support
        )
        rows.append(f'<text class="label" x="-10" y="{ROW / 2}">known</text>{"".join(signs)}')
        top = ROW
    bottom = top + ROW * len(view.steps)
    cuts = []
    for t, step in enumerate(view.steps):
        y, x, bands = top + ROW * t, view.middle(step.pick.chunk), []
        for j, (start, end) in enumerate(pairwise(view.cuts(t))):
            kind = "here" if view.positions == "relative" and j == view.interval(t) else ("odd" if j % 2 else "even")
            share = (end - start) / view.chunks
            bands.append(f'<rect class="band {kind}" x="{view.x(start)}" y="{y + 3}" width="{view.x(end - start)}" height="{ROW - 6}"/>')
            if share >= 1 / 16 and view.positions == "relative":  # at the end away from the pick
                right = kind == "here" and 2 * step.pick.chunk < start + end
                place = f'text-anchor="end" x="{view.x(end)}" dx="-8"' if right else f'x="{view.x(start)}" dx="8"'
                name = f"interval {j}" if share >= 1 / 4 else f"{j}"
                bands.append(f'<text class="number" {place} y="{y + ROW / 2}">{name}</text>')
        label = f'<text class="label" x="-10" y="{y + ROW / 2}">{t + 1}</text>'
        rows.append(f'<g class="row c{t % COLOURS}" data-step="{t}">{label}{"".join(bands)}</g>')
        cuts.append(f'<line class="cut c{t % COLOURS}" x1="{x}" x2="{x}" y1="{y + ROW / 2}" y2="{bottom}"/>')
    rows += cuts
    rows += [marker(view, t, f'x="{view.middle(step.pick.chunk)}" y="{top + ROW * t + ROW / 2}"') for t, step in enumerate(view.steps)]
    picks = "; ".join(f"step {t + 1} picked chunk {step.pick.chunk:,}" for t, step in enumerate(view.steps))
    label = f"The document of {view.chunks:,} chunks: {picks}."
    return (
        f'<svg class="ruler" role="img" aria-label="{label}" width="100%" height="{bottom + 44}">{"".join(rows)}'
        f"{_chunk_axis(view, bottom + 2)}"
        f'<text class="title" x="100%" y="{bottom + 40}" text-anchor="end">chunk index</text></svg>'
    )


def key(view: View) -> str:
    """What the signs of the ruler mean, as a list."""
    box = '<rect x="1" y="1" width="10" height="10" rx="2" fill="{}" stroke="currentColor" stroke-width="1.5"{}/>'
    arrow = '<path d="M6 11 1 2H11z" fill="{}" stroke="currentColor" stroke-width="1.5"/>'
    items = [(box.format("currentColor", ""), "kept")] if view.kept else []
    if view.kept < len(view.steps):
        items.append((box.format("none", ' stroke-dasharray="3 2"'), "left out by the stop"))
    if view.support:
        items += [(arrow.format("currentColor"), "supporting chunk, picked"), (arrow.format("none"), "missed")]
    drawn = (f'<li><svg width="12" height="12" aria-hidden="true">{sign}</svg>{text}</li>' for sign, text in items)
    bands = "<li>bands: intervals cut by the earlier picks, numbered as in eq. 6 of the paper</li>" if view.positions == "relative" else ""
    return f'<ul class="key">{"".join(drawn)}{bands}</ul>'


def curve(view: View, t: int) -> str:
    """Q along the document at step ``t``. All steps share the Q axis; all steps and the ruler share the chunk axis."""
    step = view.steps[t]
    if step.curve is None:
        return '<p class="note">No curve was recorded for this search.</p>'
    bins = len(step.curve)
    line, area, base = [], [], view.y(min(max(0.0, view.ticks[0]), view.ticks[-1]))
    for start, end in _runs(step.curve):
        top = "".join(f"V{view.y(q)}H{b + 1}" for b, q in enumerate(step.curve[start:end].tolist(), start))
        line.append(f"M{start} {view.y(float(step.curve[start]))}{top}")
        area.append(f"M{start} {base}{top}V{base}z")
    decimals = max(len(f"{round(tick, 9):g}".partition(".")[2]) for tick in view.ticks)
    grid = "".join(
        f'<line class="grid" x2="100%" y1="{view.y(tick)}" y2="{view.y(tick)}"/>'
        f'<text class="label" x="-8" y="{view.y(tick)}">{f"{tick:.{decimals}f}".replace("-", "−")}</text>'
        for tick in view.ticks
    )
    earlier = []
    for s in range(t):
        x = view.middle(view.steps[s].pick.chunk)
        earlier.append(f'<line class="cut c{s % COLOURS}" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}"/>')
        earlier.append(marker(view, s, f'x="{x}" y="{26 * (view.neighbours(s) % 7)}"'))
    others = "".join(f'<svg x="{view.middle(c.chunk)}" y="{view.y(c.q)}" class="other"><circle r="4"/></svg>' for c in step.runners_up)
    stop = stop_key = ""
    if view.threshold is not None:
        y = view.y(view.threshold)
        stop = f'<line class="threshold" x2="100%" y1="{y}" y2="{y}"/>'
        dashes = '<svg width="28" height="8" aria-hidden="true"><path class="threshold" d="M0 4H28"/></svg>'
        stop_key = f'<span class="what stop-key">{dashes}stop below {show(view.threshold)}</span>'
    here = marker(view, t, f'x="{view.middle(step.pick.chunk)}" y="{view.y(step.pick.q)}"')
    per = view.chunks / bins
    what = (
        f"{view.score} of every chunk" if per <= 1 else f"highest {view.score} in each of {bins} equal stretches of about {per:,.0f} chunks"
    )
    label = f"{view.score} along the document at step {t + 1}: the pick, chunk {step.pick.chunk:,}, has {view.score} {show(step.pick.q)}."
    return (
        f'<figure><figcaption><b>{view.score} along the document</b> <span class="what">{what}</span>{stop_key}</figcaption>'
        f'<div class="plot" data-step="{t}"><svg role="img" aria-label="{label}" width="100%" height="{HEIGHT + 42}">{grid}'
        f'<svg width="100%" height="{HEIGHT}" viewBox="0 0 {bins} {HEIGHT}" preserveAspectRatio="none">'
        f'<path class="area" d="{"".join(area)}"/><path class="line" d="{"".join(line)}"/></svg>'
        f'{_chunk_axis(view, HEIGHT)}<text class="title" x="100%" y="{HEIGHT + 38}" text-anchor="end">chunk index</text>'
        f'<text class="title" x="-8" y="-14" text-anchor="end">Q</text>{"".join(earlier)}{stop}{others}{here}'
        f'<line class="cross" y1="0" y2="{HEIGHT}"/></svg></div><output class="readout"></output></figure>'
    )


def _runs(curve: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of the curve without a gap, as (start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~np.isnan(curve), [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
