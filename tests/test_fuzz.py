"""Mutated files at every border: each ends in a ValueError of one line, or is accepted; nothing else is raised and nothing hangs.

Each border has a fixed seed and a fixed number of mutations, so that every machine tries the same. A failure names the mutation.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import report, tables
from experiments.sweep.spec import read_spec
from qrag_jax.config import RunConfig, presets
from qrag_jax.data.multihop import hotpotqa, musique
from qrag_jax.export.folder import read_export
from qrag_jax.export.from_reference import read_reference
from qrag_jax.models.decoder_loading import load_params, open_decoder
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.reader.cache import ResponseCache
from qrag_jax.retrieve.formats.process import FileReader
from qrag_jax.retrieve.formats.table import READERS
from qrag_jax.retrieve.index import Index
from qrag_jax.rundir.log import RunLog
from tests.conftest import ROOT
from tests.support.chat import write_chat_model
from tests.support.documents import write_one_of_each
from tests.support.index import CHUNKS, small_retriever, write_small_export
from tests.support.small import write_lines

pytestmark = pytest.mark.slow
MANY, FEW, LONGEST = 400, 80, 20
"""Mutations of a file that is read at once, and of one that takes longer; the most seconds that one file may take."""
ODD = [
    *(b"null", b"-1", b"0", b"1e999", b"NaN", b'""', b"[]", b"{}", b"true", b"9" * 30, b'"\\ud800"', b"1.5", b"[[[[[[]]]]]]"),
    *(b"\x00", b"\xff\xfe", b"../../x", b"\n", b"\x1b[2J", b"99999999999", b'{"a":1}', b"*a", b"&a [*a]", b"!!python/name:os.system"),
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, pieces cut, doubled or moved, odd values in the place of a value."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 100))
        elif kind == 3:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 4:
            data[at : at + 8] = struct.pack("<q", rng.choice((-1, 2**31, 2**62, 2**63 - 1, 0)))
        else:
            # The value after a colon, an equals sign or a comma; else anywhere.
            marks = [i for i, byte in enumerate(data[:100_000]) if byte in b":=,["]
            start = rng.choice(marks) + 1 if marks else at
            end = next((i for i in range(start + 1, min(len(data), start + 200)) if data[i] in b",]}\n"), start)
            data[start:end] = rng.choice(ODD)
    return bytes(data)


@contextlib.contextmanager
def no_hang(what: str) -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"{what}: took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(file: Path, read: Callable[[], object], seed: int, mutations: int = MANY) -> None:
    """Mutates ``file`` again and again; ``read`` reads it, or the folder that holds it."""
    good, rng = file.read_bytes(), random.Random(seed)
    read()
    for number in range(1, mutations + 1):
        file.write_bytes(mutated(good, rng))
        what = f"{file.name}: mutation {number} of seed {seed}"
        try:
            with no_hang(what):
                read()
            continue
        except ValueError as error:
            message = str(error)
        except BaseException as error:
            shutil.copy(file, file.with_name(f"{file.name}.bad"))
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:300]} ({file.with_name(file.name + '.bad')})") from error
        assert message, f"{what}: no message"
        assert "\n" not in message, f"{what}: {message[:500]!r}"
        assert len(message) < 5000, f"{what}: a message of {len(message)} characters"
    file.write_bytes(good)


EXPORT = ("qrag.json", "tokenizer.json", "state_encoder/config.json", "state_encoder/model.safetensors")


@pytest.mark.parametrize("name", EXPORT)
def test_export(name: str, tmp_path: Path) -> None:
    folder = write_small_export(tmp_path / "export")
    fuzz(folder / name, lambda: read_export(folder), seed=EXPORT.index(name), mutations=FEW)


def test_tokenizer(tmp_path: Path) -> None:
    file = write_small_export(tmp_path / "export") / "tokenizer.json"
    fuzz(file, lambda: TextTokenizer.load(file).rows(["Mary went home.", "é\u0300 中文 😀", ""], 16), seed=10)


@pytest.mark.parametrize("suffix", sorted({*READERS} - {".txt", ".htm", ".tsv"}))
def test_documents(suffix: str, tmp_path: Path) -> None:
    folder = write_one_of_each(tmp_path / "files")
    (file,) = folder.glob(f"*{suffix}")
    with FileReader(seconds=LONGEST // 2) as reader:
        fuzz(file, lambda: reader.read(file), seed=100 + sorted(READERS).index(suffix), mutations=FEW)


INDEX = ("meta.json", "offsets-00000.bin", "texts-00000.jsonl", "vectors-00000.bin")


@pytest.mark.parametrize("name", INDEX)
def test_index(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checksums, which a hostile writer computes too, and without reading the whole first (verify)."""
    retriever, folder = small_retriever(), tmp_path / "index"
    Index.build(retriever, CHUNKS, folder)
    monkeypatch.setattr("qrag_jax.retrieve.meta.checksum", lambda tree: tree.get("sha256"))
    tree = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({key: value for key, value in tree.items() if key != "sha256"}))

    def read() -> None:
        index = Index.open(folder)
        index.rows.block(0, len(index.rows))
        for i in range(len(index.rows)):
            shard, row = index.rows.place(i)
            shard.chunk(row)

    fuzz(folder / name, read, seed=20 + INDEX.index(name), mutations=3 * FEW)


def test_reader_of_safetensors(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "chat")
    for number, name in enumerate(("config.json", "model.safetensors")):
        fuzz(folder / name, lambda: load_params(open_decoder(folder)), seed=30 + number, mutations=FEW)


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for add, value in (("context_length", 64), ("embedding_length", 8), ("block_count", 1), ("feed_forward_length", 8), ("head_count", 2)):
        getattr(writer, f"add_{add}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((3, 8), np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()

    def read() -> None:
        source = open_decoder(file)
        for name in source.tensors:
            source.tensors[name]

    fuzz(file, read, seed=40)


QUESTION = {
    "_id": "a",
    "question": "Who?",
    "answer": "Mary",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["T", 0]],
    "context": [["T", ["Mary went."]], ["U", ["John stayed."]]],
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who?",
    "answer": "Mary",
    "answer_aliases": [],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "T", "paragraph_text": "Mary went.", "is_supporting": True},
        {"idx": 1, "title": "U", "paragraph_text": "John stayed.", "is_supporting": True},
    ],
    "question_decomposition": [{"paragraph_support_idx": 0}, {"paragraph_support_idx": 1}],
}


def test_questions(tmp_path: Path) -> None:
    file = tmp_path / "hotpot.json"
    file.write_text(json.dumps([QUESTION]))
    fuzz(file, lambda: hotpotqa.read_hotpotqa(file), seed=50)
    lines = write_lines(tmp_path / "musique.jsonl", MUSIQUE)
    fuzz(lines, lambda: musique.read_musique(lines), seed=51)


SETTINGS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda path: RunConfig.from_json(path.read_bytes().decode(errors="surrogateescape")),
    "preset.json": lambda path: presets.read(str(path)),
    "sweep.yaml": read_spec,
    "sweep.toml": read_spec,
}
TOML = 'benchmark = "babilong"\ntask = "qa1"\nmethod = "grid"\n[space."optim.learning_rate"]\nvalues = [1e-3, 2e-3]\n'


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    json_text, yaml_text = RunConfig().to_json(), (ROOT / "experiments/sweep/qa1.yaml").read_text()
    file.write_text({"yaml": yaml_text, "toml": TOML}.get(name[-4:], json_text))
    fuzz(file, lambda: SETTINGS[name](file), seed=60, mutations=2 * FEW)


def test_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = write_lines(tmp_path / "metrics.jsonl", {"kind": "train", "step": 1, "loss": 0.5}, {"kind": "validation", "step": 2})
    fuzz(metrics, lambda: RunLog(tmp_path).read(), seed=70)
    answer = {"version": 1, "key": "k", "reader": "r", "text": "t", "prompt_tokens": 1, "completion_tokens": None, "finish": "stop"}
    cache = write_lines(tmp_path / "responses.jsonl", answer)
    fuzz(cache, lambda: ResponseCache(tmp_path), seed=71)
    shutil.copytree(ROOT / "docs/results/babilong-qa1-tiny", tmp_path / "results/run")
    for number, name in enumerate(("results.json", "config.json")):
        fuzz(
            tmp_path / "results/run" / name,
            lambda: report.page(report.read_runs(tmp_path / "results")),
            seed=72 + number,
        )
    shutil.copy(ROOT / "docs/results/babilong-qa2-tables/tables.json", tmp_path)
    fuzz(tmp_path / "tables.json", lambda: tables.read_tables(tmp_path / "tables.json"), seed=74)


def test_ablations_and_sweeps(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from experiments.ablations.report import read_ablations, table
    from experiments.sweep.report import drawings

    for name in ("babilong-qa2-ablations/ablations.json", "sweep-qa1/sweep.json"):
        shutil.copy(ROOT / "docs/results" / name, tmp_path)
    fuzz(tmp_path / "ablations.json", lambda: table(read_ablations(tmp_path / "ablations.json")), seed=75)
    fuzz(tmp_path / "sweep.json", lambda: drawings(tmp_path), seed=76, mutations=FEW)


def test_journal_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from experiments.sweep.study import Sweep

    (tmp_path / "sweep.toml").write_text(TOML)
    folder = tmp_path / "sweep"
    sweep = Sweep(read_spec(tmp_path / "sweep.toml")[0], folder)
    claim = sweep.next()
    assert claim is not None
    claim.lock.release()
    outside = set(tmp_path.iterdir())

    def read() -> Any:
        return Sweep.open(folder).rows()

    fuzz(folder / "journal.log", read, seed=80, mutations=FEW)
    fuzz(folder / "spec.json", read, seed=81, mutations=FEW)
    assert set(tmp_path.iterdir()) == outside


def test_released_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.support.reference import write_small_reference

    folder = write_small_reference(tmp_path / "released")
    for number, name in enumerate(("model_best.pt", "config.yaml")):
        fuzz(folder / name, lambda: read_reference(folder / "model_best.pt"), seed=90 + number, mutations=FEW)
