"""The mixer: exact lengths, labels that survive mixing, purity in (seed, i), shared and contiguous noise."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from qrag_jax.config import DataConfig
from qrag_jax.data import load
from qrag_jax.data.babilong.documents import BabiLong, GeneratedQuestions, OfficialQuestions
from qrag_jax.data.babilong.stories import BABI_TASKS, Story, read_babi
from qrag_jax.data.documents import ContiguousNoise, SharedNoise
from qrag_jax.data.splits import SPLITS
from qrag_jax.data.text.haystack import Haystack
from qrag_jax.types import QAExample
from tests.support.oracles.babi_replay import is_fact, solve

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "babi" / "qa2_two-supporting-facts_train.txt"
SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
HAYSTACK = Haystack(tuple(f"This is sentence number {i} of a long and quiet book." for i in range(500)), "made up", ("book",))


def check(example: QAExample) -> None:
    """The oracle finds the facts among the noise and derives answer and support from them."""
    places = [i for i, chunk in enumerate(example.chunks) if is_fact(chunk)]
    answer, support = solve([example.chunks[i] for i in places], example.question)
    assert (answer, tuple(places[i] for i in support)) == (example.answer, example.support), example.id


@pytest.mark.parametrize("task", BABI_TASKS)
@pytest.mark.parametrize("mode", [{"group": 8}, {"haystacks": 2}])
def test_labels_survive_mixing(task: str, mode: dict[str, int]) -> None:
    data = load(DataConfig(task=task, chunks=40), "train", seed=3, **mode)
    for i in range(16):
        assert len(data[i].chunks) == 40
        check(data[i])


def test_an_example_depends_on_seed_and_index_alone() -> None:
    config = DataConfig(task="qa3", chunks=60)
    one, other = load(config, "train", seed=1, group=4), load(config, "train", seed=1, group=4)
    backward = {i: other[i] for i in (90, 17, 4, 3)}
    assert all(one[i] == backward[i] for i in (3, 4, 17, 90))
    assert load(config, "train", seed=2, group=4)[3] != one[3]
    assert len({one[i] for i in range(50)}) == 50


def test_splits_share_neither_stories_nor_noise() -> None:
    chunks: dict[str, list[tuple[str, ...]]] = {}
    for split in SPLITS:
        data = load(DataConfig(task="qa1", chunks=40), split, seed=0, group=8)
        chunks[split] = [data[i].chunks for i in range(64)]
    facts = {split: {tuple(c for c in doc if is_fact(c))[:4] for doc in docs} for split, docs in chunks.items()}
    noise = {split: {c for doc in docs for c in doc if not is_fact(c)} for split, docs in chunks.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not {doc for doc in facts[a] if len(doc) == 4} & {doc for doc in facts[b] if len(doc) == 4}
        # Different books may hold a boilerplate sentence in common ("The default is None."); the noise must not.
        assert len(noise[a] & noise[b]) <= 2


def _mixed(noise: SharedNoise | ContiguousNoise, chunks: int, haystack: Haystack = HAYSTACK) -> BabiLong:
    questions = GeneratedQuestions("qa2", "train", seed=0, max_facts=min(chunks, 12))
    return BabiLong(questions, haystack, noise, task="qa2", split="train", seed=0, chunks=chunks)


def test_a_group_shares_its_noise_and_no_more() -> None:
    data = _mixed(SharedNoise(group=16, sentences=10), 40)
    pools = [{c for i in range(g * 16, g * 16 + 16) for c in data[i].chunks if not is_fact(c)} for g in range(4)]
    assert [len(pool) for pool in pools] == [10] * 4
    assert len(set().union(*pools)) > 30
    counts = [data[0].chunks.count(sentence) for sentence in pools[0]]
    assert max(counts) - min(counts) <= 1  # repeated evenly


def test_shared_noise_is_not_repeated_while_there_is_enough() -> None:
    for i in range(8):
        noise = [c for c in _mixed(SharedNoise(group=4, sentences=60), 40)[i].chunks if not is_fact(c)]
        assert len(set(noise)) == len(noise)


def test_contiguous_noise_is_running_text_dealt_over_haystacks() -> None:
    data = _mixed(ContiguousNoise(haystacks=2), 100)
    starts = []
    for i in range(8):
        numbers = [int(c.split()[4]) for c in data[i].chunks if not is_fact(c)]
        assert numbers == [(numbers[0] + k) % 500 for k in range(len(numbers))]
        starts.append(numbers[0])
    assert starts == starts[:2] * 4
    assert (starts[0] - starts[1]) % 500 == 250


def test_facts_are_placed_uniformly() -> None:
    data = _mixed(SharedNoise(group=16, sentences=60), 40)
    places = [i for k in range(200) for i, chunk in enumerate(data[k].chunks) if is_fact(chunk)]
    thirds = [sum(a <= i < a + 10 for i in places) / len(places) for a in (0, 10, 20, 30)]
    assert thirds == pytest.approx([0.25] * 4, abs=0.05)


def test_ten_million_tokens_in_a_second() -> None:
    data = _mixed(ContiguousNoise(haystacks=1), 400_000)
    begin = time.process_time()
    example = data[5]
    assert time.process_time() - begin < 1.0
    assert len(example.chunks) == 400_000
    assert len(set(map(id, example.chunks))) <= 500 + 12  # strings are shared, not copied
    check(example)


def test_documents_may_be_facts_only() -> None:
    story = read_babi(FIXTURE)[0]
    questions = OfficialQuestions("qa2", "train", [dataclasses.replace(story, questions=story.questions[:1])], seed=0, max_facts=6)
    data = BabiLong(questions, HAYSTACK, SharedNoise(1, 5), task="qa2", split="train", seed=0, chunks=6)
    assert data[0].chunks == story.facts[:6]
    assert data[0].support == story.questions[0].support


def test_official_questions_come_once_a_pass_in_changing_order() -> None:
    stories: list[Story] = read_babi(FIXTURE)
    questions = OfficialQuestions("qa2", "train", stories, seed=0, max_facts=20)
    fitting = [(story, question) for story in stories for question in story.questions if question.facts <= 20]
    count = len(fitting)
    assert len(questions) == count
    assert 0 < count < 15
    passes = [[questions.question(epoch * count + i) for i in range(count)] for epoch in range(3)]
    key = str
    assert all(sorted(one, key=key) == sorted(fitting, key=key) for one in passes)
    assert passes[0] != passes[1]
    data = BabiLong(questions, HAYSTACK, SharedNoise(4, 20), task="qa2", split="train", seed=0, chunks=30)
    assert len(data) == len(list(data)) == count
    check(data[10 * count + 3])
    ids = {data[i].id for i in range(3 * count)}
    assert len(ids) == 3 * count


def test_official_data_folder() -> None:
    if not (SHARED / "babi").is_dir() or not (SHARED / "books").is_dir():
        pytest.skip("shared/data with babi and books is not beside this repository")
    data = load(DataConfig(task="qa2", data_dir=str(SHARED)), "validation", seed=0, haystacks=2, chunks=160, haystack_sentences=2000)
    assert len(data) == 925  # 185 stories of 5 questions, none longer than 128 facts
    for i in (0, 1, 924, 925):
        check(data[i])


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"data.benchmark = 'rulr': unknown; known: .*babilong"):
        load(DataConfig(benchmark="rulr"), "train", seed=0, group=1)
    with pytest.raises(ValueError, match=r"task = 'qa7': unknown task of babilong; known: qa1"):
        load(DataConfig(task="qa7"), "train", seed=0, group=1)
    with pytest.raises(ValueError, match=r"give group to train, or haystacks to evaluate"):
        load(DataConfig(), "train", seed=0)
    with pytest.raises(ValueError, match=r"task qa3: no question with at most 3 facts before it; the shortest has 4"):
        load(DataConfig(task="qa3"), "train", seed=0, group=1, chunks=4)
    with pytest.raises(ValueError, match=r"task qa2: no question with at most 3 facts before it; the shortest has 6"):
        OfficialQuestions("qa2", "train", read_babi(FIXTURE)[:1], seed=0, max_facts=3)
    with pytest.raises(ValueError, match=r"max_facts = 41: must be in 1..40"):
        load(DataConfig(), "train", seed=0, group=1, max_facts=41)
    with pytest.raises(ValueError, match=r"shared_noise = 501: must be in 1..500"):
        _mixed(SharedNoise(4, 501), 40)
    with pytest.raises(ValueError, match=r"group = 0: must be >= 1"):
        _mixed(SharedNoise(0, 5), 40)
    with pytest.raises(ValueError, match=r"haystacks = 0: must be >= 1"):
        _mixed(ContiguousNoise(0), 40)
    with pytest.raises(IndexError, match=r"example -1: must be >= 0"):
        _mixed(SharedNoise(4, 5), 40)[-1]
