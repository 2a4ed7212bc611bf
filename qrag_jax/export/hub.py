"""Models by the names that users give them, and exports on the hub.

A name is one of SHIPPED, a run directory, the folder of an export or an adapter, a released Q-RAG checkpoint (its folder or its .pt file),
gs://BUCKET/NAME, or OWNER/NAME on the Hugging Face hub, which holds an export, an adapter or a released checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qrag_jax.export.adapter import TENSORS, is_adapter, read_adapter
from qrag_jax.export.folder import ENCODERS, Export, find_export, read_export
from qrag_jax.export.from_reference import CHECKPOINT, CONFIG, read_reference
from qrag_jax.export.hydra import HydraConfig
from qrag_jax.models import pretrained
from qrag_jax.models.folder import ROUTER_FILES
from qrag_jax.rundir.bucket import is_url

SHIPPED = {"minilm-multihop": Path(__file__).with_name("shipped") / "minilm-multihop"}
"""Retrievers inside this package: name -> the folder of an adapter. A folder of that name where the user is comes first."""
ALLOWED = (
    f"{', '.join(SHIPPED)}, a run directory, the folder of an export or an adapter, a released checkpoint (a .pt file, or a folder with "
    f"{CHECKPOINT} and {CONFIG}), gs://BUCKET/NAME, or OWNER/NAME[@REVISION] on the hub"
)
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
# What an export or an adapter is read from.
EXPORT = ("qrag.json", TENSORS, "tokenizer.json", *(f"{encoder}/{file}" for encoder in ENCODERS for file in ("config.json", *WEIGHTS)))
# What else of it is sent: what PyTorch's libraries read, and the model card.
SENT = (
    "README.md",
    "tokenizer_config.json",
    *ROUTER_FILES,
    *(f"{encoder}/*.{kind}" for encoder in ENCODERS for kind in ("json", "safetensors")),
)


@dataclass(frozen=True)
class HubName:
    """A model on the hub: ``repo`` is OWNER/NAME; ``revision`` a branch, a tag or a commit, None: the main branch."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Of OWNER/NAME or OWNER/NAME@REVISION; None: the text is no such name."""
        repo, at, revision = text.partition("@")
        return cls(repo, revision or None) if pretrained.HUB_NAME.fullmatch(repo) and bool(at) == bool(revision) else None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def is_named(name: str) -> bool:
    """Whether ``name`` says by itself where a model comes from, wherever the user is: not the path of a file or a folder."""
    return name in SHIPPED or is_url(name) or HubName.parse(name) is not None


def load_model(name: str | Path, *, base_model: Path | None = None, config: Path | None = None) -> Export:
    """The trained retriever that ``name`` means, as this module's docstring lists them.

    ``base_model`` and ``config`` are those of :func:`~qrag_jax.export.from_reference.read_reference`. Raises ValueError, saying what to do,
    when there is no such model or it cannot be read, and when one of them is given for a model that is no released checkpoint.
    """
    path = find_model(name)
    if path.is_file():
        found = read_reference(path, base_model=base_model, config=config)
        return Export(found.config, found.backbone, found.params, found.tokenizer, found.pooling, step=found.step)
    for option, value in (("base-model", base_model), ("config", config)):
        if value is not None:
            raise ValueError(f"--{option} {value}: only a released checkpoint needs it; {name} is an export and has its own")
    return read_adapter(path) if is_adapter(path) else read_export(path)


def find_model(name: str | Path) -> Path:
    """The export folder or the checkpoint's file that ``name`` means, on this machine. Raises ValueError saying what is allowed."""
    if is_url(name):
        return find_export(name)
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _inside(path)
    if str(name) in SHIPPED:
        return SHIPPED[str(name)]
    hub = HubName.parse(str(name))
    if hub is None:
        raise ValueError(f"{name}: no such folder or file, and not a hub name; give {ALLOWED}")
    return _inside(fetch_model(hub))


def _inside(folder: Path) -> Path:
    export, checkpoint = find_export(folder), folder / CHECKPOINT
    return checkpoint if checkpoint.is_file() and not (export / "qrag.json").is_file() else export


def fetch_model(name: HubName) -> Path:
    """The folder in the hub's cache with what a model is read from; what is missing is downloaded, and nothing else.

    Raises ValueError, in one line, when it is not there, not open to this user, out of reach, or no Q-RAG model.
    """
    at = f" --revision {name.revision}" if name.revision else ""
    advice = (
        f"`hf download {name.repo}{at} --local-dir DIR`, bring DIR here and give DIR instead of the name; a released checkpoint needs "
        f"{CHECKPOINT} and {CONFIG}, an export needs qrag.json, tokenizer.json and the folders {' and '.join(ENCODERS)}"
    )
    asked = f"{name}: no such folder"
    first = pretrained.snapshot(name.repo, ("qrag.json", CONFIG), name.revision, asked=asked, advice=advice)
    if (first / "qrag.json").is_file():
        wanted = EXPORT
    elif (first / CONFIG).is_file():
        # The base model may lie beside the checkpoint, under its name.
        base = HydraConfig(first / CONFIG).get("algo.model.model_name", str, "")
        wanted = (CHECKPOINT, CONFIG, *(f"{base}/{file}" for file in pretrained.FILES))
    else:
        raise ValueError(f"{name}: not a Q-RAG model: it has neither qrag.json (an export) nor {CONFIG} (a released checkpoint)")
    # By commit: the branch may move in between.
    folder = pretrained.snapshot(name.repo, wanted, first.name, asked=asked, advice=advice)
    if wanted is not EXPORT and not (folder / CHECKPOINT).is_file():
        raise ValueError(f"{name}: has {CONFIG}, but no {CHECKPOINT}: not a released Q-RAG checkpoint")
    return folder


def push_export(run: str | Path, repo: str, *, private: bool = False) -> str:
    """Sends an export and its model card to the hub and returns its address; nothing else in its folder is sent.

    The token is the one that huggingface_hub finds. Raises ValueError when there is no export, ``repo`` is not OWNER/NAME, the hub refuses
    or is out of reach, and when ``private`` is asked of a repository that is public.
    """
    folder = find_export(run)
    load_model(folder)  # a damaged one is not sent
    if not pretrained.HUB_NAME.fullmatch(repo):
        raise ValueError(f"{repo}: must be OWNER/NAME, such as my-team/q-rag-hotpotqa")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        public = private and not api.model_info(repo).private
        if not public:
            api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=[*EXPORT, *SENT], commit_message="Q-RAG retriever")
    except Exception as error:  # the HTTP library that raises depends on the version of huggingface_hub
        said = " ".join(str(error).split())
        raise ValueError(f"{repo}: not sent; the hub wants a token that may write (`hf auth login`, or HF_TOKEN): {said}") from error
    if public:
        raise ValueError(f"{repo}: exists and is public: nothing was sent; make it private on the hub first, or leave out --private")
    return f"{api.endpoint}/{repo}"
