"""A run in its own process: a crash, a lack of memory or a signal ends it, but not the command that started it.

The command holds the other end of the process's standard input. When that closes, the run saves and ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.slots import take_cores
from qrag_jax.rundir.early import STOPPED
from qrag_jax.rundir.log import RunLog, progress

POLL_SECONDS = 0.5


class Child:
    """The process of a run, as the command that started it sees it. ``log``: the file with what it prints."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log: Path,
        environment: Mapping[str, str],
        *,
        name: str,
        steps: int,
        slot: int,
        keep: Sequence[int] = (),
    ) -> None:
        """Starts ``command`` for the run in ``folder``, which makes ``steps`` updates. ``keep``: open files that it inherits."""
        self.folder, self.log = folder, log
        self._output = log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the command, which then asks its runs to save
            pass_fds=keep,
        )
        # Bars of several runs are shown only on a terminal.
        self._bar = progress(total=steps, position=1 + slot, leave=False, disable=None, desc=name, unit="update")

    def order(self, text: str) -> None:
        """Sends the one line that :func:`ordered` waits for."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; its exit code says so

    def look(self) -> tuple[int | None, list[dict[str, Any]]]:
        """The exit code (None while it runs) and the records of the run so far, which also move its bar."""
        code, records = self._process.poll(), records_of(self.folder)
        if validations := validations_of(records):
            self._bar.set_postfix_str(f"validation Fact EM {validations[-1]['fact_em']:.3f}", refresh=False)
        self._bar.update((records[-1]["step"] if records else 0) - self._bar.n)
        return code, records

    def stop(self) -> None:
        """Asks the run to save and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> int:
        """Waits until the process ends; returns its exit code, which is negative after a signal."""
        code = self._process.wait()
        self._bar.close()
        self._output.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the log that are not empty."""
        text = self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; none if its file is damaged, which the run itself says."""
    try:
        return RunLog(folder).read()
    except ValueError:
        return []


def validations_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "validation"]


def how(code: int) -> str:
    """How a process ended, from its exit code."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return "stopped early, after saving" if code == STOPPED else f"exit code {code}"


def follow() -> None:
    """In the process of a run: keeps it on its own cores, and ends it with the command that started it."""
    take_cores()
    threading.Thread(target=_end_with_command, daemon=True).start()


def ordered() -> str:
    """In the process of a run, before :func:`follow`: the line of :meth:`Child.order`; empty if the command has ended."""
    found = b""
    while not found.endswith(b"\n") and (more := os.read(0, 1)):
        found += more
    return found.decode().rstrip("\n") if found.endswith(b"\n") else ""


def _end_with_command() -> None:
    # Not sys.stdin, whose lock a waiting daemon thread would hold when the interpreter ends.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
