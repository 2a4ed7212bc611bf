"""The batch as a haystack: what each question's document holds, on any number of devices and processes, and where it is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import pytest

from qrag_jax import data
from qrag_jax.config import Stage
from qrag_jax.data.pooled import check_pooled, in_one_haystack
from qrag_jax.train.batches import Batches, make_batch, stage_examples
from qrag_jax.train.parallel import make_parallel
from qrag_jax.types import PAD, WHOLE, QAExample, Share
from tests.support.small import SMALL, changed, small_learner, small_tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CONFIG = changed(
    SMALL,
    data={"benchmark": "hotpotqa", "task": "all", "data_dir": str(FIXTURES), "chunks": 4, "haystack": "batch", "state_order": "picked"},
    qhead={"positions": "none"},
    rl={"budget": 2, "random_updates": 0},
    optim={"batch": 4},
)


def question(name: str, *chunks: tuple[str, str], support: tuple[int, ...]) -> QAExample:
    texts = tuple(f"{title}. {text}" if title else text for title, text in chunks)
    return QAExample(name, f"{name}?", texts, "", support, titles=tuple(title for title, _ in chunks))


def test_the_haystack_by_hand():
    ilm, brask = ("Ilm", "Ilm is in Brask."), ("Brask", "Brask is governed by Jan.")
    one = question("one", ilm, brask, ("Ilm", "Ilm has a fair."), support=(0, 1))
    two = question("two", ("BRASK", "A brass band."), ("Tolk", "Tolk is old."), ilm, support=(1,))
    three = question("three", ("ilm", "ilm is in brask"), ("", "Tolk is old."), ("", "Tolk is old."), support=(1, 2))
    first, second, third = in_one_haystack([one, two, three])
    # One leaves out what has a title of its support, and what says the same in other letters and marks. Its own second Ilm stays.
    assert first.chunks == (*one.chunks, "Tolk. Tolk is old.", "Tolk is old.")
    assert first.support == (0, 1)
    # Ilm's chunk of question one is question two's own.
    assert second.chunks == (*one.chunks, "BRASK. A brass band.", "Tolk. Tolk is old.", "ilm. ilm is in brask", "Tolk is old.")
    assert [second.chunks[i] for i in second.support] == ["Tolk. Tolk is old."]
    # A text that stands twice is one chunk, and its support.
    assert third.chunks == second.chunks
    assert [third.chunks[i] for i in third.support] == ["Tolk is old."]
    assert [example.titles[0] for example in (first, second, third)] == ["Ilm"] * 3
    assert (third.id, third.question) == ("three", "three?")


def test_the_order_that_the_question_needs_is_kept():
    musique = replace(CONFIG.data, benchmark="musique")
    questions = data.load(musique, "train", seed=0)
    train = [questions[i] for i in range(8)]
    for i, example in enumerate(train):  # in training, the paragraphs are shuffled
        record = questions.record(i)
        assert [example.chunks[k] for k in example.path] == [record.chunks()[k] for k in record.path]
    for own, pooled in zip(train, in_one_haystack(train), strict=True):
        assert [own.chunks[k] for k in own.path] == [pooled.chunks[k] for k in pooled.path]
    batch = make_batch(train, 0, small_tokenizer(), musique)
    for row, example in enumerate(train):
        assert [int(batch.hop[row, k]) for k in example.path] == list(range(len(example.path)))
        assert batch.hop[row].sum() == sum(range(len(example.path)))
    with pytest.raises(ValueError, match=r"path \(1,\) must hold the supporting chunks \(0,\), each once"):
        QAExample("q", "?", ("a", "b"), "", (0,), path=(1,))


def test_titles_belong_to_chunks():
    with pytest.raises(ValueError, match="has 1 titles for 2 chunks"):
        QAExample("q", "?", ("a", "b"), "", (0,), titles=("a",))
    for name in ("hotpotqa", "musique", "twowiki"):
        for form in ("title. text", "reference"):
            settings = replace(CONFIG.data, benchmark=name, chunk_text=form, chunks=8)
            example = data.load(settings, "train", seed=0)[0]
            assert all(text.startswith(title) for text, title in zip(example.chunks, example.titles, strict=True))
    own = replace(CONFIG.data, benchmark="own", data_dir=str(FIXTURES / "own" / "questions.jsonl"))
    assert data.load(own, "train", seed=0)[0].titles == ()


@pytest.mark.parametrize(
    ("benchmark", "positions", "message"),
    [
        ("babilong", "relative", "not for babilong, where facts of another document would be false evidence; use own"),
        ("ruler", "none", "not for ruler"),
        ("own", "relative", r"the chunks of own have an order, .*; use own, or qhead.positions none"),
        ("hotpotqa+babilong", "none", "not for babilong"),
    ],
)
def test_documents_that_may_not_be_joined(benchmark, positions, message):
    with pytest.raises(ValueError, match=rf"data.haystack = 'batch': {message}"):
        check_pooled(benchmark, positions)
    for allowed in ("hotpotqa:2+musique", "twowiki", "own"):
        check_pooled(allowed, "none")
    if benchmark == "babilong":
        config = changed(SMALL, data={"haystack": "batch"})
        with pytest.raises(ValueError, match=message):
            stage_examples(config, config.train.stages(config.data)[0])


def batches(share: Share = WHOLE) -> Batches:
    stage = Stage(CONFIG.data.task, CONFIG.data.chunks, 100)
    return Batches(CONFIG.data, 4, small_tokenizer(), [(stage, stage_examples(CONFIG, stage))], share)


def naive(examples: list[QAExample]) -> list[tuple[set[tuple[int, ...]], set[tuple[int, ...]]]]:
    """Tokens of all chunks and of the supporting chunks that each question should see, question by question and chunk by chunk."""
    tokens = lambda text: tuple(int(i) for i in small_tokenizer().rows([text], CONFIG.data.chunk_tokens)[0] if i != PAD)
    found = []
    for example in examples:
        own = [example.chunks[i] for i in example.support]
        titles = {example.titles[i] for i in example.support}
        seen = {c for other in examples for c, t in zip(other.chunks, other.titles, strict=True) if c in example.chunks or t not in titles}
        found.append(({tokens(text) for text in seen}, {tokens(text) for text in own}))
    return found


@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_equals_the_naive_construction(devices):
    made = batches(Share(devices=devices))
    raw = data.load(CONFIG.data, "train", seed=CONFIG.train.seed)
    for step in range(3):
        batch = made[step]
        assert batch.chunk_index.shape == (4, 16), "one shape, whatever the batch holds"
        rows = [tuple(int(i) for i in row if i != PAD) for row in batch.chunk_pool_ids]
        for number, (seen, support) in enumerate(naive([raw[4 * step + i] for i in range(4)])):
            mask, flags = batch.chunk_mask[number], batch.support[number]
            index = [rows[i] for i in batch.chunk_index[number]]
            assert {index[i] for i in np.flatnonzero(mask)} == seen
            assert mask.sum() == len(seen), "no chunk twice"
            assert {index[i] for i in np.flatnonzero(flags)} == support
            assert not (flags & ~mask).any()
        texts = [example.chunks for example in made.examples(step)]
        assert [len(chunks) for chunks in texts] == batch.chunk_mask.sum(1).tolist(), "the reader is asked about the same chunks"


def test_two_processes_make_the_shares_of_one_batch():
    whole = batches(Share(devices=2))[0]
    parts = [batches(Share(i, 2, 2))[0] for i in range(2)]
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b)), whole, *parts)


@lru_cache
def update_gradients(objective: str, kind: str, count: int):
    config = changed(CONFIG, rl={"objective": objective, "supervised_loss": "softmax"})
    learner, state = small_learner(config)

    def gradients(state, batch, axis_name=None):
        return state.replace(params=learner.update(state, batch, axis_name)[0].opt_state[1][0].mu), {}

    devices = make_parallel(gradients, kind, tuple(jax.devices()[:count]))
    found, _ = devices.update(devices.place(state), batches(devices.share)[0])
    return devices.fetch(found.params)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # the state is given away for its gradients
@pytest.mark.parametrize("objective", ["td", "supervised"])
def test_two_devices_learn_what_one_device_learns(objective):
    one, two = update_gradients(objective, "jit", 1), update_gradients(objective, "pmap", 2)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(one)) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-3), one, two)
