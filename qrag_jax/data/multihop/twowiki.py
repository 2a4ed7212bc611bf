"""2WikiMultihopQA (Ho et al. 2020, arXiv 2011.01060): two or four supporting paragraphs among ten.

The files have HotpotQA's format, with other question types and with more fields, which are not read.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qrag_jax.config.benchmarks import BENCHMARKS
from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.hotpotqa import parse
from qrag_jax.data.multihop.records import ReadReport, Record, read_file

TYPES = BENCHMARKS["twowiki"].types


def read_twowiki(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a file. Errors: see :func:`qrag_jax.data.multihop.records.read_file`."""
    return read_file(path, partial(parse, types=TYPES), skip_bad=skip_bad)


TWOWIKI = multihop.QuestionFiles(
    name="twowiki",
    folder="2wikimultihopqa",
    files=(("train.json", "dev.json"), ("2wiki_fit.json", "2wiki_eval.json"), *multihop.HUGGING_FACE),
    home="https://github.com/Alab-NII/2wikimultihop (data_ids_april7.zip)",
    read=read_twowiki,
    after_title=" ",
)
load = partial(multihop.load, TWOWIKI)
