"""What a retriever is: the sections ``model`` and ``qhead`` of a configuration (qrag_jax/config/run.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qrag_jax.config.parse import require

Attention = Literal["auto", "plain", "fused"]


@dataclass(frozen=True)
class ModelConfig:
    """The two text encoders. The sizes are those of an embedder trained from scratch; a named embedder has its own."""

    embedder: str = "tiny"
    """'tiny' (from scratch), or a folder or hub name with a config.json and safetensors weights."""
    layers: int = 2
    """Number of transformer layers."""
    width: int = 128
    """Length of a token's vector, and of an embedding; a multiple of heads and of 4."""
    heads: int = 4
    """Number of attention heads of a layer."""
    mlp_width: int = 512
    """Length of the hidden vector of a layer's feed-forward network."""
    vocab_size: int = 4096
    """Size of the WordPiece vocabulary, which is made from the training text."""
    max_positions: int = 256
    """Longest text that the encoders can read, in tokens."""
    tied: bool = False
    """One set of encoder parameters for states and actions."""
    normalize: bool = False
    """Give the pooled embedding length 1 (L2), before the division (the reference code's Qwen3 encoders)."""
    divisor: float = 10.0
    """The pooled embedding is divided by this (reference code: 10, no normalisation)."""
    dropout: float = 0.0
    """Dropout in the loss only; rollouts and targets are always deterministic."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the encoders compute; parameters are always float32. bfloat16 is for accelerators."""
    tile_tokens: int = 512
    """About how many tokens an encoder reads at once in training; short texts share rows. The results do not depend on it.
    A CPU is fastest with few (512), an accelerator with as many as its memory holds (16384)."""
    attention: Attention = "auto"
    """How attention is computed. The results do not depend on it. plain: three operations.
    fused: jax.nn.dot_product_attention, which is cuDNN's flash kernel on a GPU in bfloat16.
    auto: fused on a TPU and for long rows on a GPU with that kernel, else plain. A Qwen3 embedder has only plain."""
    lora_rank: int = 0
    """Above 0, the encoders' weights stay as they are, and low-rank adapters of this rank are trained (LoRA): every dense layer computes
    with W + (lora_alpha / lora_rank) A B. The learning rate should then be some ten times as high."""
    lora_alpha: float = 16.0
    """The strength of the adapters; see lora_rank."""
    remat: bool = False
    """Recompute each layer in the backward pass (jax.checkpoint): less memory, more time."""

    def __post_init__(self) -> None:
        for name, most in (("layers", 256), ("width", 2**16), ("heads", 2**12), ("mlp_width", 2**20), ("max_positions", 2**26)):
            require(1 <= getattr(self, name) <= most, f"model.{name}", getattr(self, name), f"in 1..{most:,}")
        require(self.width % self.heads == 0, "model.width", self.width, f"a multiple of model.heads ({self.heads})")
        require(self.width % 4 == 0, "model.width", self.width, "a multiple of 4 (two halves of coordinate pairs)")
        require(300 <= self.vocab_size <= 2**24, "model.vocab_size", self.vocab_size, ">= 300 (characters and special tokens), <= 2^24")
        require(self.divisor > 0, "model.divisor", self.divisor, "> 0")
        require(0 <= self.lora_rank <= 2**12, "model.lora_rank", self.lora_rank, "in 0..4,096; 0: no adapters")
        require(self.lora_alpha > 0, "model.lora_alpha", self.lora_alpha, "> 0")
        require(self.tile_tokens >= 1, "model.tile_tokens", self.tile_tokens, ">= 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")

    @property
    def lora_scale(self) -> float:
        """By which the product of an adapter's matrices is multiplied."""
        return self.lora_alpha / self.lora_rank


@dataclass(frozen=True)
class QHeadConfig:
    """Q(s, c) = <E_s(s), R(position) E_a(c)>, eq. 5 and 6."""

    positions: Literal["relative", "absolute", "random", "none"] = "relative"
    """relative: eq. 6 (BabiLong, RULER); absolute: the chunk's index; random: the index plus an offset; none: for unordered documents."""
    position_resolution: Literal["integer", "continuous"] = "integer"
    """integer: at most span + 1 positions per interval, as released weights need; continuous: eq. 6 as printed."""
    delta: float = 20.0
    """Distance between the starts of neighbouring intervals (paper 10, reference code 20)."""
    span: float = 18.0
    """Positions inside an interval cover [0, span] (paper 9, reference code 18)."""
    max_offset: int = 2000
    """Random positions: the offset is drawn below this."""
    theta: float = 10_000.0
    """Base of the rotary frequencies."""
    halves: int = 2
    """2: the vector's halves are rotated and trained as two values, Q = q1 + q2 (reference code); 1: one value."""

    def __post_init__(self) -> None:
        require(0 < self.span < self.delta, "qhead.span", self.span, f"in (0, qhead.delta = {self.delta})")
        if self.position_resolution == "integer":
            require(self.span == int(self.span), "qhead.span", self.span, "a whole number (or qhead.position_resolution continuous)")
        require(self.halves in (1, 2), "qhead.halves", self.halves, "1 or 2")
        require(self.theta > 1, "qhead.theta", self.theta, "> 1")
        require(self.max_offset >= 1, "qhead.max_offset", self.max_offset, ">= 1")
