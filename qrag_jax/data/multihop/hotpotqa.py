"""HotpotQA (Yang et al. 2018, arXiv 1809.09600): two supporting paragraphs among ten (distractor setting).

In the fullwiki file, a search engine chose the ten paragraphs of each question, and supporting paragraphs may be missing. It is for
evaluation alone (:func:`load_fullwiki`).

A file is one JSON list of records: ``_id``, ``question``, ``answer``, ``type``, ``context`` [[title, [sentences]]] and
``supporting_facts`` [[title, number of the sentence]]. The rows of Hugging Face ``datasets`` are read too: ``id``, ``context`` {title,
sentences} and ``supporting_facts`` {title, sent_id}, each a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from qrag_jax.config import DataConfig, benchmarks
from qrag_jax.config.benchmarks import BENCHMARKS
from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.records import BadRecord, ReadReport, Record, check, get_text, make_record, read_file, rows, same_title
from qrag_jax.rundir.log import say

TYPES = BENCHMARKS["hotpotqa"].types
FULLWIKI_FILE = "hotpot_dev_fullwiki_v1.json"


def read_hotpotqa(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a distractor file. Errors: see :func:`qrag_jax.data.multihop.records.read_file`."""
    return read_file(path, partial(parse, types=TYPES), skip_bad=skip_bad)


def read_fullwiki(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of the fullwiki file. ``missing`` of a record counts its supporting titles that no paragraph has. Errors: as above."""
    return read_file(path, partial(parse, types=TYPES, all_there=False), skip_bad=skip_bad)


def parse(tree: Any, notes: Counter[str], *, types: Iterable[str], all_there: bool = True) -> Record:
    """Reads a record. A paragraph supports the answer if any fact names its title, even if the fact's sentence number is too high. That
    happens in the published files; it is counted as a note, since the title is right and whole paragraphs are retrieved. ``all_there``:
    whether every supporting paragraph must be among the paragraphs."""
    kind = get_text(tree, "type")
    if kind not in types:
        raise BadRecord("unknown type", f"{kind!r}; known: {', '.join(types)}")
    context = [(title, [check(part, str, "sentence").strip() for part in parts]) for title, parts in rows(tree, "context", str, list)]
    support, missing = set(), set()
    for title, sentence in rows(tree, "supporting_facts", str, int):
        named = [sentences for other, sentences in context if same_title(other, title)]
        if not named and not all_there:
            missing.add(title)
            continue
        if not named:
            raise BadRecord("unknown support title", f"{title!r} is the title of no paragraph")
        if any(sentences != named[0] for sentences in named):
            raise BadRecord("ambiguous support title", f"{title!r} is the title of two different paragraphs")
        if sentence < 0:
            raise BadRecord("negative sentence number", f"[{title!r}, {sentence}]: sentences are numbered from 0")
        if sentence >= len(named[0]):
            notes["supporting sentence past the end of its paragraph"] += 1
        support |= {other for other, _ in context if same_title(other, title)}
    paragraphs = ((title, " ".join(filter(None, sentences)), title in support) for title, sentences in context)
    id_name = "id" if "_id" not in tree and "id" in tree else "_id"  # Hugging Face's rows call it id
    return make_record(tree, id_name, kind, paragraphs, notes, missing=len(missing))


HOTPOTQA = multihop.QuestionFiles(
    name="hotpotqa",
    folder="hotpotqa",
    files=(("hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"), ("hotpot_fit.json", "hotpot_eval.json"), *multihop.HUGGING_FACE),
    home="https://hotpotqa.github.io",
    read=read_hotpotqa,
    after_title=" ",
    downloads=(
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_train_v1.1.json",
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
    ),
)
load = partial(multihop.load, HOTPOTQA)


def load_fullwiki(config: DataConfig, *, seed: int) -> multihop.MultihopQuestions:
    """The fullwiki questions of ``config.task``, in an order that depends on the seed. Says how many of them the training file beside
    it holds too. Raises ValueError on a missing or broken file."""
    benchmarks.task("hotpotqa", config.task)
    if config.data_dir is None:
        raise ValueError(f"data.data_dir: give the folder that holds {HOTPOTQA.folder}/{FULLWIKI_FILE}, from {HOTPOTQA.home}")
    path = Path(config.data_dir, HOTPOTQA.folder, FULLWIKI_FILE)
    records = multihop.read_and_say(read_fullwiki, path, config.skip_bad)
    if (pair := multihop.find_files(HOTPOTQA, config.data_dir)) is not None:
        splits = multihop.split_files(HOTPOTQA, pair, config.skip_bad)
        trained = {record.id for split in ("train", "validation") for record in splits[split]}
        if shared := sum(record.id in trained for record in records):
            say(f"{path}: {shared} of its {len(records)} questions are in {pair[0].name} too; a retriever trained on that file knows them")
    asked = [record for record in records if config.task in (benchmarks.ALL, record.type)]
    after_title = HOTPOTQA.after_title if config.chunk_text == "reference" else ". "
    return multihop.MultihopQuestions("hotpotqa", asked, "test", seed=seed, shuffle=False, after_title=after_title)
