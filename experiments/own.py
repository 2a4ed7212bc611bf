"""Your own questions over your own documents, or your documents alone.

    python -m experiments.own --data-dir questions.jsonl
    python -m experiments.own --data-dir FOLDER                      # with train.jsonl, validation.jsonl and test.jsonl
    python -m experiments.own --documents FOLDER --reader openai:URL,MODEL

From scratch: 1000 updates, minutes on two CPU cores; --preset minilm starts from pretrained weights. The score depends on your questions.
To compare it with retrieval without training, run python -m experiments.baselines --preset RUN.

Each line is {"id": "q1", "question": "...", "chunks": ["...", "..."], "support": [1], "answer": "..."}: chunks is the document in order,
support holds the indices, from 0, of the chunks that answer the question. The answer is optional. From a single file, a tenth of the
questions becomes the validation set and a tenth the test set.

Without questions, --documents lets the model of --reader write some: it is shown two or three passages that share a rare word, writes a
question that needs all of them, and answers it from all of them and from all but one. Ten questions are shown before more are written.
What the model has said is kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.cli import Command, main
from qrag_jax.config import RunConfig

if TYPE_CHECKING:
    from qrag_jax.models.tokenizer import TextTokenizer

PRESET = "multihop"
"""With --documents: some hundred questions are too few to train encoders from scratch."""


@dataclass(frozen=True)
class Own(Command):
    documents: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: give --data-dir)")] = None
    """Folder or file with your documents, when you have no questions. The model of --reader writes them, into RUN_DIR/written."""
    questions: int = 300
    """With --documents: questions that need several passages; about a tenth each is kept for validation and for the test."""
    yes: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --documents: go on after the first ten questions without asking."""


def prepare(command: Own, folder: Path) -> RunConfig | None:
    """Lets the questions be written if need be. Returns the settings of the training, None if the user wants none.

    Raises ValueError on bad settings, and when the model writes too few questions.
    """
    if command.documents is None:
        return command.config
    from experiments.writing.command import Wish, written
    from qrag_jax.rundir import hosts

    config = command.config
    if config.data.data_dir is not None:
        raise ValueError("--documents and --data-dir: give one of them; --data-dir holds questions that you have")
    if config.eval.reader == "none":
        raise ValueError("--reader none: --documents needs the model that writes the questions, openai:URL,MODEL or flax:NAME")
    if command.questions < 10:
        raise ValueError(f"--questions {command.questions}: must be at least 10")
    if command.parallel > 1 and config.eval.reader.startswith("flax:"):  # it would keep the devices that the seeds need
        raise ValueError(f"parallel = {command.parallel}: must be 1 while {config.eval.reader} writes the questions of --documents")
    if hosts.is_multiprocess():
        raise ValueError("--documents: write the questions on one host; then give all hosts --data-dir RUN_DIR/written/questions")
    wish = Wish(command.documents, command.questions, command.yes)
    questions = written(wish, config, tokenizer(config), folder)
    return None if questions is None else replace(config, data=replace(config.data, data_dir=str(questions)))


def tokenizer(config: RunConfig) -> TextTokenizer:
    """The tokenizer of the encoder that the training starts from. Raises ValueError if it starts from scratch."""
    from qrag_jax.export.hub import load_model
    from qrag_jax.models.pretrained import load_pretrained

    if config.train.init_from is not None:
        return load_model(config.train.init_from).tokenizer
    if config.model.embedder == "tiny":
        raise ValueError(f"--model.embedder tiny: --documents needs a pretrained encoder; leave out --preset, which is then {PRESET}")
    return load_pretrained(config.model.embedder).tokenizer


if __name__ == "__main__":
    has_documents = any(word.split("=")[0] == "--documents" for word in sys.argv)
    raise SystemExit(main("own", __doc__ or "", kind=Own, default=PRESET if has_documents else "tiny", prepare=prepare))
