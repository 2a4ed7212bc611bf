"""An index survives a kill at any moment of a build, an addition, a synchronisation or a removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from tests.conftest import ROOT
from tests.support.index import CHUNKS, content, small_retriever, write_small_export
from tests.support.processes import environment


@pytest.mark.processes
@pytest.mark.optimized  # the two processes must compile alike
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    export = write_small_export(tmp_path / "export")
    script = """
import sys, time
from pathlib import Path
from qrag_jax import Retriever
from qrag_jax.retrieve.index import Index
retriever, embed = Retriever.from_pretrained(sys.argv[1]), None
embed = retriever.embed_chunks
retriever.embed_chunks = lambda texts: (time.sleep(0.3), embed(texts))[1]
Index.build(retriever, Path(sys.argv[2]), sys.argv[3], shard_chunks=8)
"""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{i} {chunk}" for i, chunk in enumerate(CHUNKS)))
    path = tmp_path / "index"
    process = subprocess.Popen([sys.executable, "-c", script, export, text, path], cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    while not (path / "vectors-00002.bin").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (path / "meta.json").exists()
    retriever = Retriever.from_pretrained(export)
    resumed = Index.build(retriever, text, path, shard_chunks=8)
    expected = Index.build(retriever, text, tmp_path / "expected", shard_chunks=8)
    assert content(resumed.path) == content(expected.path)


@pytest.mark.parametrize("change", ["nothing", "a text", "fewer texts", "settings", "model", "damage"])
def test_a_build_that_was_stopped_goes_on_whatever_has_changed(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = small_retriever()
    path, texts, shard, now = tmp_path / "index", CHUNKS, 16, retriever
    with monkeypatch.context() as patch:
        fail_after(patch, retriever, 2)
        with pytest.raises(RuntimeError, match="stop here"):
            Index.build(retriever, CHUNKS, path, shard_chunks=16)
    with pytest.raises(ValueError, match="the build was not finished; run the same build command again"):
        Index.open(path)
    if change == "a text":
        texts = [*CHUNKS[:20], "changed", *CHUNKS[21:]]
    elif change == "fewer texts":
        texts = CHUNKS[:16]
    elif change == "settings":
        shard = 32
    elif change == "model":
        now = small_retriever(1)
    elif change == "damage":
        vectors = path / "vectors-00000.bin"
        vectors.write_bytes(bytes(vectors.stat().st_size))
    embedded = {"nothing": 28, "a text": 29, "fewer texts": 0, "settings": 28, "model": 60, "damage": 44}[change]
    index = Index.build(now, texts, path, shard_chunks=shard)
    assert index.changes is not None
    assert index.changes.embedded == embedded
    expected = Index.build(now, texts, tmp_path / "expected", shard_chunks=shard)
    assert [index.chunk(i) for i in range(len(index))] == [expected.chunk(i) for i in range(len(expected))]
    np.testing.assert_allclose(index.rows.block(0, len(texts)), expected.rows.block(0, len(texts)), atol=1e-6)
    Index.open(path, verify=True)
    if change == "nothing":
        assert content(path) == content(expected.path)


def fail_after(patch: pytest.MonkeyPatch, retriever: Retriever, calls: int) -> None:
    """Lets the embedding raise an error after ``calls`` calls."""
    embed, count = retriever.embed_chunks, iter(range(calls))

    def failing(texts: list[str]) -> np.ndarray:
        if next(count, None) is None:
            raise RuntimeError("stop here")
        return embed(texts)

    patch.setattr(retriever, "embed_chunks", failing)


FORKS = """
import os, shutil, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from qrag_jax.retrieve import index as module

module.model_hash = lambda retriever: "0" * 64
vector = lambda text: np.frombuffer(text.encode().ljust(16, b"."), "u1")[:16].astype(np.float32)
embed = lambda texts: np.stack([vector(text) for text in texts])
config = SimpleNamespace(data=SimpleNamespace(chunk_tokens=16, chunk_by="tokens"))
tokenizer = SimpleNamespace(reads=lambda text: True)
vars(tokenizer).update(room=lambda length: length, lookup=lambda texts: [[0]] * len(texts), unknown=lambda texts: [0] * len(texts))
retriever = SimpleNamespace(
    config=config, embedder=SimpleNamespace(config=SimpleNamespace(width=16)), tokenizer=tokenizer, params=None, embed_chunks=embed
)
texts = [f"text {i % 7}" for i in range(10)]
more = ["text 1", "more 0", "more 1", "more 2", "text 2"]
root = Path(sys.argv[1])
os.chdir(root)
build = lambda: module.Index.build(retriever, texts, "index", dtype="int8", shard_chunks=4)
add = lambda: module.Index.open("index").add(retriever, more)
Text = module.Text
named = [Text(f"text {i}. more {i}.", f"{i}.txt") for i in range(6)]
other = [named[5], Text("text 1. new.", "1.txt"), *named[2:4], Text("quite new.", "7.txt")]
begin = lambda: module.Index.build(retriever, named, "index", dtype="int8", shard_chunks=4)
sync = lambda: module.Index.open("index").sync(retriever, other)
remove = lambda: module.Index.open("index").remove(["1.txt", "4.txt"])
texts_of = lambda index: [index.chunk(i) for i in range(len(index))]
content = lambda: {path.name: path.read_bytes() for path in Path("index").iterdir()}
kinds = [("rename", Path.replace, "replace"), ("write", Path.write_bytes, "write_bytes"), ("unlink", Path.unlink, "unlink")]

def killed(work, moment):
    # A child that dies at its moment-th change of the folder; False if it came to the end before.
    child = os.fork()
    if not child:
        try:
            count = iter(range(moment))
            def dying(method):
                def call(self, *args, **options):
                    if next(count, None) is None:
                        if method is Path.write_bytes:
                            method(self, args[0][: len(args[0]) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    return method(self, *args, **options)
                return call
            for _, method, name in kinds:
                setattr(Path, name, dying(method))
            work()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)

build()
built = content()
add()
added = content()
moments = 0
shutil.rmtree("index")
begun = texts_of(begin())
grown = content()
results = {}
for work in (sync, remove):
    results[work] = (texts_of(work()), content())
    shutil.rmtree("index")
    begin()
for work, before, after in (
    (build, None, built), (add, built, added), (sync, grown, results[sync][1]), (remove, grown, results[remove][1])
):
    moment = 0
    while True:
        shutil.rmtree("index")
        if before is not None:
            Path("index").mkdir()
            for name, data in before.items():
                Path("index", name).write_bytes(data)
        if not killed(work, moment):
            break
        if before is not None:
            valid = module.Index.open("index", verify=True)
            now = texts_of(valid)
            whole = (len(valid) in (10, 15)) if work is add else now in (begun, results[work][0])
            assert whole, (moment, now)
        if before is None or (len(module.Index.open("index")) == 10 if work is add else now == begun):
            work()
            assert content() == after, (moment, sorted(content()), sorted(after))
        moment += 1
    moments += moment
print(moments)
"""


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_every_change_of_the_folder(tmp_path: Path) -> None:
    # Children that kill themselves (SIGKILL) at the first, second, ... file that they write (half of it), rename or remove.
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    # A build of 3 shards writes and renames 5 files a shard, a journal 1 + 3 times and meta.json, and removes the journal.
    # meta.json and journals are written aside and renamed, two changes each. The lock's two files are removed at the end.
    assert int(done.stdout) > (3 * 5 * 2 + 4 * 2 + 2 + 1 + 2) + (2 * 5 * 2 + 3 * 2 + 2 + 1 + 2), "and those of sync and remove"


READERS = (
    FORKS.partition('texts = [f"text')[0]
    + """
import threading, time
from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.scan import HostScorer
os.chdir(sys.argv[1])
Text = module.Text
document = lambda n: Text(f"stays {n}." if n % 3 == 0 else f"comes {n}. and goes {n}.", f"{n}.txt")
module.Index.build(retriever, [document(n) for n in range(0, 30, 3)], "index", shard_chunks=4)
question = vector("stays 9.")
plain = QHeadConfig(positions="none")
end = time.monotonic() + 60

def check(index):
    # Every vector is that of its text, every name that of its text, and the best chunk is the best of the texts.
    chunks = [index.chunk(i) for i in range(len(index))]
    vectors = embed([chunk.text for chunk in chunks])
    assert (index.rows.block(0, len(index)) == vectors).all()
    assert all(chunk.text in document(int(chunk.source[:-4])).text for chunk in chunks)
    found = HostScorer(index.rows, plain)(question[None], [()], 1)[0].chunks[0]
    assert found == int((vectors @ question).argmax())
    return len(chunks)

def read(done):
    held, count = module.Index.open("index"), 0
    size = check(held)
    while not done() and time.monotonic() < end:
        check(module.Index.open("index"))
        assert check(held) == size
        count += 1
    return count

children = []
for _ in range(4):
    child = os.fork()
    if not child:
        try:
            os._exit(0 if read(lambda: Path("done").exists()) else 2)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    children.append(child)
counts, errors = [], []

def thread():
    try:
        counts.append(read(lambda: Path("done").exists()))
    except BaseException as error:
        errors.append(repr(error))

threads = [threading.Thread(target=thread) for _ in range(8)]
for one in threads:
    one.start()
for turn in range(20):
    index = module.Index.open("index").add(retriever, [document(3 * turn + 1), document(3 * turn + 2)])
    index.remove([f"{3 * turn + 1}.txt"])
    time.sleep(0.1)
Path("done").touch()
for one in threads:
    one.join()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert not errors, errors
assert codes == [0] * 4, codes
print(len(counts), min(counts))
"""
)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_readers_see_right_answers_through_20_additions_and_removals(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", READERS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    threads, fewest = map(int, done.stdout.split())
    assert threads == 8
    assert fewest > 0
