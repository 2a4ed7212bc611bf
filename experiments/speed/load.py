"""A server process and its clients, for ``experiments.speed.serve``."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

CLOSE = 1e-3  # by which Q may differ: several questions are multiplied together, in another order of sums
LONGEST_START = 600.0
BETWEEN = 0.05  # seconds before a client that was refused asks again


class Served:
    """``qrag serve`` on an index as a process: started on entering the block, stopped on leaving it."""

    def __init__(self, index: Path, budget: int, clients: int, scratch: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = ("--port", str(self.port), "--budget", str(budget), "--requests", str(2 * clients), "--modes", "multi")
        self._words = [sys.executable, "-m", "qrag_jax", "serve", str(index.resolve()), *options]
        self._log = scratch / "server.log"
        self.start_seconds: list[float] = []

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Starts the process and waits until it accepts questions."""
        begun = time.perf_counter()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).resolve().parents[2])
        while not self._is_ready():
            if self.process.poll() is not None or time.perf_counter() - begun > LONGEST_START:
                raise ValueError(f"the server did not start: {self._log.read_text()[-500:]}")
            time.sleep(0.05)
        self.start_seconds.append(time.perf_counter() - begun)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> tuple[int, float, str]:
        """Sends SIGTERM. Exit code, seconds until it ended, and its last line."""
        begun = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=120)
        return code, time.perf_counter() - begun, self._log.read_text().strip().rpartition("\n")[2]

    def memory(self) -> dict[str, float | None]:
        """Resident memory of the process in MB, and the part of it that is no mapped file; None where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        text = status.read_text() if status.exists() else ""
        found = {name: re.search(rf"{key}:\s+(\d+) kB", text) for name, key in (("resident_mb", "VmRSS"), ("own_mb", "RssAnon"))}
        return {name: None if one is None else int(one[1]) / 1000 for name, one in found.items()}


@dataclass
class Outcome:
    """What clients saw. ``seconds`` of each answer; ``ends``: when it came; ``other``: refusals and lost connections, by kind."""

    seconds: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    wrong: int = 0
    other_order: int = 0
    other: Counter[str] = field(default_factory=Counter)


class Asker:
    """Asks questions and compares the answers with ``direct``: the chunks and Q of each question."""

    def __init__(self, port: int, direct: Mapping[str, tuple[list[int], list[float]]], budget: int) -> None:
        self.port, self.direct, self.budget = port, direct, budget
        self.questions = list(direct)
        self._local = threading.local()

    def ask(self, question: str) -> dict[str, Any] | str:
        """The response; or, as a word, why there is none: "refused" (429 or 503), "no connection", "cut off" (sent, and no answer)."""
        connection = getattr(self._local, "connection", None) or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        self._local.connection = connection
        body = json.dumps({"question": question, "budget": self.budget})
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return self._dropped("no connection")
        try:
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            return self._dropped("cut off")
        if response.status in (429, 503):
            return "refused"
        if response.status != 200:
            raise ValueError(f"the server answered with status {response.status}: {content[:300]!r}")
        return dict(json.loads(content))

    def _dropped(self, why: str) -> str:
        self.close()
        return why

    def close(self) -> None:
        """Closes the connection of this thread."""
        if (connection := getattr(self._local, "connection", None)) is not None:
            connection.close()
        self._local.connection = None

    def compare(self, question: str, tree: dict[str, Any], outcome: Outcome) -> None:
        chunks, q = self.direct[question]
        found = [step["chunk"] for step in tree["steps"]]
        near = len(found) == len(q) and all(math.isclose(a["q"], b, abs_tol=CLOSE) for a, b in zip(tree["steps"], q, strict=True))
        outcome.wrong += not near
        outcome.other_order += near and found != chunks  # two chunks whose Q is the same up to rounding


def load(asker: Asker, clients: int, until: threading.Event) -> list[tuple[threading.Thread, Outcome]]:
    """Starts clients that ask one question after another until the event is set. What is refused is asked again until it is answered."""
    started = []
    for number in range(clients):
        outcome = Outcome()
        thread = threading.Thread(target=_client, args=(asker, number, until, outcome), daemon=True)
        thread.start()
        started.append((thread, outcome))
    return started


def _client(asker: Asker, number: int, until: threading.Event, outcome: Outcome) -> None:
    turn = number * 7
    while not until.is_set():
        question = asker.questions[turn % len(asker.questions)]
        turn += 1
        begun = time.perf_counter()
        while isinstance(tree := asker.ask(question), str):
            outcome.other[tree] += 1
            time.sleep(BETWEEN)
        ended = time.perf_counter()
        outcome.seconds.append(ended - begun)
        outcome.ends.append(ended)
        asker.compare(question, tree, outcome)
    asker.close()


def steady(served: Served, asker: Asker, clients: int, seconds: float) -> dict[str, Any]:
    """One row of the report: ``clients`` at once for ``seconds``."""
    before, until = served.memory(), threading.Event()
    begun = time.perf_counter()
    started = load(asker, clients, until)
    until.wait(seconds)
    until.set()
    for thread, _ in started:
        thread.join()
    took = time.perf_counter() - begun
    times = sorted(chain.from_iterable(outcome.seconds for _, outcome in started))
    after = served.memory()
    return {
        "clients": clients,
        "seconds": took,
        "questions": len(times),
        "questions_per_s": len(times) / took,
        "p50_s": statistics.median(times),
        "p99_s": times[min(len(times) - 1, math.ceil(0.99 * len(times)) - 1)],
        "wrong": sum(outcome.wrong for _, outcome in started),
        "other_order": sum(outcome.other_order for _, outcome in started),
        "not_answered_at_once": dict(sum((outcome.other for _, outcome in started), Counter())),
        "resident_mb": [before["resident_mb"], after["resident_mb"]],
        "own_mb": [before["own_mb"], after["own_mb"]],
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def through_a_restart(served: Served, asker: Asker, clients: int, seconds: float) -> dict[str, Any]:
    """SIGTERM while ``clients`` ask, and a new process on the same port; ``seconds`` of load before and after."""
    until = threading.Event()
    started = load(asker, clients, until)
    until.wait(seconds / 2)
    code, drained, said = served.stop()
    stopped = time.perf_counter()
    served.start()
    until.wait(seconds / 2)
    until.set()
    for thread, _ in started:
        thread.join(120)
    ends = sorted(chain.from_iterable(outcome.ends for _, outcome in started))
    gaps = [after - before for before, after in pairwise(ends)]
    return {
        "clients": clients,
        "exit_code": code,
        "drain_seconds": drained,
        "said": said,
        "start_seconds": served.start_seconds[-1],
        "longest_without_an_answer_s": max(gaps, default=0.0),
        "answered_before": sum(end < stopped for end in ends),
        "answered_after": sum(end >= stopped for end in ends),
        "wrong": sum(outcome.wrong for _, outcome in started),
        "never_answered": sum(thread.is_alive() for thread, _ in started),
        "asked_again": dict(sum((outcome.other for _, outcome in started), Counter())),
    }
