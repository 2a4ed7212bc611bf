"""Reads files in a process of their own, with limits of time and memory. What a hostile file does there costs one line, not the index.

The process gets one line of JSON for each file, its path, and answers with one line: passages, or why there are none. It imports no JAX.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import qrag_jax
from qrag_jax.retrieve.formats.passages import Passage, Unreadable
from qrag_jax.retrieve.formats.table import is_plain, read

SECONDS, MEMORY = 120, 4 * 2**30
"""What reading one file may take; in bytes. Systems without SIGALRM (Windows) have no limits."""


class FileReader:
    """Reads files of every format; a context, at whose end the process ends. It is started when the first file needs it."""

    def __init__(self, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._end()

    def read(self, path: Path) -> list[Passage]:
        """The passages of a file. Raises Unreadable."""
        if is_plain(path):
            return read(path)
        if self._process is None:
            self._process = _start(self.seconds, self.memory)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(str(path.absolute())).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            code = self._end()
            if code == -getattr(signal, "SIGALRM", 0):
                raise Unreadable(f"takes longer than {self.seconds} s to read")
            raise Unreadable(f"ended the process that read it (exit code {code}); it is damaged, or needs more memory than a file may take")
        found = json.loads(answer)
        if isinstance(found, str):
            raise Unreadable(found)
        return [Passage(*fields) for fields in found]

    def _end(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()
        with suppress(BrokenPipeError), process:  # closes its pipes and waits
            pass
        return process.returncode


def _start(seconds: int, memory: int) -> subprocess.Popen[bytes]:
    places = [str(Path(qrag_jax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(seconds), str(memory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        start_new_session=True,  # Ctrl-C is for this process alone, which then ends the other
    )


def _answer(line: bytes) -> Any:
    try:
        return [(one.text, one.place, one.start, one.fault) for one in read(Path(json.loads(line)))]
    except Unreadable as reason:
        return str(reason)


def main(seconds: int, memory: int) -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    limited = hasattr(signal, "SIGALRM")
    if limited:
        import resource

        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also inside a library
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        with suppress(ValueError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for line in sys.stdin.buffer:
        if limited:
            signal.alarm(seconds)
        answer = json.dumps(_answer(line)).encode()
        if limited:
            signal.alarm(0)
        answers.write(answer + b"\n")
        answers.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
