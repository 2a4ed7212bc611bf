"""TensorFlow Datasets builders of bAbI, book sentences and multi-hop questions, in array_record files and without TensorFlow.

Importing this file imports tensorflow_datasets, which takes a second; the readers do it only where a data folder was prepared.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from qrag_jax.data.babilong import stories as babi
from qrag_jax.data.multihop.hotpotqa import HOTPOTQA
from qrag_jax.data.multihop.musique import MUSIQUE
from qrag_jax.data.multihop.questions import QuestionFiles, find_files, split_files
from qrag_jax.data.multihop.records import Record
from qrag_jax.data.multihop.twowiki import TWOWIKI
from qrag_jax.data.prepared import FOLDER, VERSION, fingerprint
from qrag_jax.data.splits import SPLITS, Split
from qrag_jax.data.text import haystack

PAGE = 256
"""Sentences per record. A record is read at once; the last record of a book may be shorter."""
MULTIHOP = {benchmark.name: benchmark for benchmark in (HOTPOTQA, MUSIQUE, TWOWIKI)}


class _TextBuilder(tfds.core.GeneratorBasedBuilder):
    """Shared by the builders: records stay in order, and the metadata records the text files that they were made from."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # the inherited method needs the package importlib_resources, which tfds does not install
    sources: list[Path]

    def _describe(self, description: str, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(sources=fingerprint(self.sources)),
            disable_shuffling=True,
        )


class BabiBuilder(_TextBuilder):
    """The official bAbI files: one record per story, one configuration per task.

    A record cannot hold lists of lists without TensorFlow, so the supports of all questions are concatenated, and ``support_size`` is the
    number for each question.
    """

    name = "babi"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=task) for task in babi.BABI_TASKS]  # noqa: RUF012  (the interface of tfds)

    def __init__(self, source_dir: str | Path, task: str, data_dir: str | Path) -> None:
        self.paths = {split: babi.babi_path(source_dir, task, split) for split in ("train", "test")}
        self.sources = list(self.paths.values())
        super().__init__(config=task, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        texts, numbers = tfds.features.Sequence(tfds.features.Text()), tfds.features.Sequence(np.int32)
        features = {"facts": texts, "question": texts, "answer": texts, "before": numbers, "support": numbers, "support_size": numbers}
        return self._describe("bAbI v1.2, en-10k (Weston et al. 2015), CC BY 3.0", features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(path) for split, path in self.paths.items()}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, story in enumerate(babi.read_babi(path)):
            yield (
                key,
                {
                    "facts": story.facts,
                    "question": [question.question for question in story.questions],
                    "answer": [question.answer for question in story.questions],
                    "before": [question.facts for question in story.questions],
                    "support": [fact for question in story.questions for fact in question.support],
                    "support_size": [len(question.support) for question in story.questions],
                },
            )


class BookSentences(_TextBuilder):
    """The sentences of ``books/{train,test}`` in the haystack's order and three splits, up to 256 sentences of a book per record."""

    name = "book_sentences"

    def __init__(self, source_dir: str | Path, data_dir: str | Path) -> None:
        self.paths = haystack.book_paths(source_dir)
        self.sources = [path for split in SPLITS for path in self.paths[split]]
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"book": tfds.features.Text(), "sentences": tfds.features.Sequence(tfds.features.Text())}
        return self._describe("Sentences of 10 to 64 tokens of public-domain books", features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(paths) for split, paths in self.paths.items()}

    def _generate_examples(self, paths: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        key = 0
        for path in paths:
            sentences = haystack.book_sentences(path)
            for start in range(0, len(sentences), PAGE):
                yield key, {"book": path.stem, "sentences": sentences[start : start + PAGE]}
                key += 1


class MultihopBuilder(_TextBuilder):
    """Benchmarks of multi-hop questions: one record per question, one configuration per benchmark, in the three splits of the readers.

    Without ``source_dir``, the official files are downloaded, if the benchmark publishes plain files (else ValueError).
    """

    name = "multihop"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in MULTIHOP]  # noqa: RUF012  (the interface of tfds)

    def __init__(self, source_dir: str | Path | None, benchmark: QuestionFiles, data_dir: str | Path, *, skip_bad: bool = False) -> None:
        self.benchmark, self.skip_bad = benchmark, skip_bad
        self.sources = []
        if source_dir is not None:
            self.sources = list(find_files(benchmark, source_dir) or ())
        if not self.sources and not (source_dir is None and benchmark.downloads):
            raise ValueError(f"source_dir = {source_dir}: {benchmark.wanted}")
        super().__init__(config=benchmark.name, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
        features = dict.fromkeys(("id", "question", "answer", "type"), text) | dict.fromkeys(("aliases", "title", "text"), texts)
        return self._describe(
            f"Multi-hop questions with their paragraphs, from {self.benchmark.home}",
            {**features, **dict.fromkeys(("support", "path"), tfds.features.Sequence(np.int32))},
        )

    def _split_generators(self, dl_manager: Any) -> dict[Split, Iterator[tuple[int, dict[str, Any]]]]:
        train, test = self.sources or map(Path, dl_manager.download(list(self.benchmark.downloads or ())))
        sides = split_files(self.benchmark, (train, test), self.skip_bad)
        return {split: self._generate_examples(sides[split]) for split in SPLITS}

    def _generate_examples(self, records: Sequence[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, record in enumerate(records):
            yield (
                key,
                {
                    **{name: getattr(record, name) for name in ("id", "question", "answer", "type", "aliases", "support", "path")},
                    "title": [title for title, _ in record.paragraphs],
                    "text": [text for _, text in record.paragraphs],
                },
            )


def prepare(data_dir: str | Path, out_dir: str | Path | None = None, *, download: Sequence[str] = (), skip_bad: bool = False) -> list[Path]:
    """Writes the data of ``data_dir`` (bAbI tasks, books, multi-hop questions) to ``out_dir``/tfds, by default into ``data_dir`` itself,
    where the readers find it. Also downloads and writes the benchmarks ``download``. Up-to-date data sets are kept. Returns the folders.

    Raises ValueError if there is nothing to write, and on bad records unless ``skip_bad``."""
    target = Path(data_dir if out_dir is None else out_dir, FOLDER)
    tasks = [task for task in babi.BABI_TASKS if list(Path(data_dir, "babi", "en-10k").glob(f"{task}_*.txt"))]
    makers: list[Callable[[], _TextBuilder]] = [partial(BabiBuilder, data_dir, task, target) for task in tasks]
    if Path(data_dir, "books").is_dir():
        makers.append(partial(BookSentences, data_dir, target))
    if unknown := [name for name in download if name not in MULTIHOP]:
        raise ValueError(f"download = {unknown[0]!r}: unknown; known: {', '.join(MULTIHOP)}")
    for name, benchmark in MULTIHOP.items():
        if name in download or find_files(benchmark, data_dir):
            source = None if name in download else data_dir
            makers.append(partial(MultihopBuilder, source, benchmark, target, skip_bad=skip_bad))
    if not makers:
        folders = "".join(f" nor {benchmark.folder}/" for benchmark in MULTIHOP.values())
        raise ValueError(f"data_dir = {str(data_dir)!r}: holds neither babi/en-10k/*.txt nor books/{folders}; there is nothing to prepare")
    tfds.disable_progress_bar()
    return [_up_to_date(make) for make in tqdm(makers, desc="preparing data", unit="set")]


def _up_to_date(make: Callable[[], _TextBuilder]) -> Path:
    """Builds the data set, unless it exists already and was made from the present files. Returns its folder."""
    builder = make()
    folder = Path(builder.data_dir)
    if folder.is_dir():
        if (builder.info.metadata or {}).get("sources") == fingerprint(builder.sources):
            return folder
        shutil.rmtree(folder)
        builder = make()
    with contextlib.redirect_stdout(io.StringIO()):  # silences what tfds prints
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="array_record")
    return folder
