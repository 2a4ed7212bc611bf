"""Questions that a language model writes over someone's documents. The model is a script that knows when it has read enough."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments import own
from experiments.cli import main
from experiments.writing.command import SHOWN
from experiments.writing.links import Link, Linker, in_splits
from experiments.writing.prompts import Unusable, read_question
from experiments.writing.questions import ONE_MISSING, WRONG_ANSWER, Meter, Rejected, Written, write_questions
from qrag_jax.data.multihop.own import read_own
from qrag_jax.reader.protocol import Answer, Prompt
from tests.support.http import completion, stub_server
from tests.support.index import write_small_export

PAIRS = 60


def passages(number: int) -> tuple[str, str]:
    return f"The bridge of Quelm{number} was designed by Zorb{number}.", f"In spring Zorb{number} came from the town Marn{number}."


def model(user: str) -> str:
    """Writes a question about the first bridge that it reads; answers if it reads of the bridge and of its designer."""
    text, _, asked = user.rpartition("\n\n")
    bridge, person, town = (re.search(word, text) for word in (r"bridge of (Quelm\d+)", r"designed by (Zorb\d+)", r"town (Marn\d+)"))
    if "Question:" not in asked.replace("Question: ...", ""):
        assert bridge is not None
        assert town is not None
        return f"Question: Where did the designer of the bridge of {bridge[1]} come from?\nAnswer: {town[1]}."
    return town[1] if town is not None and person is not None and f"of {bridge and bridge[1]} " in asked else "unknown"


class Script:
    """A reader that says what ``model`` says. With ``guesses`` it needs one passage only, with ``fails`` it never answers."""

    name = "script"

    def __init__(self, guesses: bool = False, fails: bool = False) -> None:
        self.guesses, self.fails = guesses, fails

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return [Answer(self.say(prompt.user), 10, 2, "stop") for prompt in prompts]

    def say(self, user: str) -> str:
        said = model(user)
        if said.startswith("Question:") or not (self.guesses or self.fails):
            return said
        number = re.search(r"of Quelm(\d+)", user.rpartition("\n\n")[2])
        return "nothing" if self.fails or number is None else f"Marn{number[1]}"


TEXTS = [text for number in range(12) for text in passages(number)]


def test_links_share_a_rare_word_and_stand_apart() -> None:
    texts = [*TEXTS[::2], *TEXTS[1::2]]
    sources = [f"{number}.txt" for number in range(len(texts))]
    links = list(Linker(texts, sources).links(seed=0))
    assert {frozenset(link.passages) for link in links} == {frozenset((number, number + 12)) for number in range(12)}
    assert all(link.words == (f"zorb{min(link.passages)}",) for link in links)
    assert [link.passages for link in Linker(texts, sources).links(seed=0)] == [link.passages for link in links]
    assert not list(Linker(TEXTS, ["one.txt"] * len(TEXTS)).links(seed=0)), "neighbours"
    assert not list(Linker([*TEXTS, *TEXTS], ["a"] * 48).links(seed=0)), "the same text twice links nothing"


def test_a_third_passage_is_linked_by_another_word() -> None:
    texts = ["Ann met Bob.", "Bob wrote to Cleo.", "Cleo sold boats.", "Ann and Bob danced.", *TEXTS]
    linker = Linker(texts, [str(number) for number in range(len(texts))])
    link = linker.grown(Link((0, 1), ("bob",)))
    assert link == Link((0, 1, 2), ("bob", "cleo"))
    assert linker.grown(link) is None


def test_questions_are_kept_if_they_need_all_of_their_passages() -> None:
    links = [Link((2 * number, 2 * number + 1), (f"zorb{number}",)) for number in range(3)]
    meter = Meter(Script())
    kept = list(write_questions(iter(links), TEXTS, meter))
    assert kept[1] == Written(links[1], "Where did the designer of the bridge of Quelm1 come from?", "Marn1")
    assert str(meter) == "12 prompts, 144 tokens", "each is proposed, answered, and answered twice with a passage left out"
    assert list(write_questions(iter(links), TEXTS, Script(guesses=True))) == [Rejected(link, ONE_MISSING) for link in links]
    assert list(write_questions(iter(links), TEXTS, Script(fails=True))) == [Rejected(link, WRONG_ANSWER) for link in links]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot do that.", "form"),
        ("Question: Who is Ann?", "form"),
        ("Question:\nAnswer: Ann", "form"),
        ("Question: Who does the first passage name?\nAnswer: Ann", "speaks of the passages"),
        ("Question: Is Ann old?\nAnswer: Yes.", "yes or no"),
        ("Question: Is Ann Ann Lee?\nAnswer: Ann Lee", "stands in it"),
        (f"Question: {'who ' * 61}?\nAnswer: Ann", "too long"),
        (f"Question: Who?\nAnswer: {'Ann ' * 13}", "too long"),
    ],
)
def test_what_is_no_question(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_question(text)


def test_the_form_of_a_question() -> None:
    said = "Sure!\n\n**Question:**".replace("*", "") + ' Who built\nthe bridge?\n\nanswer:  "Ann Lee". \n'
    assert read_question(said) == ("Who built the bridge?", "Ann Lee")


def test_no_passage_is_linked_in_two_splits() -> None:
    links = [Link((number, number + 1), ("word",)) for number in range(0, 200, 2)] + [Link((0, 6), ("word",)), Link((6, 400), ("word",))]
    found = list(in_splits(iter(links)))
    assert [sum(link.split == split for link in found[:100]) for split in ("train", "validation", "test")] == [80, 10, 10]
    assert [(link.passages, link.split) for link in found[100:]] == [((6, 400), "validation")]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(PAIRS):
        for kind, text in zip("ab", passages(number), strict=True):
            (folder / f"{kind}{number}.txt").write_text(text)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    sizes = ["--preset", "minilm", "--data.chunks", "8", "--data.chunk-tokens", "60"]
    sizes += ["--data.question-tokens", "32", "--data.state-chunk-tokens", "32", "--rl.budget", "2", "--eval.budget", "2", "--steps", "2"]
    sizes += ["--train.eval-episodes", "8", "--optim.warmup", "1", "--optim.batch", "4", "--rl.random-updates", "1"]
    return ["--run-dir", str(tmp_path / "run"), *sizes]


def run(words: list[str], *more: str) -> int:
    return main("own", "", [*words, *more], kind=own.Own, default=own.PRESET, prepare=own.prepare)


@pytest.mark.slow
@pytest.mark.quick
def test_from_documents_to_a_retriever(words: list[str], documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = write_small_export(tmp_path / "export") / "state_encoder"
    words += ["--documents", str(documents), "--questions", "30", "--model.embedder", str(encoder)]
    with stub_server(lambda user, _: completion(model(user), usage={"prompt_tokens": 50, "completion_tokens": 5})) as server:
        reader = ["--reader", f"openai:{server.url},scripted"]
        assert run(words, *reader) == 64, "there is no terminal"
        out, error = capsys.readouterr()
        assert "--yes is missing" in error
        assert len(re.findall(r"come from\?$", out, re.MULTILINE)) == SHOWN
        assert "1 .png" in out
        asked = len(server.requests)
        assert run(words, *reader, "--yes") == 0
        assert len(set(server.users())) == len(server.requests), "what was asked before the question is not asked again"
        assert len(server.requests) > asked
        results = json.loads((tmp_path / "run/results.json").read_text())["rows"]
        assert results[0]["split"] == "test"
        assert results[0]["answer_em"] is not None
        capsys.readouterr()

        sizes = {}
        for split in ("train", "validation", "test"):
            records, _ = read_own(tmp_path / f"run/written/questions/{split}.jsonl")
            sizes[split] = len(records)
            for record in records:
                quelm = re.findall(r"Quelm(\d+)", record.question)[0]
                assert [record.paragraphs[index][1] for index in record.support] == list(passages(int(quelm)))
                assert len(record.paragraphs) == 8
        assert sum(sizes.values()) == 30
        assert len(json.loads((tmp_path / "run/written/questions/written.json").read_text())["places"]) == 30

        asked = len(server.requests)
        assert run(words, *reader, "--yes") == 0
        assert "are there" in capsys.readouterr().out
        assert len(server.requests) == asked, "questions and answers are kept"
        (documents / "new.txt").write_text("A new text.")
        assert run(words, *reader, "--yes") == 64
        assert "written with another documents" in capsys.readouterr().err


ENDPOINT = ["--reader", "openai:http://127.0.0.1:9/v1,m"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--reader none: --documents needs the model"),
        ([*ENDPOINT, "--data-dir", "x.jsonl"], "--documents and --data-dir: give one of them"),
        ([*ENDPOINT, "--questions", "9"], "--questions 9: must be at least 10"),
        ([*ENDPOINT, "--model.embedder", "tiny"], "needs a pretrained encoder"),
    ],
)
def test_what_is_refused(words: list[str], documents: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words, "--documents", str(documents), *more) == 64
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("a1.txt", "1 different passages; at least 10"), ("nowhere", "nowhere")])
def test_too_few_passages(
    words: list[str], documents: Path, tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = write_small_export(tmp_path / "export") / "state_encoder"
    assert run(words, *ENDPOINT, "--model.embedder", str(encoder), "--documents", str(documents / name)) == 64
    assert message in capsys.readouterr().err
