"""The trace page: nothing in a text breaks out, no NaN in its JSON, the geometry by hand, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.retrieve.trace import render_trace, write_trace
from qrag_jax.retrieve.types import Candidate, Pick, Step
from qrag_jax.rundir.printable import printable

NAN = math.nan


def three_steps() -> list[Step]:
    """Picks 2, 6, 4 of ten chunks, a curve of five stretches; the third pick is below a threshold of 0.5."""
    return [
        Step(
            0,
            Pick(2, "Daniel took the milk.", 0.9, 1.8, 1040, 1061, "docs/story.txt"),
            (Candidate(6, "He left.", 0.6, 5, 13, "docs/other.txt"),),
            False,
            0.25,
            curve(1.0),
        ),
        Step(1, Pick(6, "He left.", 0.8, 14.5), (Candidate(4, "Rain fell.", -0.25),), False, 0.5, curve(NAN)),
        Step(2, Pick(4, "Rain fell.", 0.25, 14.5), (), True, 1.5, curve(NAN)),
    ]


def curve(second: float) -> np.ndarray:
    return np.array([0.0, second, 0.5, -0.5, 0.25], np.float32)


def changed(t: int, **values: object) -> list[Step]:
    steps = three_steps()
    steps[t] = dataclasses.replace(steps[t], **values)
    return steps


def render(**values: object) -> str:
    arguments = {"question": "Where is the milk?", "steps": three_steps(), "chunks": 10, "threshold": 0.5, "source": "story.index"}
    arguments["positions"] = "relative"
    return render_trace(**{**arguments, "support": (2, 9), **values})


class Page(HTMLParser):
    """Tags in order and the text inside each open element of ``keep``."""

    def __init__(self, page: str, keep: str = "") -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.keep, self.inside = keep, False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == self.keep:
            self.inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != self.keep

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def embedded(page: str) -> dict[str, object]:
    def refuse(token: str) -> float:
        raise AssertionError(f"{token} in JSON")

    (text,) = re.findall(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&") & set(text)
    return json.loads(text, parse_constant=refuse)


def test_the_embedded_data_is_the_trace_with_gaps_as_null():
    data = embedded(render())
    assert data["format"] == "qrag-jax-trace"
    assert data["version"] == 1
    assert (data["question"], data["source"], data["chunks"], data["threshold"]) == ("Where is the milk?", "story.index", 10, 0.5)
    assert data["support"] == [2, 9]
    first, second, third = data["steps"]
    assert first["pick"] == {
        "chunk": 2,
        "text": "Daniel took the milk.",
        "q": 0.9,
        "position": 1.8,
        "start": 1040,
        "end": 1061,
        "source": "docs/story.txt",
        "step": 0,
        "metadata": {},
        "also": [],
    }
    assert first["curve"] == [0.0, 1.0, 0.5, -0.5, 0.25]
    assert second["curve"] == [0.0, None, 0.5, -0.5, 0.25]
    assert second["runners_up"] == [{"chunk": 4, "text": "Rain fell.", "q": -0.25, "start": None, "end": None, "source": None}]
    assert [first["stop"], third["stop"]] == [False, True]
    assert embedded(render(steps=[dataclasses.replace(step, curve=None) for step in three_steps()]))["steps"][0]["curve"] is None


def test_a_curve_is_drawn_by_hand_with_a_gap():
    # Q runs from -0.5 to 1 over 190 pixels, as do the ticks (-0.5, 0, 0.5, 1): y = 190 (1 - q) / 1.5, so 0 is at 126.7, 0.5 at 63.33.
    first, second, _ = re.findall(r'<path class="line" d="([^"]*)"/>', render())
    assert first == "M0 126.7V126.7H1V0H2V63.33H3V190H4V95H5"
    assert second == "M0 126.7V126.7H1M2 63.33V63.33H3V190H4V95H5"
    areas = re.findall(r'<path class="area" d="([^"]*)"/>', render())
    assert areas[1] == "M0 126.7V126.7H1V126.7zM2 126.7V63.33H3V190H4V95H5V126.7z"
    # The threshold, 0.5, is a line on each of the three curves.
    assert render().count('<line class="threshold" x2="100%" y1="63.33" y2="63.33"/>') == 3
    assert '<line class="threshold"' not in render(threshold=None, steps=changed(2, stop=False))


def test_bands_are_the_intervals_cut_by_earlier_picks():
    rows = re.findall(r'<g class="row c\d" data-step="(\d)">(.*?)</g>', render())
    bands = {int(t): re.findall(r'class="band (\w+)" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', row) for t, row in rows}
    # Ten chunks: nothing is cut at step 1; 2 cuts at step 2; 2 and 6 cut at step 3, where chunk 4 lies in interval 1 (2 to 5).
    assert bands[0] == [("here", "0", "100")]
    assert bands[1] == [("even", "0", "20"), ("here", "20", "80")]
    assert bands[2] == [("even", "0", "20"), ("here", "20", "40"), ("even", "60", "40")]
    assert "1 <small>chunks 2 to 5</small>" in render()


@pytest.mark.parametrize("positions", ["relative", "absolute", "random", "none"])
def test_a_page_tells_of_intervals_and_positions_only_where_the_search_has_them(positions):
    page = render(positions=positions)
    names = Page(page, "dt").texts
    assert ("picked in interval" in names) == (positions == "relative")
    assert ("position" in names) == (positions != "none")
    words = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert ("interval" in words) == ("eq. 6" in words) == (positions == "relative")
    if positions != "relative":
        # The ruler has one band a step, without a number, and the lines of the earlier picks.
        assert re.findall(r'class="band (\w+)" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', page) == [("even", "0", "100")] * 3
        assert 'class="number"' not in page
        assert page.count('<line class="cut') == 3 + 3, "a line a pick below the ruler; 0, 1 and 2 earlier picks in the curves"


def test_documents_are_named_where_the_index_knows_them():
    page = render()
    # In the tab, the panel's table (its pick and its runner-up); the whole name on pointing, and in the panel's facts.
    names = r'<span class="name" title="([^"]*)">([^<]*)</span>'
    assert re.findall(names, page) == [
        ("docs/story.txt", "story.txt"),
        ("docs/story.txt", "story.txt"),
        ("docs/other.txt", "other.txt"),
    ]
    assert Page(page, "dd").texts.count("docs/story.txt") == 1
    assert page.count('<th scope="col" class="from">document</th>') == 1, "the other steps' chunks have no document"
    assert Page(page, "dt").texts.count("searched") == 1
    assert re.findall(r"</span><span>(chunk \d)</span>", page) == ["chunk 2", "chunk 6", "chunk 4"]


def test_the_stop_threshold_is_named_beside_the_title_of_the_curve():
    """The name must not cover the curve: only numbered signs and ticks may be written there."""
    page = render()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert ["stop below 0.500" in caption for caption in captions] == [True] * 3
    assert page.count("stop below") == 3
    assert "stop below" not in render(threshold=None, steps=changed(2, stop=False))


def test_known_chunks_are_marked_picked_or_missed():
    page = render()
    assert re.findall(r'class="known (\w+)"><title>([^<]*)', page) == [
        ("hit", "supporting chunk 2: picked"),
        ("missed", "supporting chunk 9: missed"),
    ]
    assert "1 of 2 picked" in page
    assert 'class="known' not in render(support=())


def test_the_stop_decision_is_told_at_every_step():
    # The third pick's Q, 0.25, is below 0.5; a fourth pick would come after the stop.
    fourth = dataclasses.replace(three_steps()[2], number=3, pick=Pick(8, "The end.", 0.75, 20.0), stop=False)
    verdicts = r'<span class="badge (?:keep|stop)">([^<]*)</span>'
    page = render(steps=[*three_steps(), fourth])
    assert re.findall(verdicts, page) == ["kept", "kept", "the search would stop here", "left out"]
    assert "Q 0.250 is below the stop threshold 0.500" in page
    assert "the search would have stopped at step 3" in page
    assert "4, 2 kept" in page
    assert set(re.findall(verdicts, render(threshold=None, steps=changed(2, stop=False)))) == {"kept"}


def test_a_page_shows_every_step_without_a_script():
    page = render()
    parsed = Page(page, "blockquote")
    assert parsed.texts == ["Daniel took the milk.", "He left.", "Rain fell."]
    panels = [attributes for tag, attributes in parsed.tags if tag == "section"]
    assert [panel["id"] for panel in panels] == ["step-1", "step-2", "step-3"]
    assert all("hidden" not in panel for panel in panels)
    assert [a["href"] for tag, a in parsed.tags if tag == "a"] == ["#step-1", "#step-2", "#step-3"]
    for words in (
        "1,040 to 1,061",
        "250 ms",
        "2.25 s <small>compiling left out</small>",
        "−0.250",
        "−1.050",
        "No runners-up",
        "equal stretches",
    ):
        assert words in page


def test_nothing_is_fetched_and_only_the_pages_own_script_may_run():
    page = render()
    (policy,) = [a["content"] for tag, a in Page(page).tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    links = {a[name] for _, a in Page(page).tags for name in ("href", "src", "action", "srcset") if name in a}
    assert links == {"data:,", "#step-1", "#step-2", "#step-3"}
    assert not [a for _, a in Page(page).tags if "style" in a or any(name.startswith("on") for name in a)]
    assert "http" not in page.replace("http-equiv", "")


HOSTILE = "</script><script>alert(1)</script><b onclick='x'>\" & <!-- $data ${csp} \u2028 ]]> NaN"


@pytest.mark.parametrize("field", ["question", "source", "pick", "runner-up", "long runner-up"])
def test_text_is_text_wherever_it_stands(field):
    usual = [tag for tag, _ in Page(render()).tags]
    if field in {"question", "source"}:
        page = render(**{field: HOSTILE})
        assert embedded(page)[field] == HOSTILE
    elif field == "pick":
        page = render(steps=changed(0, pick=Pick(2, HOSTILE, 0.9, 1.8, 1, 2, HOSTILE)))
        assert Page(page, "dd").texts.count(HOSTILE) == 1
        assert Page(page, "blockquote").texts[0] == HOSTILE
        assert embedded(page)["steps"][0]["pick"]["source"] == HOSTILE
    else:
        text = HOSTILE * (1 if field == "runner-up" else 3)  # a long one folds: its beginning stands in a summary
        page = render(steps=changed(0, runners_up=(Candidate(6, text, 0.6, 5, 13, HOSTILE),)))
        assert any(cell.endswith(text) for cell in Page(page, "td").texts)
        assert HOSTILE.rpartition("/")[2] in Page(page, "td").texts
        assert embedded(page)["steps"][0]["runners_up"][0]["text"] == text
    folds = ["details", "summary", "span"] if field == "long runner-up" else []
    tags = [tag for tag, _ in Page(page).tags]
    at = tags.index("details") if folds else 0
    assert tags[at : at + len(folds)] == folds
    assert tags[:at] + tags[at + len(folds) :] == usual


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1))
def test_any_text_comes_back_whole(text):
    page = render(steps=changed(0, pick=Pick(2, text, 0.9, 1.8)))
    assert embedded(page)["steps"][0]["pick"]["text"] == text
    assert Page(page, "blockquote").texts[0] == printable(text), "control characters are shown as escapes"


def test_a_large_document_stays_a_small_page():
    rng = np.random.default_rng(0)
    values = [rng.normal(size=512).astype(np.float32) for _ in range(4)]
    picks = [399_999, 0, 1, 200_000]
    steps = [Step(t, Pick(picks[t], "text", 3.0 - t / 4, 0.0), (), False, 0.1, values[t]) for t in range(4)]
    page = render(steps=steps, chunks=400_000, threshold=None, support=())
    assert len(page) < 150_000
    assert "400,000" in page
    assert "highest Q in each of 512 equal stretches of about 781 chunks" in page
    assert 'x="100%"' in page  # chunk 399 999


def test_one_chunk_one_step_and_equal_values():
    page = render(
        steps=[Step(0, Pick(0, "All.", 0.0, 0.0), (), False, 0.0, np.full(1, NAN, np.float32))], chunks=1, threshold=None, support=()
    )
    assert "NaN" not in page.split("<script>")[0]
    assert re.findall(r'<path class="line" d="([^"]*)"/>', page) == [""]


def test_written_whole_and_nothing_else(tmp_path):
    path = write_trace(
        tmp_path / "deep" / "trace.html",
        question="Who?",
        steps=three_steps(),
        chunks=10,
        threshold=0.5,
        positions="relative",
        source="a",
        support=[2],
    )
    assert path.read_text(encoding="utf-8") == render(question="Who?", source="a", support=[2])
    assert [file.name for file in path.parent.iterdir()] == ["trace.html"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": []}, "steps is empty"),
        ({"support": (10,)}, r"support: chunk 10 is outside the document, 0\.\.9"),
        ({"support": (-1,)}, "support: chunk -1 is outside"),
        ({"chunks": 6}, r"steps\[0\].runners_up: chunk 6 is outside the document, 0\.\.5"),
        ({"threshold": NAN}, "threshold = nan: must be finite"),
        ({"positions": "eq. 6"}, "positions = 'eq. 6': must be one of relative, per document, absolute, random, none"),
        ({"threshold": None}, r"steps\[2\].stop is set, but threshold is None"),
        ({"steps": changed(1, curve=np.zeros(4, np.float32))}, r"curves of different lengths \[5, 4, 5\]"),
        ({"steps": changed(1, curve=None)}, r"curves of different lengths \[5, None, 5\]"),
        ({"steps": changed(1, curve=np.zeros(11, np.float32))}, r"steps\[1\].curve: shape \(11,\): must be one row of 1 to 10 stretches"),
        ({"steps": changed(1, curve=np.zeros(0, np.float32))}, r"steps\[1\].curve: shape \(0,\)"),
        ({"steps": changed(1, curve=np.full(5, -np.inf, np.float32))}, r"steps\[1\].curve: holds an infinite Q"),
        ({"steps": changed(1, pick=Pick(6, "He left.", NAN, 0.0))}, r"steps\[1\].pick: q = nan of chunk 6"),
        ({"steps": changed(1, pick=Pick(2, "Again.", 0.8, 0.0))}, r"steps\[1\].pick: chunk 2 was picked at an earlier step"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        render(**values)
