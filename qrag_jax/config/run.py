"""All settings of a run, as frozen dataclasses that check themselves. No jax here.

A run is one :class:`RunConfig`. ``to_json`` / ``from_json`` are exact inverses; unknown names are refused with the list of the known ones.
Numbers named "paper" come from Q-RAG (arXiv 2511.07328), appendix F; other sources are named next to their numbers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Literal, cast

from qrag_jax.config import benchmarks
from qrag_jax.config.eval import EvalConfig
from qrag_jax.config.model import ModelConfig, QHeadConfig
from qrag_jax.config.parse import check_values, decode, require
from qrag_jax.config.trees import parse_json, parse_yaml, write_yaml

# Switches of the rl section that only its TD objective reads.
TD_ONLY = (
    *("reward", "penalize_extra_steps", "soft", "target_network", "reference_lambda_return", "reference_soft_value", "reference_alpha"),
    *("demonstrations", "supervised_weight"),
)
Objective = Literal["td", "supervised"]


@dataclass(frozen=True)
class DataConfig:
    """The questions, their documents, and the lengths to which texts are cut."""

    benchmark: str = "babilong"
    """Name of a benchmark (qrag_jax/config/benchmarks.py), or a mixture of several with weights: hotpotqa:2+musique:1."""
    task: str = "qa2"
    """Task of the benchmark (babilong: qa1 ... qa5; ruler: niah_s1 ... niah_mq, qa_sh, qa_mh; others: a type of question, or all)."""
    data_dir: str | None = None
    """Folder with the benchmark's files (babi/en-10k, books/{train,test}, pg_essays, squad, hotpotqa, musique, 2wikimultihopqa).
    For your own questions: their .jsonl file or folder. None: generated stories, and needles in Python's documentation."""
    skip_bad: bool = False
    """Skip broken records of question files, and report how many. Otherwise the first broken record ends the run."""
    chunks: int = 40
    """Number of chunks in a training document. If documents have their own length, the largest number that is allowed."""
    shared_noise: int = 32
    """Number of haystack sentences that the documents of a training batch share (each text is embedded once per batch)."""
    haystack: Literal["own", "batch"] = "own"
    """The chunks among which a training episode searches. own: those of its question's document.
    batch: those of all questions of the batch, at no further cost. For benchmarks of separate paragraphs."""
    chunk_by: Literal["sentence", "tokens"] = "sentence"
    """How your own text is cut into chunks: sentence by sentence, as in BabiLong, or whole sentences packed up to data.chunk_tokens.
    A trained retriever needs the kind of chunk it was trained with."""
    chunk_text: Literal["title. text", "reference"] = "title. text"
    """How a paragraph with a title is written as a chunk. A trained retriever needs the form it was trained with.
    reference: as in the reference code, which writes "title text" for HotpotQA and 2WikiMultihopQA."""
    question_tokens: int = 16
    """Longest question, in tokens with the special ones; the rest is cut off."""
    chunk_tokens: int = 24
    """Longest chunk as a candidate to pick (an action), in tokens."""
    state_chunk_tokens: int = 16
    """Longest chunk inside a state (the question and the picked chunks), in tokens."""
    state_order: Literal["document", "picked"] = "document"
    """Order of the picked chunks in a state. A trained retriever needs the order it was trained with.
    document: as in the document (the paper, BabiLong).
    picked: as they were picked (the reference code on HotpotQA, MuSiQue, 2Wiki and needles)."""
    reference_state_spaces: bool = False
    """Parity: in a state, each text but the last ends with a space, as in the reference code (docs/deviations.md, 7).
    This changes nothing unless the tokenizer gives such a space a token."""
    state_tokens: int = 0
    """Longest state (the question and the picked chunks), in tokens; the rest is cut off. 0: long enough for everything."""

    def __post_init__(self) -> None:
        require(self.chunks >= 1, "data.chunks", self.chunks, ">= 1")
        require(self.shared_noise >= 1, "data.shared_noise", self.shared_noise, ">= 1")
        for name in ("question_tokens", "chunk_tokens", "state_chunk_tokens"):
            require(getattr(self, name) >= 4, f"data.{name}", getattr(self, name), ">= 4")
        require(
            self.state_tokens == 0 or self.state_tokens >= self.question_tokens,
            "data.state_tokens",
            self.state_tokens,
            f"0, or >= data.question_tokens ({self.question_tokens}); a state begins with the question",
        )


@dataclass(frozen=True)
class RLConfig:
    """The episode, the policy and the targets (section 3 of the paper)."""

    budget: int = 4
    """T: chunks picked in a training episode."""
    gamma: float = 0.99
    """Discount of a reward, per pick."""
    lam: float = 0.5
    """lambda of the lambda-return, in [0, 1]: 0 looks one pick ahead, 1 to the end of the episode."""
    tau: float = 0.02
    """Share of the new parameters in the target's moving average, per update."""
    alpha: float = 0.05
    """Temperature of the policy and of the soft value, in the unit of rewards; the reward of a solved episode is 1."""
    alpha_end: float = 0.05
    """Temperature at the last update; it changes linearly from alpha."""
    policy_top_k: int = 5
    """The policy samples from this many chunks with the highest Q; 0: from all."""
    value_top_k: int = 5
    """The soft value sums over this many chunks with the highest Q; 0: over all."""
    random_updates: int = 50
    """Number of updates at the start in which chunks are picked uniformly at random."""
    reward: Literal["support", "answer_em", "answer_f1", "mixed", "own"] = "support"
    """support: 1 when all supporting chunks are picked. mixed: the mean of support and answer_em.
    answer_em, answer_f1: the score of the frozen reader's answer (eval.reader); no support labels are needed.
    own: from Python only, the function that is given to qrag_jax.train.run."""
    penalize_extra_steps: bool = False
    """The reward for picking all supporting chunks F* is 0.5 + 0.5 |F*| / |picked| instead of 1."""
    objective: Objective = "td"
    """td: the value function is learned from rewards. supervised: without rewards, policy or targets.
    Its labels are the supporting chunks, one after the other. A stage of train.curriculum may have another objective."""
    supervised_loss: Literal["binary", "softmax"] = "binary"
    """The loss of the supervised objective. binary: each available chunk is classified by sigmoid(Q / alpha) (Beam Retriever's loss).
    softmax: minus the logarithm of the share of exp(Q / alpha) that the missing supporting chunks have. For large haystacks."""
    supervised_weight: float = 0.0
    """Under td, the supervised loss times this is added to the loss of the values."""
    demonstrations: float = 0.0
    """Under td, the share of an update's episodes that pick the supporting chunks first. It falls linearly to 0 over training."""
    gold_order: Literal["document", "policy", "bridge"] = "document"
    """Order of the supporting chunks in the supervised loss and in demonstrations. document: as in the document.
    policy: the one with the highest Q first. bridge: as the question needs them if the data says so (MuSiQue), else as policy."""
    soft: bool = True
    """False: the value of a state is max Q instead of the soft value (ablation)."""
    target_network: bool = True
    """False: targets come from the trained parameters themselves (ablation)."""
    reference_lambda_return: bool = False
    """Parity: the reference code's off-by-one bootstrap (docs/deviations.md, 1)."""
    reference_soft_value: bool = False
    """Parity: the top k are chosen before chunks that cannot be picked are masked (docs/deviations.md, 2)."""
    reference_alpha: bool = False
    """Parity: alpha is multiplied by the learning-rate schedule (docs/deviations.md, 3)."""

    def __post_init__(self) -> None:
        require(self.budget >= 1, "rl.budget", self.budget, ">= 1")
        for name in ("gamma", "lam", "tau"):
            require(0 <= getattr(self, name) <= 1, f"rl.{name}", getattr(self, name), "in [0, 1]")
        for name in ("alpha", "alpha_end"):
            require(getattr(self, name) > 0, f"rl.{name}", getattr(self, name), "> 0")
        require(0 <= self.demonstrations <= 1, "rl.demonstrations", self.demonstrations, "in [0, 1]")
        for name in ("policy_top_k", "value_top_k", "random_updates", "supervised_weight"):
            require(getattr(self, name) >= 0, f"rl.{name}", getattr(self, name), ">= 0")
        if self.objective == "supervised":
            for name in TD_ONLY:
                usual = RLConfig.__dataclass_fields__[name].default
                allowed = f"{usual!r} under rl.objective 'supervised', which has no rewards, no policy and no targets"
                require(getattr(self, name) == usual, f"rl.{name}", getattr(self, name), allowed)

    @property
    def asks_reader(self) -> bool:
        """Whether rewards come from a reader's answers, and so from the host."""
        return self.reward in ("answer_em", "answer_f1", "mixed")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, with a linear warm-up and a decay of the learning rate."""

    learning_rate: float = 7e-4
    """Highest learning rate, reached at the end of the warm-up. About 1e-3 for encoders from scratch, 1e-5 to 1e-4 for pretrained ones."""
    end_ratio: float = 0.1
    """Learning rate at the last step as a share of the highest."""
    schedule: Literal["linear", "quarter_cosine"] = "linear"
    """How the learning rate falls after the warm-up.
    quarter_cosine: like a quarter of a cosine wave, slowly at first (the reference code's e5 configurations)."""
    warmup: int = 50
    """Number of updates of the warm-up."""
    b1: float = 0.9
    """Adam's decay of the mean of the gradient, per update."""
    b2: float = 0.98
    """Adam's decay of the mean of the squared gradient, per update."""
    eps: float = 1e-6
    """Adam adds this to the square root of the mean squared gradient, which it divides by."""
    weight_decay: float = 1e-3
    """Every update takes this share of a parameter, times the learning rate, away from it (AdamW)."""
    max_grad_norm: float = 2.0
    """A gradient that is longer than this (L2 norm over all parameters) is scaled down to it."""
    batch: int = 32
    """Number of episodes per update. The memory that the gradient needs does not depend on it, but on model.tile_tokens."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "> 0")
        require(0 <= self.end_ratio <= 1, "optim.end_ratio", self.end_ratio, "in [0, 1]")
        require(self.warmup >= 0, "optim.warmup", self.warmup, ">= 0")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "> 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, ">= 0")
        require(self.max_grad_norm > 0, "optim.max_grad_norm", self.max_grad_norm, "> 0")
        require(self.batch >= 1, "optim.batch", self.batch, ">= 1")


@dataclass(frozen=True)
class Stage:
    """A part of training."""

    task: str
    """The task of its questions."""
    chunks: int
    """Chunks of a document."""
    until: int
    """Its last update, counted from 1."""
    objective: Objective | None = None
    """None: that of ``rl.objective``."""


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, its validations and checkpoints, and its devices."""

    steps: int = 1000
    """Number of updates."""
    seed: int = 0
    """Seed of everything that is drawn: questions, documents, first parameters, picks. In [0, 2^31)."""
    log_every: int = 10
    """Updates between records in metrics.jsonl."""
    eval_every: int = 100
    """Updates between validations. The best validation so far sets the checkpoint "best"."""
    eval_episodes: int = 128
    """Number of questions in a validation during training."""
    checkpoint_every: int = 100
    """Updates between checkpoints."""
    checkpoint_minutes: float = 5.0
    """Maximum minutes between checkpoints, for runs with slow updates. After SIGTERM, a checkpoint is saved at once."""
    curriculum: tuple[str, ...] = ()
    """Stages of training before the main task, from easy to hard, each TASK:CHUNKS:UPDATES (qa2:40:700).
    TASK:CHUNKS:UPDATES:OBJECTIVE has an objective of its own (all:20:100:supervised)."""
    stop_at: float | None = None
    """End training early when Fact EM reaches this value in two validations in a row."""
    init_from: str | None = None
    """Trained retriever whose parameters training starts from: a run directory, an export folder, a released checkpoint, gs://BUCKET/NAME,
    or OWNER/NAME[@REVISION] on the hub."""
    parallel: Literal["auto", "jit", "pmap", "shard_map"] = "auto"
    """How updates use devices. auto: jit on one device, pmap on several devices of one host, shard_map on several hosts."""
    shard_state: Literal["none", "auto", "full"] = "none"
    """Where the train state lies: parameters, their moving average and the two moments of Adam (16 bytes a parameter).
    none: every device holds all of it. full: every device holds a part, and updates use shard_map; more is sent between devices.
    auto: full if a copy takes more than half of a device's memory. A run may change this when it resumes."""
    devices: int = 0
    """Number of devices to use; 0: all."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_every", "eval_episodes", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), ">= 1")
        require(
            self.eval_every % self.log_every == 0,
            "train.eval_every",
            self.eval_every,
            f"a multiple of train.log_every ({self.log_every}): a validation comes with a record",
        )
        require(0 < self.checkpoint_minutes < math.inf, "train.checkpoint_minutes", self.checkpoint_minutes, "> 0")
        require(0 <= self.seed < 2**31, "train.seed", self.seed, "in [0, 2^31)")
        require(self.devices >= 0, "train.devices", self.devices, ">= 0")
        if self.parallel in ("jit", "pmap"):
            allowed = f"none or auto with train.parallel {self.parallel!r}; to split the state, use train.parallel auto or shard_map"
            require(self.shard_state != "full", "train.shard_state", self.shard_state, allowed)
        if self.stop_at is not None:
            require(0 < self.stop_at <= 1, "train.stop_at", self.stop_at, "in (0, 1]")
        for text in self.curriculum:
            if not re.fullmatch(r"\w+:[1-9]\d*:[1-9]\d*(:(td|supervised))?", text):
                raise ValueError(
                    f"train.curriculum: stage {text!r} must be TASK:CHUNKS:UPDATES, such as qa2:40:700, or TASK:CHUNKS:UPDATES:OBJECTIVE "
                    "with td or supervised, such as qa2:40:700:supervised"
                )
        spent = sum(int(text.split(":")[2]) for text in self.curriculum)
        require(spent < self.steps, "train.curriculum", self.curriculum, f"shorter than train.steps ({self.steps}) in all")

    def stages(self, data: DataConfig) -> list[Stage]:
        """The curriculum's stages, then the main task of ``data`` to the end."""
        stages: list[Stage] = []
        until = 0
        for text in self.curriculum:
            task, chunks, updates, *objective = text.split(":")
            until += int(updates)
            stages.append(Stage(task, int(chunks), until, cast(Objective, objective[0]) if objective else None))
        return [*stages, Stage(data.task, data.chunks, self.steps)]


@dataclass(frozen=True)
class RunConfig:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    qhead: QHeadConfig = field(default_factory=QHeadConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            check_values(getattr(self, section.name), section.name)
        require(
            self.rl.budget <= self.data.chunks,
            "rl.budget",
            self.rl.budget,
            f"<= data.chunks ({self.data.chunks}): an episode picks each chunk at most once",
        )
        if self.rl.asks_reader:
            require(self.eval.reader != "none", "rl.reward", self.rl.reward, "support, or give a reader that answers (eval.reader)")
        for stage in self.train.stages(self.data):
            require(
                self.rl.budget <= stage.chunks,
                "train.curriculum",
                self.train.curriculum,
                f"of stages with >= rl.budget ({self.rl.budget}) chunks",
            )

    @property
    def largest_budget(self) -> int:
        """The largest number of chunks picked in training, in the run's own test, and in the tests of other benchmarks."""
        others = (benchmarks.picks(benchmarks.named(text)[0]) for text in self.eval.benchmarks)
        return max(self.rl.budget, self.eval.budget, *others)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Inverse of :meth:`to_json`. Raises ValueError naming the field on unknown names, wrong types and bad values."""
        try:
            tree = parse_json(text)
        except ValueError as error:
            raise ValueError(f"configuration is {error}") from error
        return decode(cls, tree)

    def to_yaml(self) -> str:
        """The same as YAML, which may be edited and used as a preset."""
        return write_yaml(json.loads(self.to_json()))

    @classmethod
    def from_yaml(cls, text: str) -> RunConfig:
        """Inverse of :meth:`to_yaml`. Raises ValueError as :meth:`from_json` does."""
        return decode(cls, parse_yaml(text))
