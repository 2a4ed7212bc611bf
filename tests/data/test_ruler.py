"""RULER: needles found by a checker of its own, exact lengths, purity in (seed, i), disjoint splits."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qrag_jax import data
from qrag_jax.config import DataConfig
from qrag_jax.config.benchmarks import BENCHMARKS
from qrag_jax.data.documents import ENDLESS, ContiguousNoise, Item, Piece, SharedNoise, TextHaystack
from qrag_jax.data.ruler import needles as ruler_needles
from qrag_jax.data.ruler import tasks as ruler
from qrag_jax.data.ruler.tasks import Ruler, context_chunks, load
from qrag_jax.data.splits import SPLITS, Split
from qrag_jax.types import QAExample
from tests.support.small import NEEDLE

WORDS = r"[a-z]+-[a-z]+"
NUMBERS = r"[1-9]\d{6}"
UUIDS = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
# Task -> needles that are not noise, how many of them are asked for, form of keys, form of values, noise is needles.
EXPECTED = {
    "niah_s1": (1, 1, WORDS, NUMBERS, False),
    "niah_s2": (1, 1, WORDS, NUMBERS, False),
    "niah_s3": (1, 1, WORDS, UUIDS, False),
    "niah_mk1": (4, 1, WORDS, NUMBERS, False),
    "niah_mk2": (1, 1, WORDS, NUMBERS, True),
    "niah_mk3": (1, 1, UUIDS, UUIDS, True),
    "niah_mv": (4, 4, WORDS, NUMBERS, False),
    "niah_mq": (4, 4, WORDS, NUMBERS, False),
}


def prose(book: str, count: int) -> str:
    line = "In the book of {} the keeper {} of house {} walked slowly along the {}."
    return "\n\n".join(line.format(book, word(2 * n), n, word(2 * n + 1)) for n in range(count))


def word(n: int) -> str:
    """A word of its own for each ``n`` below 1 000."""
    return "".join("bdfghklmnp"[n // 10**k % 10] + "aeiou"[k] for k in range(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data folder: three books to train on, one for tests that nobody must read here, two essays."""
    root = tmp_path_factory.mktemp("data")
    for name, count in (("train/anna", 90), ("train/boris", 90), ("train/clara", 90), ("test/dmitri", 90)):
        path = root / "books" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(path.stem, count), encoding="utf-8")
    (root / "pg_essays").mkdir()
    for name in ("elena", "fyodor"):
        (root / "pg_essays" / f"{name}.txt").write_text(prose(name, 150), encoding="utf-8")
    return str(root)


def check(example: QAExample, task: str, chunks: int) -> None:
    """Finds the needles by their form, and from them and the question derives support and answer."""
    own, asked_for, key_form, value_form, needles_are_noise = EXPECTED[task]
    assert len(example.chunks) == chunks
    found = [(i, *match.groups()) for i, chunk in enumerate(example.chunks) if (match := NEEDLE.fullmatch(chunk))]
    assert len(found) == (chunks if needles_are_noise else own)
    kind = {NUMBERS: "numbers", UUIDS: "uuids"}[value_form]
    for _, named, key, value in found:
        assert named == kind
        assert re.fullmatch(key_form, key)
        assert re.fullmatch(value_form, value)
    many = re.fullmatch(rf"What are all the special magic {kind} for (.+) mentioned in the provided text\?", example.question)
    one = re.fullmatch(rf"What is the special magic {kind[:-1]} for (\S+) mentioned in the provided text\?", example.question)
    question = many if asked_for > 1 else one
    assert question is not None, example.question
    keys = re.split(r", and |, ", question[1])
    assert len(keys) == (4 if task == "niah_mq" else 1)
    assert example.support == tuple(i for i, _, key, _ in found if key in keys)
    assert len(example.support) == asked_for
    values = {key: [v for _, _, k, v in found if k == key] for key in keys}
    assert sorted(example.answer.split(", ")) == sorted(value for key in keys for value in values[key])
    if task == "niah_mq":
        assert example.answer.split(", ") == [values[key][0] for key in keys]


@pytest.mark.parametrize("task", EXPECTED)
@pytest.mark.parametrize(("split", "mode"), [("train", {"group": 8}), ("validation", {"haystacks": 2}), ("test", {"haystacks": 2})])
def test_support_and_answer_are_what_the_needles_say(task: str, split: Split, mode: dict[str, int], folder: str) -> None:
    documents = load(DataConfig(task=task, data_dir=folder), split, seed=3, **mode)
    for i in range(12):
        check(documents[i], task, 40)
    check(load(DataConfig(task=task, data_dir=folder), split, seed=3, chunks=4600, **mode)[1], task, 4600)


def test_what_is_written() -> None:
    assert ruler_needles.needle("numbers", "calm-fox", "1234567") == "One of the special magic numbers for calm-fox is: 1234567."
    assert (
        ruler_needles.question("uuids", ("calm-fox",), 1) == "What is the special magic uuid for calm-fox mentioned in the provided text?"
    )
    assert (
        ruler_needles.question("numbers", ("calm-fox",), 4)
        == "What are all the special magic numbers for calm-fox mentioned in the provided text?"
    )
    assert (
        ruler_needles.question("words", ("calm-fox", "bold-hill", "old-coat"), 3)
        == "What are all the special magic words for calm-fox, bold-hill, and old-coat mentioned in the provided text?"
    )


class TwoHeights:
    """The same item each time: two pieces that it needs and one in between that it does not."""

    most_pieces = 3

    def __len__(self) -> int:
        return ENDLESS

    def item(self, i: int) -> Item:
        return Item("How high?", "3, 4", (Piece("a", "A is 3."), Piece("x", "X is 9."), Piece("b", "B is 4.")), (0, 2))


def two_heights(chunks: int, *, noise: SharedNoise | ContiguousNoise | None = None, texts: tuple[str, ...] = ("Noise.",)) -> Ruler:
    haystack = TextHaystack(texts)
    return Ruler(TwoHeights(), haystack, noise or SharedNoise(4, 10), task="heights", split="train", seed=0, chunks=chunks)


def test_a_document_without_room_for_noise_is_its_pieces() -> None:
    assert two_heights(3)[5] == QAExample("ruler/heights/train/3/5", "How high?", ("A is 3.", "X is 9.", "B is 4."), "3, 4", (0, 2))


def test_pieces_keep_their_order_among_noise_wherever_they_fall() -> None:
    documents = two_heights(12)
    places = []
    for i in range(600):
        example = documents[i]
        found = [(place, chunk) for place, chunk in enumerate(example.chunks) if chunk != "Noise."]
        assert [chunk for _, chunk in found] == ["A is 3.", "X is 9.", "B is 4."]
        assert example.support == (found[0][0], found[2][0])
        places += [place for place, _ in found]
    assert [Counter(places)[place] / 600 for place in range(12)] == pytest.approx([0.25] * 12, abs=0.08)


def test_contiguous_noise_is_running_text_dealt_over_haystacks() -> None:
    documents = two_heights(40, noise=ContiguousNoise(2), texts=tuple(f"Line {k}." for k in range(100)))
    starts = []
    for i in range(4):
        numbers = [int(chunk[5:-1]) for chunk in documents[i].chunks if chunk.startswith("Line")]
        assert numbers == [(numbers[0] + k) % 100 for k in range(37)]
        starts.append(numbers[0])
    assert starts == starts[:2] * 2
    assert (starts[1] - starts[0]) % 100 == 50


def test_noise_that_belongs_to_the_question_is_left_out() -> None:
    for noise in (SharedNoise(4, 10), ContiguousNoise(2)):
        documents = two_heights(9, noise=noise, texts=("a", "Noise.", "b"))  # the names of two of the pieces
        assert Counter(documents[0].chunks) == {"A is 3.": 1, "X is 9.": 1, "B is 4.": 1, "Noise.": 6}
    with pytest.raises(ValueError, match=r"task heights: all noise belongs to the question; raise data.shared_noise"):
        two_heights(9, texts=("a", "b"))[0]


def test_distractor_needles_never_have_the_key_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruler_needles, "listed_pairs", lambda split: ("calm-fox", "bold-hill", "old-coat"))
    for mode in ({"group": 4}, {"haystacks": 2}):
        documents = load(DataConfig(task="niah_mk2"), "test", seed=0, chunks=30, **mode)
        for i in range(6):
            check(documents[i], "niah_mk2", 30)


@pytest.mark.parametrize("task", ["niah_mk1", "niah_mk2", "niah_mk3"])
def test_a_group_shares_its_noise_and_no_more(task: str, folder: str) -> None:
    documents = load(DataConfig(task=task, shared_noise=50, data_dir=folder), "train", seed=0, group=16, chunks=60)
    own = EXPECTED[task][0]
    pools = []
    for group in range(3):
        counts = Counter(chunk for i in range(group * 16, group * 16 + 16) for chunk in set(documents[i].chunks))
        pools.append({chunk for chunk, count in counts.items() if count >= 12})  # not in a document that asks for its key
        assert len(pools[-1]) == 50
        assert len(counts) == 50 + 16 * own
    assert len(set.union(*pools)) > 100


def test_all_needles_together_are_trained_mostly_on_the_hard_tasks_and_tested_in_equal_parts(folder: str) -> None:
    config = DataConfig(benchmark="ruler", task="niah", shared_noise=50, data_dir=folder)
    tasks = lambda documents, where: Counter(documents[i].id.split("/")[1] for i in where)
    easy = set(ruler.NIAH) - set(ruler.TRAINING_PARTS)
    train = load(config, "train", seed=0, group=32, chunks=60)
    for batch in (range(32), range(32, 64)):
        assert tasks(train, batch) == dict.fromkeys(easy, 2) | {"niah_multikey_2": 10, "niah_multikey_3": 10}
    equal = load(config, "validation", seed=0, haystacks=2, chunks=60)
    assert tasks(equal, range(32)) == dict.fromkeys(ruler.NIAH, 4)


def test_all_needles_together_share_their_noise_in_a_batch_and_have_new_noise_in_the_next(folder: str) -> None:
    """As tasks that are trained alone. The tasks whose noise is prose share one."""
    train = load(DataConfig(benchmark="ruler", task="niah", shared_noise=50, data_dir=folder), "train", seed=0, group=32, chunks=60)
    noise: list[dict[str, set[str]]] = [{}, {}]
    for i in range(64):
        example = train[i]
        counts = noise[i // 32]
        task = example.id.split("/")[1]
        counts[task] = counts.get(task, set(example.chunks)) & set(example.chunks)
    assert all(len(noise[k]["niah_multikey_3"]) == 50 for k in (0, 1))
    assert all(40 <= len(noise[k]["niah_multikey_2"]) <= 50 for k in (0, 1)), "each of ten documents lacks the key that it asks for"
    prose = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
    assert all(noise[k]["niah_single_2"] == noise[k][task] for k in (0, 1) for task in prose)
    assert all(noise[0][task].isdisjoint(noise[1][task]) for task in ("niah_multikey_2", "niah_multikey_3"))


def test_an_example_depends_on_seed_and_index_alone(folder: str) -> None:
    for task in EXPECTED:
        config = DataConfig(task=task, data_dir=folder)
        one, other = load(config, "train", seed=1, group=4), load(config, "train", seed=1, group=4)
        backward = {i: other[i] for i in (90, 17, 4, 3)}
        assert all(one[i] == backward[i] for i in (3, 4, 17, 90))
        assert load(config, "train", seed=2, group=4)[3] != one[3]
        assert len({one[i].question for i in range(50)}) > 45
        alias = load(DataConfig(task=BENCHMARKS["ruler"].aliases[task], data_dir=folder), "train", seed=1, group=4)
        assert alias[3] == one[3]


@pytest.mark.parametrize("task", ["niah_mk1", "niah_mk2", "niah_mk3", "niah_mq"])
def test_splits_share_no_key_no_value_and_no_text(task: str, folder: str) -> None:
    keys: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    noise: dict[str, set[str]] = {}
    for split in SPLITS:
        documents = load(DataConfig(task=task, data_dir=folder), split, seed=0, haystacks=4)
        chunks = [chunk for i in range(150) for chunk in documents[i].chunks]
        needles = [match.groups() for chunk in chunks if (match := NEEDLE.fullmatch(chunk))]
        keys[split], values[split] = {needle[1] for needle in needles}, {needle[2] for needle in needles}
        noise[split] = {chunk for chunk in chunks if not NEEDLE.fullmatch(chunk)}
        assert min(len(keys[split]), len(values[split])) > 150
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not keys[a] & keys[b]
        assert not values[a] & values[b]
        assert not noise[a] & noise[b]
    if task == "niah_mk1":
        books = {split: {re.findall(r"book of (\w+)", text)[0] for text in noise[split]} for split in SPLITS}
        assert books["test"] == {"elena", "fyodor"}
        assert books["train"] | books["validation"] == {"anna", "boris", "clara"}


def test_names_are_different_as_long_as_there_are_any() -> None:
    draw = np.random.default_rng(0)
    for place, split in enumerate(SPLITS):
        numbers = [int(number) for number in ruler_needles.draw_names("numbers", 20_000, split, (), draw)]
        assert len(set(numbers)) == 20_000
        assert {number % 3 for number in numbers} == {(1_000_000 + place) % 3}  # 1 000 000 is the first number of training
        assert 1_000_000 <= min(numbers) < 1_010_000 < 9_990_000 < max(numbers) <= 9_999_999
        pairs = ruler_needles.listed_pairs(split)
        drawn = Counter(ruler_needles.draw_names("words", 2 * len(pairs) + 1, split, pairs, draw))
        assert set(drawn) == set(pairs)
        assert sorted(drawn.values())[-2:] == [2, 3]
    everything = [pair for split in SPLITS for pair in ruler_needles.listed_pairs(split)]
    assert len(set(everything)) == len(everything) == len(ruler_needles.ADJECTIVES) * len(ruler_needles.NOUNS)


@pytest.mark.parametrize("task", ["niah_mk1", "niah_mk2"])
def test_training_keys_have_other_words_in_each_group_and_never_those_of_the_test(task: str, folder: str) -> None:
    documents = load(DataConfig(task=task, data_dir=folder, shared_noise=50), "train", seed=0, group=16, chunks=60)
    found: list[tuple[set[str], set[str]]] = []
    for group in range(3):
        text = " ".join(" ".join((documents[i].question, *documents[i].chunks)) for i in range(group * 16, group * 16 + 16))
        keys = re.findall(r"numbers? for (\w+)-(\w+)", text)
        found.append(({first for first, _ in keys}, {second for _, second in keys}))
        assert not found[-1][0] & found[-1][1]
        assert not (found[-1][0] | found[-1][1]) & {*ruler_needles.ADJECTIVES, *ruler_needles.NOUNS}
        assert max(map(len, found[-1])) <= 15, "keys of a document share words"
    assert not found[0][0] == found[1][0] == found[2][0]


def test_keys_of_a_group_are_all_pairs_of_its_words() -> None:
    few, many = ruler_needles.TRAINING_LISTS
    words = tuple(word(n) for n in range(few + many)) + ruler_needles.NOUNS
    keys = ruler_needles.WordKeys("train", seed=3, words=words)
    pairs = [key.split("-") for key in keys.of(7)]
    assert (len(set(keys.of(7))), len({a for a, _ in pairs}), len({b for _, b in pairs})) == (few * many, few, many)
    assert {word for pair in pairs for word in pair} == set(words) - set(ruler_needles.NOUNS)
    assert keys.of(7) == ruler_needles.WordKeys("train", seed=3, words=words).of(7) != keys.of(8)
    assert keys.of(7) != ruler_needles.WordKeys("train", seed=4, words=words).of(7)
    told = "the texts to train on: have only 26 different words to make keys of, but 27 are needed; add books to books/train"
    with pytest.raises(ValueError, match=told):
        ruler_needles.WordKeys("train", words=words[1:])


def test_context_lengths() -> None:
    assert context_chunks("niah_mk1", 4_000) == 160  # as on BabiLong
    assert context_chunks("niah_mk3", 4_000) == 59  # 4000 / 68 = 58.8
    assert context_chunks("qa_mh", 4_000) == 34


def test_refuses_bad_arguments(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.task = 'qa2': unknown task of ruler; known: niah_s1, .*niah_multiquery, qa_sh, qa_mh"):
        data.load(DataConfig(benchmark="ruler", task="qa2"), "train", seed=0, group=1)
    with pytest.raises(ValueError, match="give group to train, or haystacks to evaluate"):
        load(DataConfig(task="niah_s1"), "train", seed=0)
    with pytest.raises(ValueError, match="group = 0: must be >= 1"):
        load(DataConfig(task="niah_s1"), "train", seed=0, group=0)
    with pytest.raises(ValueError, match="haystacks = 0: must be >= 1"):
        load(DataConfig(task="niah_s1"), "test", seed=0, haystacks=0)
    with pytest.raises(ValueError, match="chunks = 3: must be >= 4, the most chunks of a question of task niah_multiquery"):
        load(DataConfig(task="niah_mq", chunks=3, data_dir=folder), "train", seed=0, group=1)
    with pytest.raises(ValueError, match=r"pg_essays: no .txt files"):
        load(DataConfig(task="niah_s2", data_dir=str(tmp_path)), "test", seed=0, haystacks=1)
    with pytest.raises(IndexError, match="example -1: must be >= 0"):
        load(DataConfig(task="niah_s1"), "train", seed=0, group=1)[-1]


def test_the_registry_knows_it() -> None:
    config = DataConfig(benchmark="ruler", task="niah_mk3")
    assert data.load(config, "test", seed=5, haystacks=2)[3] == ruler.load(config, "test", seed=5, haystacks=2)[3]
