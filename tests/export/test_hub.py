"""Models by their names: on a hub (huggingface_hub itself, against a server on loopback), in folders, and sent there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qrag_jax.__main__ import main
from qrag_jax.export.folder import read_export
from qrag_jax.export.hub import HubName, find_model, load_model
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.types import QAExample
from tests.support.backbones import same_trees
from tests.support.hub import Files, HubServer, files_of, hub_server, use
from tests.support.index import CHUNKS, write_small_export
from tests.support.reference import rename_base, write_small_reference

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared/data/reference_openqa"
RELEASED, BASE, EXPORT = "Q-RAG/small", "lab/base", "me/export"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        use(server, tmp_path / "home", monkeypatch)
        yield server


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released checkpoint with its base model beside it; beside its folder, the export it was made of."""
    pytest.importorskip("torch")
    return write_small_reference(tmp_path_factory.mktemp("made") / "released")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_export(tmp_path_factory.mktemp("exported") / "export", threshold=0.25)


def serve_released(hub: HubServer, folder: Path) -> None:
    """The checkpoint, and its base model in a repository of its own, each with files that nobody needs."""
    files = files_of(folder)
    config = rename_base(files["config.yaml"], BASE)
    hub.serve(RELEASED, {"model_best.pt": files["model_best.pt"], "config.yaml": config, "README.md": b"#", "events.out": b"large"})
    hub.serve(BASE, {name.removeprefix("base_model/"): file for name, file in files.items() if name.startswith("base_model/")})


def one_line(name: str | Path, **options: Path) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load_model(name, **options)
    return str(error.value)


def test_names() -> None:
    assert HubName.parse("Q-RAG/qrag-ft-e5-on-hotpotqa@main") == HubName("Q-RAG/qrag-ft-e5-on-hotpotqa", "main")
    assert str(HubName.parse("a/b@refs-1")) == "a/b@refs-1"
    assert str(HubName.parse("a/b")) == "a/b"
    for text in ("a", "/a/b", "a/b/c", "a/b@", "../a", "runs/x y", "gs://a/b"):
        assert HubName.parse(text) is None


def test_a_released_checkpoint_by_name(hub: HubServer, released: Path) -> None:
    serve_released(hub, released)
    found = load_model(RELEASED)
    assert same_trees(found.params, read_export(released.parent / "export").params)
    assert (found.pooling, found.config.model.embedder) == ("mean", BASE)
    assert hub.downloads(RELEASED) == {"model_best.pt", "config.yaml"}
    assert hub.downloads(BASE) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    before = len(hub.fetched)
    load_model(f"{RELEASED}@main")
    assert len(hub.fetched) == before, "what is in the cache is not fetched again"


def test_a_checkpoint_by_folder_and_by_file(released: Path) -> None:
    by_folder, by_file = load_model(released), load_model(released / "model_best.pt")
    assert same_trees(by_folder.params, by_file.params)
    assert (by_folder.config, by_folder.step) == (by_file.config, 1)


def test_the_base_model_may_lie_beside_the_checkpoint(hub: HubServer, released: Path) -> None:
    hub.serve(RELEASED, files_of(released))
    assert same_trees(load_model(RELEASED).params, load_model(released).params)
    assert "base_model/tokenizer.json" in hub.downloads(RELEASED)
    assert "base_model/model.safetensors" not in hub.downloads(RELEASED)


def test_an_export_by_name_and_revision(hub: HubServer, exported: Path) -> None:
    files = files_of(exported)
    other = json.loads(files["qrag.json"]) | {"threshold": 0.5}
    hub.serve(EXPORT, files | {"model_best.pt": b"not needed"})
    hub.serve(EXPORT, files | {"qrag.json": json.dumps(other).encode()}, "v2")
    by_name, here = Retriever.from_pretrained(EXPORT), Retriever.from_pretrained(exported)
    example = QAExample("x", "Where is Mary?", tuple(CHUNKS), "", (0,))
    assert by_name.run([example], 3) == here.run([example], 3)
    assert (by_name.threshold, Retriever.from_pretrained(f"{EXPORT}@v2").threshold) == (0.25, 0.5)
    weights = {"state_encoder/model.safetensors", "action_encoder/model.safetensors"}
    assert {"qrag.json", "tokenizer.json"} | weights <= hub.downloads(EXPORT)
    # Equal files are fetched once.
    assert hub.downloads(EXPORT) <= {"qrag.json", "tokenizer.json", "state_encoder/config.json", "action_encoder/config.json"} | weights
    assert "me/export has no revision 'v3' on the hub" in one_line(f"{EXPORT}@v3")


def test_a_private_model_needs_the_usual_token(hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.serve(EXPORT, files_of(exported))
    hub.private.add(EXPORT)
    assert "not open to you" in (said := one_line(EXPORT))
    assert "hf auth login" in said
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert load_model(EXPORT).threshold == 0.25
    hub.private.add("me/other")
    assert hub.token not in one_line("me/other")


def test_offline_one_line_says_which_files_to_place_where(hub: HubServer, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_released(hub, released)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = one_line(f"{RELEASED}@v1")
    for part in ("Q-RAG/small@v1", f"hf download {RELEASED} --revision v1 --local-dir DIR", "model_best.pt and config.yaml", "qrag.json"):
        assert part in said
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    load_model(RELEASED)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model(RELEASED).config.model.embedder == BASE, "from the cache"


def test_a_base_model_that_is_out_of_reach(hub: HubServer, released: Path, tmp_path: Path) -> None:
    """The line names what may be done for the checkpoint's folder, and for the command."""
    serve_released(hub, released)
    del hub.repositories[BASE]
    said = one_line(RELEASED)
    assert "config.yaml: algo.model.model_name: base-model = 'lab/base': lab/base is not on the hub" in said
    assert said.endswith("/lab/base")
    assert load_model(RELEASED, base_model=released / "base_model").config.model.embedder == BASE
    shutil.copytree(released, copy := tmp_path / "copy")
    (copy / "config.yaml").write_bytes(rename_base((copy / "config.yaml").read_bytes(), BASE))
    (copy / "lab").mkdir()
    (copy / "base_model").rename(copy / "lab/base")
    assert load_model(copy).config.model.embedder == BASE, "placed where the line says"


def test_what_is_no_model_is_one_line(hub: HubServer, exported: Path, tmp_path: Path) -> None:
    hub.serve("me/bert", {"config.json": b"{}", "model.safetensors": b""})
    hub.serve("me/half", {"config.yaml": b"algo: {model: {model_name: a/b}}"})
    for name, parts in (
        ("nowhere at all", ("no such folder or file, and not a hub name", "OWNER/NAME[@REVISION]", "model_best.pt", "gs://BUCKET/NAME")),
        ("runs/typo", ("runs/typo: no such folder", "not on the hub")),
        ("me/bert", ("me/bert: not a Q-RAG model", "qrag.json", "config.yaml")),
        ("me/half", ("me/half: has config.yaml, but no model_best.pt",)),
        (tmp_path, ("not an export", "model_best.pt and config.yaml")),
    ):
        said = one_line(name)
        assert all(part in said for part in parts), said
    assert "only a released checkpoint needs it" in one_line(exported, base_model=tmp_path)


def test_push(hub: HubServer, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(exported, folder := tmp_path / "run/export")
    (folder / "notes.txt").write_text("mine alone")
    push = lambda *words: (main(["push", str(tmp_path / "run"), *words]), " ".join(capsys.readouterr()))
    code, said = push("me/sent")
    assert (code, "hf auth login" in said) == (64, True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    code, said = push("me/sent", "--private")
    assert (code, f"{hub.url}/me/sent: uploaded" in said) == (0, True), said
    sent: Files = hub.repositories["me/sent"]["main"]
    assert sent == files_of(exported)
    assert "# Q-RAG retriever" in sent["README.md"].decode()
    assert hub.private == {"me/sent"}
    assert same_trees(load_model("me/sent").params, read_export(exported).params)
    hub.serve("me/open", {})
    assert push("me/open", "--private")[0] == 64
    assert hub.repositories["me/open"]["main"] == {}
    assert push("me/open")[0] == 0
    for name in ("sent", "a/b/c", "me/sent@main"):
        code, said = push(name)
        assert (code, "must be OWNER/NAME" in said) == (64, True)
    (folder / "action_encoder/model.safetensors").write_bytes(b"torn")
    assert push("me/open")[0] == 64, "a damaged export is not sent"


def test_the_commands_take_names(hub: HubServer, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Imported by name; an index built with a name asks without naming it again."""
    serve_released(hub, released)
    assert main(["import", RELEASED, str(tmp_path / "imported")]) == 0
    assert same_trees(read_export(tmp_path / "imported").params, load_model(released).params)
    (tmp_path / "story.txt").write_text(" ".join(CHUNKS[:20]))
    index = str(tmp_path / "index")
    assert main(["index", "build", str(tmp_path / "story.txt"), index, "--retriever", f"{RELEASED}@main"]) == 0
    assert main(["index", "info", index]) == 0
    assert f"loaded from {RELEASED}@main" in capsys.readouterr().out
    assert main(["ask", index, "Where is Mary?", "--budget", "2"]) == 0
    assert main(["import", "nowhere at all", str(tmp_path / "not")]) == 64


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared data folder (reference_openqa/) is not beside the repository")
def test_the_golden_picks_by_name(hub: HubServer) -> None:
    """A checkpoint of the reference code, by its hub name: in eight of eight episodes the picks and values that were recorded."""
    pytest.importorskip("torch")
    serve_released(hub, GOLDEN)
    retriever = Retriever.from_pretrained(f"{RELEASED}@main")
    episodes = json.loads((GOLDEN / "golden.json").read_text())["episodes"]
    assert len(episodes) == 8
    for episode in episodes:
        [found] = retriever.run(
            [QAExample(episode["id"], episode["question"], tuple(episode["chunks"]), "", tuple(episode["support"]))], episode["budget"]
        )
        assert list(found.picked) == [step["greedy_action"] for step in episode["steps"]]
        np.testing.assert_allclose(found.q, [step["q"][step["greedy_action"]] for step in episode["steps"]], atol=1e-5)


@pytest.mark.slow
@pytest.mark.processes
def test_a_new_process_takes_the_hub_from_its_environment(released: Path, tmp_path: Path) -> None:
    with hub_server() as server:
        serve_released(server, released)
        home = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "JAX_PLATFORMS": "cpu"}
        words = [sys.executable, "-m", "qrag_jax", "import", RELEASED, str(tmp_path / "out")]
        done = subprocess.run(words, env=os.environ | home, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert same_trees(read_export(tmp_path / "out").params, load_model(released).params)
    assert find_model(tmp_path / "out") == tmp_path / "out"
