"""What a run is tested on and how: the section ``eval`` of a configuration (qrag_jax/config/run.py)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from qrag_jax.config import benchmarks
from qrag_jax.config.lengths import parse_tokens
from qrag_jax.config.parse import WITHOUT, require
from qrag_jax.config.secrets import holds_credentials, redact


@dataclass(frozen=True)
class EvalConfig:
    """The final evaluation."""

    tokens: tuple[str, ...] = ("1k", "4k", "32k", "128k")
    """Context lengths to test at, such as 4k, for benchmarks whose documents are made to length (babilong, ruler)."""
    benchmarks: tuple[str, ...] = ()
    """Other benchmarks to test on after the run's own (out of distribution), each BENCHMARK or BENCHMARK/TASK: musique, babilong/qa3.
    They are tested with the paper's number of picks (2 on hotpotqa, 4 elsewhere)."""
    split: Literal["test", "validation"] = "test"
    """Which questions are asked. validation: to compare settings, also at lengths beyond those of training, without using the test."""
    episodes: int = 200
    """Number of questions at each length."""
    budget: int = 4
    """T: how many chunks are picked for each question."""
    beam: int = 1
    """Paths kept at each step of a search ("Plan Q-RAG"); 1 is greedy."""
    haystacks: int = 2
    """Number of distinct haystacks at each length; the questions share them, and each haystack is embedded once."""
    reader: str = "none"
    """The frozen LLM that answers: none, flax:NAME (a hub name, a folder or a .gguf file), or openai:URL,MODEL."""
    reader_context: Literal["retrieved", "stopped", "gold", "none"] = "retrieved"
    """What the reader is given. retrieved: the picked chunks; gold: the supporting chunks; none: only the question;
    stopped: the chunks picked before Q fell below the stop threshold."""
    reader_tokens: int = 32
    """Longest answer, in tokens of the reader."""
    reader_timeout: float = 120.0
    """Seconds to wait for an answer of an openai: reader (its queue included) before asking again."""
    reader_concurrency: int = 8
    """Number of requests sent to an openai: reader at the same time. Use 1 for a server that answers them one by one."""
    reader_devices: int = 1
    """Number of devices of this host over which a flax: reader's network is split; 0: all. It must divide the number of key/value heads."""
    reader_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of a flax: reader's weights, cache and activations. auto: bfloat16 on accelerators, float32 on CPUs."""

    def __post_init__(self) -> None:
        require(len(self.tokens) > 0, "eval.tokens", self.tokens, "at least one length such as 4k")
        for text in self.tokens:
            parse_tokens(text)
        for text in self.benchmarks:
            require(re.fullmatch(r"\w+(/\w+)?", text) is not None, "eval.benchmarks", text, "BENCHMARK or BENCHMARK/TASK (babilong/qa3)")
            benchmarks.named(text)
        require(self.episodes >= 1, "eval.episodes", self.episodes, ">= 1")
        require(self.budget >= 1, "eval.budget", self.budget, ">= 1")
        require(self.beam >= 1, "eval.beam", self.beam, ">= 1")
        require(
            1 <= self.haystacks <= self.episodes,
            "eval.haystacks",
            self.haystacks,
            f"in 1..eval.episodes ({self.episodes})",
        )
        check_reader_name(self.reader, "eval.reader", none=True)
        require(self.reader_tokens >= 1, "eval.reader_tokens", self.reader_tokens, ">= 1")
        require(0 < self.reader_timeout < math.inf, "eval.reader_timeout", self.reader_timeout, "a positive number of seconds")
        require(self.reader_concurrency >= 1, "eval.reader_concurrency", self.reader_concurrency, ">= 1")
        require(self.reader_devices >= 0, "eval.reader_devices", self.reader_devices, ">= 0")
        if not self.reader.startswith("flax:"):
            alone = "left at its default, or give a reader that runs here (eval.reader flax:NAME)"
            require(self.reader_devices == 1, "eval.reader_devices", self.reader_devices, alone)
            require(self.reader_dtype == "auto", "eval.reader_dtype", self.reader_dtype, alone)


def check_reader_name(reader: str, field: str, *, none: bool = False) -> None:
    """Raises ValueError unless ``reader`` names a reader, or is "none" where that is allowed."""
    if holds_credentials(reader):
        raise ValueError(f"{field} = {redact(reader)!r}: holds a password or a key; {WITHOUT}")
    require(
        re.fullmatch(r"flax:.+|openai:https?://[^,]+,[^,]+", reader) is not None or (none and reader == "none"),
        field,
        reader,
        ("none, " if none else "") + "flax:NAME (a hub name, a folder or a .gguf file), or openai:URL,MODEL",
    )
