"""Facts about each benchmark, in one table: :data:`BENCHMARKS`. A new benchmark is one entry here and changes no other file.

The name of a benchmark may also be a mixture of several with weights: "hotpotqa:2+musique:1".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qrag_jax.config.parse import unknown

ALL = "all"
"""The task that holds the questions of all types."""


@dataclass(frozen=True)
class Task:
    """Facts about a task."""

    documents: Literal["stories", "needles", "paragraphs"] = "paragraphs"
    """What the chunks are: sentences of a story among other sentences, needles in a haystack, or paragraphs."""
    ordered: bool = False
    """Whether the chunks come from one document. If not, their order means nothing."""
    prompt: str = "texts"
    """The reader's prompt: a name in TEMPLATES of qrag_jax/reader/prompts.py."""
    scorer: str = "squad"
    """How an answer is scored: a name in SCORERS of qrag_jax/evaluate/answers.py."""
    generated: str = ""
    """What replaces the published data in a test without a data folder. Empty: the test does not differ from the published one."""
    parts: tuple[str, ...] = ()
    """The tasks behind a name that stands for several. They are trained together and tested one by one."""

    @property
    def chunk_by(self) -> Literal["sentence", "tokens"]:
        """How a user's own text is cut, so that its chunks are like those of this task."""
        return "tokens" if self.documents == "paragraphs" else "sentence"

    @property
    def reference_state_order(self) -> Literal["document", "picked"]:
        """How the reference code lists the picked chunks in a state."""
        return "document" if self.documents == "stories" else "picked"

    @property
    def positions(self) -> Literal["relative", "none"]:
        """The positions of Q in this project's own presets. A needle's words suffice to find it, and without positions it is learned in
        a tenth of the updates. The paper's presets have relative positions for needles, too."""
        return "relative" if self.ordered and self.documents != "needles" else "none"


@dataclass(frozen=True)
class Benchmark:
    """Facts about a benchmark."""

    title: str
    data: str
    """The module below qrag_jax.data that reads it. It has ``load(config, split, *, seed, chunks=None, group=None, haystacks=None)``, whose
    examples repeat after the last one. If documents are made to length, it also has ``context_chunks(task, tokens)``: how many chunks
    fill a context."""
    tasks: Mapping[str, Task] = field(default_factory=lambda: {ALL: Task()})
    default_task: str = ALL
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Another name of a task -> the task."""
    made_to_length: bool = False
    """Whether documents are made as long as asked for. If not, each has its own length."""
    picks: int = 4
    """T at evaluation, as in the paper."""
    paragraph_tokens: int = 110
    """Longest paragraph that the paper's E5 runs read, in tokens."""
    longest: int = 20
    """Chunks of the longest training document, if documents have their own length."""
    published: int | None = None
    """Number of questions in the published development file, which is the test set here. None: there is no such file."""
    reference: str | None = None
    """Part of the names of the reference code's data sets for this benchmark. None: that code has none."""

    @property
    def types(self) -> tuple[str, ...]:
        """The tasks that hold one type of question each."""
        return tuple(name for name in self.tasks if name != ALL)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of tasks, aliases included."""
        return (*self.aliases, *self.tasks)


_STORIES = Task("stories", True, scorer="babilong", generated="generated stories in Python's documentation")
_NEEDLES = Task("needles", True, prompt="needles", scorer="all_values")
_ESSAYS = replace(_NEEDLES, generated="Python's documentation instead of essays")
_NEEDLE_NAMES = {
    "niah_s1": "niah_single_1",
    "niah_s2": "niah_single_2",
    "niah_s3": "niah_single_3",
    "niah_mk1": "niah_multikey_1",
    "niah_mk2": "niah_multikey_2",
    "niah_mk3": "niah_multikey_3",
    "niah_mv": "niah_multivalue",
    "niah_mq": "niah_multiquery",
}


def _types(*names: str) -> dict[str, Task]:
    """Tasks that differ only in their type of question."""
    return {name: Task() for name in (ALL, *names)}


BENCHMARKS: dict[str, Benchmark] = {
    "babilong": Benchmark(
        title="BabiLong",
        data="babilong.documents",
        tasks={task: replace(_STORIES, prompt=f"babilong-{task}") for task in ("qa1", "qa2", "qa3", "qa4", "qa5")},
        default_task="qa2",
        made_to_length=True,
        reference="babilong",
    ),
    "conditionalqa": Benchmark(title="ConditionalQA", data="multihop.conditionalqa", picks=6, longest=40),
    "entailmentbank": Benchmark(title="EntailmentBank", data="multihop.entailmentbank", picks=6, longest=25, published=187),
    "hotpotqa": Benchmark(
        title="HotpotQA",
        data="multihop.hotpotqa",
        tasks=_types("bridge", "comparison"),
        picks=2,
        paragraph_tokens=220,
        published=7405,
        reference="hotpotqa",
    ),
    "hotpotqa_evidence": Benchmark(title="HotpotQA, sentences as chunks", data="multihop.hotpotqa_evidence", longest=25),
    "hotpotqa_more": Benchmark(
        title="HotpotQA, more training questions", data="multihop.hotpotqa_more", tasks=_types("bridge", "comparison"), picks=2
    ),
    "musique": Benchmark(
        title="MuSiQue", data="multihop.musique", tasks=_types("2hop", "3hop", "4hop"), published=2417, reference="musique"
    ),
    "own": Benchmark(title="your own questions", data="multihop.own", tasks={ALL: Task(ordered=True)}),
    "qmsum": Benchmark(title="QMSum", data="multihop.qmsum", tasks={ALL: Task(ordered=True)}, picks=6, longest=400, published=272),
    "ruler": Benchmark(
        title="RULER",
        data="ruler.tasks",
        tasks={
            "niah_single_1": _NEEDLES,
            "niah_single_2": _ESSAYS,
            "niah_single_3": _ESSAYS,
            "niah_multikey_1": _ESSAYS,
            "niah_multikey_2": _NEEDLES,
            "niah_multikey_3": _NEEDLES,
            "niah_multivalue": _ESSAYS,
            "niah_multiquery": _ESSAYS,
            "qa_sh": Task(scorer="any_value"),
            "qa_mh": Task(scorer="any_value"),
            "niah": replace(_NEEDLES, parts=tuple(_NEEDLE_NAMES)),
        },
        default_task="niah_mk3",
        aliases=_NEEDLE_NAMES,
        made_to_length=True,
        reference="ruler",
    ),
    "twowiki": Benchmark(
        title="2WikiMultihopQA",
        data="multihop.twowiki",
        tasks=_types("compositional", "comparison", "bridge_comparison", "inference"),
        published=12576,
    ),
    "twowiki_more": Benchmark(title="2WikiMultihopQA, more development questions", data="multihop.twowiki_more"),
}


def find(name: str) -> Benchmark:
    """The entry of one benchmark. Raises ValueError, listing the known names, on any other name."""
    if name not in BENCHMARKS:
        raise unknown("data.benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def weights(name: str) -> dict[str, int]:
    """'hotpotqa:2+musique' -> {'hotpotqa': 2, 'musique': 1}, 'ruler' -> {'ruler': 1}. Raises ValueError on any other form and on unknown
    names."""
    found: dict[str, int] = {}
    for part in name.split("+"):
        match = re.fullmatch(r"(\w+)(?::([1-9]\d{0,3}))?", part)
        if not match:
            raise ValueError(f"data.benchmark = {name!r}: write names joined by +, with weights of 1 to 9999, e.g. hotpotqa:2+musique:1")
        if match[1] in found:
            raise ValueError(f"data.benchmark = {name!r}: names {match[1]} twice; give it a weight")
        find(match[1])
        found[match[1]] = int(match[2] or 1)
    return found


def parts(name: str) -> list[Benchmark]:
    """The entries of a mixture, or of one benchmark. Raises ValueError as :func:`weights`."""
    return [BENCHMARKS[part] for part in weights(name)]


def picks(name: str) -> int:
    """T at evaluation, as in the paper; for a mixture the largest of its parts."""
    return max(part.picks for part in parts(name))


def longest(name: str) -> int:
    """Chunks of the longest training document; for a mixture the largest of its parts."""
    return max(part.longest for part in parts(name))


def made_to_length(name: str) -> bool:
    """Whether documents are made as long as asked for; of a mixture, whether those of all parts are."""
    return all(part.made_to_length for part in parts(name))


def task(benchmark: str, name: str) -> Task:
    """Facts about a task. For a mixture: what its parts have in common; it is ordered only if all of them are.

    Raises ValueError on an unknown benchmark or task, and on a mixture whose parts differ in documents, prompt or scorer.
    """
    found = [_task(part, name) for part in weights(benchmark)]
    if len({(one.documents, one.prompt, one.scorer) for one in found}) > 1:
        raise ValueError(f"data.benchmark = {benchmark!r}: its parts have different prompts or scores; name the part that is meant")
    return replace(found[0], ordered=all(one.ordered for one in found))


def _task(benchmark: str, name: str) -> Task:
    entry = find(benchmark)
    if name not in entry.names:
        raise unknown("data.task", name, entry.names, f" task of {benchmark}")
    return entry.tasks[entry.aliases.get(name, name)]


def named(text: str) -> tuple[str, str]:
    """BENCHMARK or BENCHMARK/TASK -> benchmark and task (by default the benchmark's usual one). Raises ValueError, naming
    eval.benchmarks, on unknown names."""
    benchmark, _, name = text.partition("/")
    if benchmark not in BENCHMARKS:
        raise unknown("eval.benchmarks", benchmark, BENCHMARKS)
    if name and name not in BENCHMARKS[benchmark].names:
        raise unknown("eval.benchmarks", text, [f"{benchmark}/{one}" for one in BENCHMARKS[benchmark].names])
    return benchmark, name or BENCHMARKS[benchmark].default_task
