"""What report.py measures: networks and amounts of work, in full, and at the smallest sizes that show that everything works."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qrag_jax.config import RunConfig
from qrag_jax.config.presets import preset, rewards_alone
from qrag_jax.models.bert import BertConfig
from qrag_jax.models.gte import GteConfig
from qrag_jax.models.qwen3 import Qwen3Config
from qrag_jax.models.registry import BackboneConfig
from qrag_jax.models.xlm_roberta import XlmRobertaConfig

TILE_TOKENS = 8192  # for all networks on an accelerator; the gradient of the largest then takes about 14 GB in bfloat16


NETWORKS: dict[str, BackboneConfig] = {
    "minilm": BertConfig(30522, 384, 6, 12, 1536, 512),
    "contriever": BertConfig(30522, 768, 12, 12, 3072, 512),
    "e5": XlmRobertaConfig(250002, 1024, 24, 16, 4096, 514),
    "gte": GteConfig(250048, 768, 12, 12, 3072, 8192, rope_theta=20_000.0, rope_factor=8.0),
    "qwen3-embedding": Qwen3Config(151669, 1024, 28, 16, 8, 128, 3072, 32768),
}
"""Name of a published embedder -> its network (the numbers of its config.json)."""


@dataclass(frozen=True)
class Sizes:
    networks: dict[str, BackboneConfig]
    """Name of a preset -> its network, as published."""
    updates: int
    """Timed updates of each network in each type."""
    matmul: int
    """n of the n x n product; 0: measure.py's choice."""
    batch: int
    """Episodes of an update; 0: the preset's."""
    attention: dict[str, tuple[int, int, int]]
    """Name -> rows, tokens of a row, tokens of each text in it."""
    heads: tuple[int, int]
    """Attention heads, and their width."""
    tiles: tuple[int, ...]
    """Tokens of a tile, of each size that is compared."""
    index_chunks: int
    search_chunks: int
    train_seconds: float
    steps: dict[str, int]
    """Updates of each training, if there is time for all."""
    eval_every: int
    eval_episodes: int


FULL = Sizes(
    networks={"tiny": BertConfig(4096, 128, 2, 4, 512, 256)} | {name: NETWORKS[name] for name in ("minilm", "contriever", "e5")},
    updates=20,
    matmul=0,
    batch=0,
    attention={"chunks": (256, 64, 16), "states": (64, 256, 256), "long": (32, 512, 512)},
    heads=(12, 64),
    tiles=(8192, 32_768, 131_072),
    index_chunks=32_768,
    search_chunks=400_000,
    train_seconds=120,
    steps={"tiny": 2500, "contriever": 1500},
    eval_every=50,
    eval_episodes=128,
)
SMOKE_NETWORK = (600, 32, 1, 2, 64, 514)
SMOKE = Sizes(
    networks={**dict.fromkeys(("tiny", "minilm", "contriever"), BertConfig(*SMOKE_NETWORK)), "e5": XlmRobertaConfig(*SMOKE_NETWORK)},
    updates=2,
    matmul=128,
    batch=4,
    attention={"chunks": (4, 32, 8)},
    heads=(2, 16),
    tiles=(256, 1024),
    index_chunks=300,
    search_chunks=1000,
    train_seconds=2,
    steps={"tiny": 4, "contriever": 4},
    eval_every=2,
    eval_episodes=8,
)


def sizes(*, smoke: bool) -> Sizes:
    return SMOKE if smoke else FULL


def speed_config(name: str, sizes: Sizes) -> RunConfig:
    """The preset ``name`` on one device. At the smallest sizes, documents are those of tiny, and a batch has few episodes."""
    smoke = sizes.batch > 0
    config = rewards_alone(preset("tiny" if smoke else name, "babilong", "qa2"))
    words = min(sizes.networks[name].vocab_size, 30_522)  # the texts have fewer
    return replace(
        config,
        model=replace(config.model, vocab_size=words, tile_tokens=config.model.tile_tokens if smoke else TILE_TOKENS),
        optim=replace(config.optim, batch=sizes.batch or config.optim.batch),
        train=replace(config.train, devices=1),
    )


def training_config(name: str, sizes: Sizes) -> RunConfig:
    """qa2 as the preset tiny trains it, but from rewards alone, with the network ``name`` from random weights, on one device. One
    checkpoint, the last."""
    config, network, steps = speed_config("tiny", sizes), sizes.networks[name], sizes.steps[name]
    model = replace(
        config.model,
        layers=network.num_hidden_layers,
        width=network.hidden_size,
        heads=network.num_attention_heads,
        mlp_width=network.intermediate_size,
        vocab_size=network.vocab_size,
        max_positions=network.max_position_embeddings,
    )
    optim = config.optim
    if network.hidden_size >= 768:
        # The paper's divisor, and a learning rate at which twelve layers with post-norm train stably from random weights.
        model = replace(model, divisor=10.0, compute_dtype="bfloat16")
        optim = replace(optim, learning_rate=1e-4, warmup=min(200, steps))
    return replace(
        config,
        model=model,
        optim=optim,
        train=replace(
            config.train,
            steps=steps,
            log_every=min(10, sizes.eval_every),
            eval_every=sizes.eval_every,
            eval_episodes=sizes.eval_episodes,
            checkpoint_every=steps,
            checkpoint_minutes=60.0,
        ),
    )
