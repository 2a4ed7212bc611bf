"""Types the hostile inputs of docs/robustness.md as a user would, and prints what each did, as a Markdown table.

    python -m tests.robustness                  # this checkout
    python -m tests.robustness OTHER_CHECKOUT   # another version, to compare with

It is a script, not a test: the tests that docs/robustness.md names check the same, and more.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.conftest import ROOT
from tests.support.index import CHUNKS, write_small_export
from tests.support.oracles.windows import lost

LIMIT = 60  # seconds of one command
TABLE = "| name | place |\n|---|---|\n" + "".join(f"| Mary {i} | the kitchen of house number {i} in the long street |\n" for i in range(30))
CHINESE = "\u739b\u4e3d\u53bb\u4e86\u53a8\u623f\u3002\u7ea6\u7ff0\u53bb\u4e86\u82b1\u56ed\u3002\u6851\u5fb7\u62c9\u8d70\u4e86\u3002"


class Done(NamedTuple):
    code: int | None
    text: str
    seconds: float

    def __str__(self) -> str:
        if self.code is None:
            return f"no end within {LIMIT} s"
        return f"exit {self.code}" + (", a traceback" if "Traceback" in self.text else "")


class World:
    """A folder to work in, and the checkout whose commands are typed."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        write_small_export(folder / "run")
        self.write("story.txt", " ".join(CHUNKS))
        self.usual = self.qrag("index", "build", "story.txt", "index", "--retriever", "run").seconds

    def write(self, name: str, text: str) -> str:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def start(self, *words: str) -> subprocess.Popen[str]:
        options = {"cwd": self.folder, "env": self.environment, "stdout": -1, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "-m", *words], **options)

    def run(self, *words: str) -> Done:
        began, started = time.monotonic(), self.start(*words)
        try:
            text = started.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            started.kill()
            return Done(None, started.communicate()[0], LIMIT)
        return Done(started.returncode, text, time.monotonic() - began)

    def qrag(self, *words: str) -> Done:
        return self.run("qrag_jax", *words)

    def damaged(self, name: str, file: str, change: Callable[[Path], object]) -> Done:
        """A question to a copy of the retriever in which a file was changed."""
        shutil.copytree(self.folder / "run", self.folder / name)
        change(self.folder / name / file)
        return self.qrag("ask", "index", "Where is Mary?", "--retriever", name)

    def chunks(self, index: str) -> list[tuple[int, int]]:
        lines = [line for file in sorted((self.folder / index).glob("texts-*")) for line in file.read_text(encoding="utf-8").splitlines()]
        found = [json.loads(line) for line in lines]
        return [(one["start"], one["end"]) if isinstance(one, dict) else (one[1], one[2]) for one in found]


def windows(world: World) -> str:
    import tokenizers

    text = TABLE + CHINESE * 20
    build = ("index", "build", world.write("table.txt", text), "table.index", "--retriever", "run")
    done = world.qrag(*build, "--chunk-by", "parts")
    if done.code == 64:  # a version without the option
        done = world.qrag(*build)
    tokenizer = tokenizers.Tokenizer.from_file(str(world.folder / "run" / "tokenizer.json"))
    missing = lost(tokenizer, text, world.chunks("table.index"), 14) if done.code == 0 else []
    return f"{done}; {len(missing)} of {len(text)} characters in no embedded window"


def sentences(world: World) -> str:
    done = world.qrag("index", "build", world.write("chinese.txt", CHINESE), "chinese.index", "--retriever", "run")
    return f"{done}; {len(world.chunks('chinese.index'))} chunks of 3 sentences"


def dots(world: World) -> str:
    done = world.qrag("index", "build", world.write("dots.txt", "." * 40_000), "dots.index", "--retriever", "run")
    return f"{done}, {done.seconds - world.usual:.0f} s more than a story of 80 sentences"


def writers(world: World) -> str:
    shutil.copytree(world.folder / "index", world.folder / "shared")
    files = [world.write(f"{name}.txt", f"Now {name} went to the garden.") for name in ("first", "second")]
    started = [world.start("qrag_jax", "index", "add", file, "shared") for file in files]
    codes = [one.wait() for one in started]
    told = world.qrag("index", "info", "shared").text
    return f"exits {codes}; {sum(f'source: {file}' in told for file in files)} of 2 documents are there"


def endings(world: World) -> str:
    (world.folder / "locked").mkdir()
    ask, build = ("ask", "index", "Where is Mary?"), ("index", "build", "story.txt")
    typed = [
        *((*ask, "--trace", "run"), (*ask, "--trace", "/proc/x/y.html"), (*ask, "--retriever", "nothing"), ("ask", "story.txt", "Where?")),
        *((*build, "story.txt/x", "--retriever", "run"), (*build, "/proc/x", "--retriever", "run"), (*build, "run", "--retriever", "run")),
        *(
            ("index", "build", "nothing.txt", "new", "--retriever", "run"),
            ("index", "add", "locked", "index"),
            ("export", "run", "/proc/x"),
        ),
    ]
    done = [world.qrag(*words) for words in typed]
    return f"{sum('Traceback' in one.text for one in done)} tracebacks, {sum(one.code == 64 for one in done)} exits 64, of {len(done)}"


def signals(world: World) -> str:
    whole = world.qrag("ask", "index", "Where is Mary?").seconds
    found = []
    for share in (0.2, 0.4, 0.6, 0.8):
        started = world.start("qrag_jax", "ask", "index", "Where is Mary?")
        time.sleep(share * whole)
        started.send_signal(signal.SIGINT)
        text = started.communicate()[0]
        found.append(f"{started.returncode}{' with a traceback' if 'Traceback' in text else ''}")
    return f"exits {', '.join(found)}"


def weights(world: World) -> str:
    def change(path: Path) -> None:
        save_file({name: np.full_like(tensor, np.nan) for name, tensor in load_file(path).items()}, path)

    return str(world.damaged("nan", "action_encoder/model.safetensors", change))


def sizes(world: World) -> str:
    change = lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))
    return str(world.damaged("huge", "state_encoder/config.json", change))


def nested(world: World) -> str:
    return str(world.damaged("deep", "qrag.json", lambda path: path.write_text("[" * 100_000)))


def tokenizer(world: World) -> str:
    def change(path: Path) -> None:
        step = {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": step}))

    shutil.copytree(world.folder / "run", world.folder / "slow")
    change(world.folder / "slow" / "tokenizer.json")
    return str(world.qrag("index", "build", world.write("a.txt", "a" * 60), "slow.index", "--retriever", "slow"))


def outside(world: World) -> str:
    tree = json.loads((ROOT / "docs/results/babilong-qa1-tiny/results.json").read_text())
    rows = [row | {"benchmark": "../x"} for row in tree["rows"]]
    rows += [row | {"context_tokens": 2 * row["context_tokens"]} for row in rows]  # several lengths have a picture
    world.write("results/run/results.json", json.dumps(tree | {"rows": rows}))
    done = world.run("experiments.report", "--results", "results")
    return f"{done}; {'a picture outside' if (world.folder / 'x.png').exists() else 'nothing outside'}"


def results(world: World) -> str:
    found = []
    for source, key in (("babilong-qa2-ablations/ablations.json", "rows"), ("babilong-qa2-tables/tables.json", "sections")):
        shutil.copytree(ROOT / "docs/results/babilong-qa1-tiny", world.folder / key / "run")
        tree = json.loads((ROOT / "docs/results" / source).read_text())
        world.write(f"{key}/run/{Path(source).name}", json.dumps(tree | {key: [tree[key][0] | {"task": "qa2", "budgets": 3, "mean": 3}]}))
        found.append(f"{Path(source).name}: {world.run('experiments.report', '--results', key)}")
    return "; ".join(found)


def twice(world: World) -> str:
    return str(world.run("experiments.tables", "run", "--run-dir", "twice", "--budgets", "2", "--budgets", "3", "--eval-episodes", "0"))


def short(world: World) -> str:
    world.qrag("index", "build", world.write("two.txt", "Mary went to the garden. John slept."), "two.index", "--retriever", "run")
    return str(world.qrag("ask", "two.index", "Where is Mary?", "--budget", "4"))


PROBES = (windows, sentences, dots, writers, endings, signals, short, weights, sizes, nested, tokenizer, outside, results, twice)


def main() -> int:
    checkout = Path(sys.argv[1] if sys.argv[1:] else ROOT).resolve()
    sys.stdout.write("| tried | what happened |\n|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        world = World(checkout, Path(folder))
        for probe in PROBES:
            sys.stdout.write(f"| {probe.__name__} | {probe(world)} |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
