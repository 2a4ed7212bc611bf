"""Shows a search as one self-contained page: the pick of each step, the runners-up, and Q along the document.

The page is complete without JavaScript (every step is shown); with it, steps are tabs and the curves can be read bin by bin. It fetches
nothing: a Content-Security-Policy allows only the template's own style and script, by their hashes, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from qrag_jax.retrieve.ranking import SCORES, Mode
from qrag_jax.retrieve.trace_svg import COLOURS, INLINE, View, curve, key, marker, ruler, show
from qrag_jax.retrieve.types import Candidate, Pick, Step
from qrag_jax.rundir.files import write_text
from qrag_jax.rundir.printable import printable

FORMAT, VERSION = "qrag-jax-trace", 1
POSITIONS = ("relative", "per document", "absolute", "random", "none")
EXCERPT = 160  # characters of a runner-up that are shown before its text is folded


def render_trace(
    *,
    question: str,
    steps: Sequence[Step],
    chunks: int,
    threshold: float | None,
    positions: str,
    source: str,
    support: Sequence[int] = (),
    mode: Mode = "multi",
) -> str:
    """The page of one search, as HTML.

    Args:
        question: the question.
        steps: the steps in order, those after a stop included. Stretch b of a curve of n begins at chunk b * chunks // n.
        chunks: N, chunks of the document.
        threshold: the stop threshold in units of Q, or None.
        positions: the retriever's ``qhead.positions``; "per document" if they are relative and restart with each document. The page shows
            intervals only if they are relative, and positions unless they are none.
        source: the name of what was searched, a document or an index.
        support: chunks known to support the answer, if any are.
        mode: how it was searched. A search in one look has scores of another kind than Q, and no threshold.

    Raises ValueError when there are no steps, a chunk lies outside the document or was picked twice, a Q is not finite, a step stopped
    without a threshold, ``positions`` are unknown, or the curves are not one-dimensional, differ in length or hold an infinity.
    """
    view = View(tuple(steps), chunks, threshold, tuple(sorted(set(support))), positions, SCORES[mode])
    _check(view)
    template = files("qrag_jax.retrieve").joinpath("trace.html").read_text(encoding="utf-8")
    style, script = (_digest(template, tag) for tag in ("style", "script"))
    numbers = range(len(view.steps))
    return Template(template).substitute(
        csp=f"default-src 'none'; style-src {style}; script-src {script}; img-src data:; base-uri 'none'; form-action 'none'",
        question=escape(question),
        summary=_summary(view, source, mode),
        ruler=ruler(view),
        key=key(view),
        tabs="\n".join(_tab(view, t) for t in numbers),
        panels="\n".join(_panel(view, t) for t in numbers),
        data=_data(view, question, source, mode),
    )


def write_trace(
    path: str | Path,
    *,
    question: str,
    steps: Sequence[Step],
    chunks: int,
    threshold: float | None,
    positions: str,
    source: str,
    support: Sequence[int] = (),
    mode: Mode = "multi",
) -> Path:
    """Writes the page of :func:`render_trace` to ``path``, completely or not at all, and returns the path."""
    page = render_trace(
        question=question,
        steps=steps,
        chunks=chunks,
        threshold=threshold,
        positions=positions,
        source=source,
        support=support,
        mode=mode,
    )
    return write_text(path, page)


def _check(view: View) -> None:
    if not view.steps:
        raise ValueError("steps is empty: a trace needs at least one step")
    if view.threshold is not None and not math.isfinite(view.threshold):
        raise ValueError(f"threshold = {view.threshold}: must be finite, or None for a search without one")
    if view.positions not in POSITIONS:
        raise ValueError(f"positions = {view.positions!r}: must be one of {', '.join(POSITIONS)}, like the retriever's qhead.positions")
    seen: set[int] = set()
    for t, step in enumerate(view.steps):
        parts: list[tuple[str, Pick | Candidate]] = [("pick", step.pick), *(("runners_up", other) for other in step.runners_up)]
        for name, part in parts:
            if not 0 <= part.chunk < view.chunks:
                raise ValueError(f"steps[{t}].{name}: chunk {part.chunk} is outside the document, 0..{view.chunks - 1}")
            if not math.isfinite(part.q):
                raise ValueError(f"steps[{t}].{name}: q = {part.q} of chunk {part.chunk}: must be finite")
        if step.pick.chunk in seen:
            raise ValueError(f"steps[{t}].pick: chunk {step.pick.chunk} was picked at an earlier step; a search picks a chunk once")
        seen.add(step.pick.chunk)
        if step.stop and view.threshold is None:
            raise ValueError(f"steps[{t}].stop is set, but threshold is None: give the threshold of that search")
        if step.curve is not None and (step.curve.ndim != 1 or not 1 <= step.curve.size <= view.chunks):
            raise ValueError(f"steps[{t}].curve: shape {step.curve.shape}: must be one row of 1 to {view.chunks} stretches")
        if step.curve is not None and np.isinf(step.curve).any():
            raise ValueError(f"steps[{t}].curve: holds an infinite Q; write NaN where nothing is left to pick")
    lengths = [None if step.curve is None else len(step.curve) for step in view.steps]
    if len(set(lengths)) > 1:
        raise ValueError(f"steps: curves of different lengths {lengths}; the steps of one search share their stretches")
    for chunk in view.support:
        if not 0 <= chunk < view.chunks:
            raise ValueError(f"support: chunk {chunk} is outside the document, 0..{view.chunks - 1}")


def _digest(template: str, tag: str) -> str:
    """The Content-Security-Policy source of the template's only plain <style> or <script>."""
    (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def escape(text: str) -> str:
    """Text for a page: markup and control characters are escaped."""
    return html.escape(printable(text))


def _data(view: View, question: str, source: str, mode: Mode) -> str:
    """The trace as JSON that no text in it can break out of: characters of markup are escaped. NaN is written as null."""

    def part(item: Pick | Candidate) -> dict[str, object]:
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in vars(item).items()}

    steps = [
        {
            "pick": part(step.pick),
            "runners_up": [part(other) for other in step.runners_up],
            "stop": step.stop,
            "seconds": float(f"{step.seconds:.4g}"),
            "curve": None if step.curve is None else [None if math.isnan(q) else float(f"{q:.4g}") for q in step.curve],
        }
        for step in view.steps
    ]
    head = {
        "format": FORMAT,
        "version": VERSION,
        "question": question,
        "source": source,
        "chunks": view.chunks,
        "mode": mode,
        "score": view.score,
    }
    text = json.dumps(head | {"threshold": view.threshold, "support": view.support, "steps": steps}, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _summary(view: View, source: str, mode: Mode) -> str:
    facts = [("searched", escape(source)), ("chunks", f"{view.chunks:,}"), ("steps", f"{len(view.steps)}")]
    if mode != "multi":
        facts[-1] = ("picks by one look", f"{len(view.steps)} <small>mode {mode}</small>")
    if view.kept < len(view.steps):
        facts[-1] = ("steps", f"{len(view.steps)}, {view.kept} kept")
    if view.threshold is not None:
        facts.append(("stop threshold", f"Q {show(view.threshold)}"))
    if view.support:
        facts.append(("supporting chunks", f"{len(view.found)} of {len(view.support)} picked"))
    facts.append(("search time", f"{_seconds(sum(step.seconds for step in view.steps))} <small>compiling left out</small>"))
    return _facts(facts)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return f'<dl class="facts">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)}</dl>'


def _tab(view: View, t: int) -> str:
    pick = view.steps[t].pick
    out = " left-out" if t >= view.kept else ""
    return (
        f'<a class="tab c{t % COLOURS}{out}" id="tab-{t + 1}" href="#step-{t + 1}">{marker(view, t, INLINE)}'
        f'<span class="where"><span class="quiet">Step {t + 1}, </span>{_document(pick)}<span>chunk {pick.chunk:,}</span></span>'
        f'<span class="q">{show(pick.q)}</span>'
        f'<span class="snippet" dir="auto">{escape(pick.text[:EXCERPT])}</span></a>'
    )


def _panel(view: View, t: int) -> str:
    step, pick = view.steps[t], view.steps[t].pick
    verdict, why = view.verdict(t)
    facts = [(view.score, show(pick.q))]
    if pick.source is not None:
        facts.append(("document", escape(pick.source)))
    if pick.start is not None and pick.end is not None:
        facts.append(("characters", f"{pick.start:,} to {pick.end:,}"))
    facts.append(("chunk", f"{pick.chunk:,}"))
    if view.positions != "none":
        facts.append(("position", f"{pick.position:.4g}"))
    if view.positions == "relative":
        start, end = (view.cuts(t)[view.interval(t) + side] for side in (0, 1))
        facts.append(("picked in interval", f"{view.interval(t)} <small>chunks {start:,} to {end - 1:,}</small>"))
    facts.append(("time", _seconds(step.seconds)))
    known = '<span class="badge">▼ supporting chunk</span>' if pick.chunk in view.found else ""
    return (
        f'<section class="panel c{t % COLOURS}" id="step-{t + 1}" aria-labelledby="title-{t + 1}">\n'
        f'<h2 id="title-{t + 1}">{marker(view, t, INLINE)}<span>Step {t + 1} <small>of {len(view.steps)}</small></span>'
        f'<span class="badge {"stop" if t >= view.kept else "keep"}">{verdict}</span>{known}<span class="why">{why}</span></h2>\n'
        f'<blockquote dir="auto">{escape(pick.text)}</blockquote>\n{_facts(facts)}\n{curve(view, t)}\n{_runners(view, t)}\n</section>'
    )


def _document(part: Pick | Candidate) -> str:
    """The last part of a document's name, with the full name as a tooltip; empty for a text without a name."""
    if part.source is None:
        return ""
    return f'<span class="name" title="{escape(part.source)}">{escape(part.source.rstrip("/").rpartition("/")[2])}</span>'


def _runners(view: View, t: int) -> str:
    step = view.steps[t]
    if not step.runners_up:
        return '<p class="note">No runners-up were recorded at this step.</p>'
    parts: tuple[Pick | Candidate, ...] = (step.pick, *step.runners_up)
    low, high = min(0.0, *(part.q for part in parts)), max(0.0, *(part.q for part in parts))
    named = any(part.source is not None for part in parts)

    def row(kind: str, sign: str, part: Pick | Candidate) -> str:
        left, right = sorted((100 * (part.q - low) / (high - low or 1), 100 * -low / (high - low or 1)))
        behind = "picked" if part is step.pick else f"{part.q - step.pick.q:+.3f}".replace("-", "−")
        document = f'<td class="from">{_document(part)}</td>' if named else ""
        text = escape(part.text)
        if len(part.text) > EXCERPT:
            text = f"<details><summary><span>{escape(part.text[:EXCERPT])}…</span></summary>{text}</details>"
        return (
            f'<tr class="{kind}"><td class="sign">{sign}</td>{document}'
            f'<td class="n">{part.chunk:,}</td><td class="text" dir="auto">{text}</td>'
            f'<td class="bar"><svg width="100%" height="8" aria-hidden="true"><rect x="{left:.4g}%" width="{right - left:.4g}%" height="8" '
            f'rx="1"/></svg></td><td class="n">{show(part.q)}</td><td class="n behind">{behind}</td></tr>'
        )

    rows = [row("chosen", marker(view, t, INLINE), step.pick), *(row("", "", other) for other in step.runners_up)]
    heads = [
        ("", '<span class="quiet">step</span>'),
        ("n", "chunk"),
        ("", "text"),
        ('n" colspan="2', view.score),
        ("n behind", "from the pick"),
    ]
    if named:
        heads.insert(1, ("from", "document"))
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for kind, name in heads)
    return f"<table><caption>Runners-up</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
