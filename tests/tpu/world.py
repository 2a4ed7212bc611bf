"""A small world for the scripts of tpu/: stand-ins for gcloud, curl and sleep (bin/), and a folder that serves as the TPU VM."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT

TPU = ROOT / "tpu"
BIN = Path(__file__).parent / "bin"
COMMAND = ("--", "python", "-m", "experiments.babilong", "--task", "qa2")


class World:
    """A folder for the stand-ins, and the scripts run against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Real sleeps where real processes run; recorded ones (real_sleep=False) where only the babysitter's own waiting is seen.
        self.real_sleep = False
        self.set("state", "MISSING")

    def set(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text + "\n")

    def environment(self, **settings: str) -> dict[str, str]:
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        for tool in ("gcloud", "curl") if self.real_sleep else ("gcloud", "curl", "sleep"):
            if not (tools / tool).exists():
                (tools / tool).symlink_to(BIN / tool)
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
        return {**kept, "PATH": path, "STUB": str(self.folder), "ZONE": "europe-west4-a", "POLL": "7", **settings}

    def call(self, script: str, *words: str, code: int = 0, **settings: str) -> str:
        """Its standard output; raises AssertionError with all it said where its exit code is another."""
        environment = self.environment(**settings)
        done = subprocess.run(
            [str(TPU / script), *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        self.said = done.stderr
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}{self.calls()}"
        return done.stdout

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        # bash writes $'..' for control characters, which shlex does not know; no test looks at those words.
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, *part: str) -> int:
        return sum(all(word in " ".join(call) for word in part) for call in self.calls())

    def sleeps(self) -> list[int]:
        return [int(line) for line in (self.folder / "sleeps").read_text().split()]

    @property
    def home(self) -> Path:
        return self.folder / "vm"

    def ready_vm(self) -> None:
        """A TPU VM on which setup.sh has run."""
        self.real_sleep = True
        (self.home / "qrag").mkdir(parents=True)
        (self.home / "qrag" / "src").symlink_to(ROOT)
        (self.home / "qrag" / "ready").touch()
        self.set("state", "ACTIVE")

    def wait_for_job(self) -> tuple[int, str]:
        """Exit code and log of the job on the TPU VM."""
        job = self.home / "qrag" / "job"
        for _ in range(300):
            if (job / "exit").exists():
                return int((job / "exit").read_text()), (job / "log").read_text()
            time.sleep(0.1)
        raise AssertionError((job / "log").read_text())
