"""Every command ends with its exit code and at most one line, whatever happens to its disk, its output and its terminal."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from qrag_jax.reader.protocol import ReaderError
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.files import check_folder, disk_error, whole_file, write_text
from qrag_jax.rundir.log import CannotWrite, Interrupted, NotFinite, Preempted, progress, say
from qrag_jax.rundir.stop import AGAIN, stop_requests
from tests.conftest import ROOT


def raising(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def full(*, name: str | None = "file") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([name] if name else []))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a\n  b"), 64, "error: a b"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 64, "error: x: Not a directory; choose another place"),
        (PermissionError(errno.EACCES, "Permission denied", b"x\xff"), 64, "error: x\\udcff: Permission denied; choose another place"),
        (FileNotFoundError(errno.ENOENT, "No such file", "r/m"), 64, "error: r/m: no such file or folder; it may have been removed while"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 64, "error: x: File name too long"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 64, "error: x: Too many levels"),
        (NotFinite("n"), 70, "error: n"),
        (CannotWrite("c"), 74, "error: c"),
        (full(), 74, "error: file: cannot be written to (No space left on device); make room, then run the same command again"),
        (full(name=None), 74, "error: the disk or the output: cannot be written to"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 74, "error: x: cannot be written to (Read-only file system); fix that"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 74, "error: the disk"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 74, "error: this machine has no resources left"),
        (Preempted("saved"), 75, "preempted: saved"),
        (ReaderError("down"), 75, "error: down; nothing is lost: run the same command again"),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), 75, "error: the processes of this run did not come together"),
        (Interrupted("saved"), 130, "interrupted: saved"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again"),
        (RuntimeError("Unable to initialize backend 'foo': not found"), 64, "error: JAX_PLATFORMS = 'foo': Unable to initialize"),
    ],
)
def test_each_ending_has_its_code_and_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    assert execute(raising(error)) == code
    out, told = capsys.readouterr()
    assert out == ""
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_done_help_and_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(lambda: None) == 0
    assert execute(lambda: 1) == 1
    assert execute(raising(SystemExit(0))) == 0
    for error in (KeyError("a fault"), OSError("no file in it"), RuntimeError("a fault"), SystemExit(3)):
        with pytest.raises(type(error)):
            execute(raising(error))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("later", [0, 2.5 * AGAIN])
def test_a_request_that_is_swallowed_is_made_again(number: signal.Signals, later: float, capsys: pytest.CaptureFixture[str]) -> None:
    """As JAX swallows it while it looks for devices; and what cleans up after a request is not disturbed."""
    cleaned = []

    @contextmanager
    def cleaning() -> Iterator[None]:
        try:
            yield
        finally:
            signal.sigtimedwait([], later)  # sleeps, and lets handlers run
            cleaned.append(1)

    def run() -> None:
        with suppress(BaseException):
            signal.raise_signal(number)
        with cleaning():
            signal.sigtimedwait([], 20)
            raise AssertionError("swallowed for good")

    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert execute(run) == (130 if number == signal.SIGINT else 75)
    assert cleaned == [1]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert "run the same command again" in capsys.readouterr().err


def test_the_first_ctrl_c_waits_for_what_must_be_saved_and_the_second_does_not() -> None:
    done = []

    def save(times: int) -> None:
        with stop_requests() as stop, stop.later():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append(stop.kind)

    with pytest.raises(Interrupted):
        save(1)
    assert done == [Interrupted]
    with pytest.raises(KeyboardInterrupt):
        save(2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_that_was_swallowed_before_an_inner_block_keeps_its_kind(number: signal.Signals) -> None:
    def run() -> None:
        with suppress(BaseException):
            signal.raise_signal(number)
        with stop_requests() as stop:
            assert stop.asked
            signal.sigtimedwait([], 20)

    assert execute(run) == (130 if number == signal.SIGINT else 75)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_request_that_is_swallowed_just_before_the_end_still_counts(number: signal.Signals, code: int) -> None:
    def run() -> None:
        with suppress(BaseException):
            signal.raise_signal(number)

    assert execute(run) == code
    assert execute(lambda: None) == 0, "and is forgotten"


def test_devices_that_are_not_there_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX_PLATFORMS=cuda on a machine without a GPU is an AssertionError without a text; others are faults of this program."""
    import jax

    def missing() -> None:
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(AssertionError):
        execute(missing)  # there are devices here
    monkeypatch.setattr(jax, "devices", missing)
    assert execute(missing) == 64
    assert capsys.readouterr().err == (
        "error: JAX_PLATFORMS = 'cuda': this machine has no such device; unset it to let JAX choose, or use cpu, cuda or tpu\n"
    )
    with pytest.raises(AssertionError, match="a fault"):
        execute(raising(AssertionError("a fault")))
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(AssertionError):
        execute(missing)


@pytest.mark.parametrize("leave", [True, False])
def test_the_last_line_is_not_on_the_line_of_a_progress_bar(leave: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        for _ in progress(range(9), mininterval=0, leave=leave):
            raise KeyboardInterrupt

    assert execute(run) == 130
    *bars, last = capsys.readouterr().err.splitlines()
    assert last == "interrupted: run the same command again"
    assert bars


SCRIPT = """
import sys
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import progress, say
def run():
    for i in progress(range(600), mininterval=0):
        say(f"line {i} \u00e9\u65e5" + 200 * ".")
    open(sys.argv[1], "w").close()
raise SystemExit(execute(run))
"""


def shell(command: str, done: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``command`` in bash, with python, the script and the file that it writes at its end as $P, $S and $D; exit codes of a pipe last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "P": sys.executable, "S": SCRIPT, "D": str(done), **variables}
    words = ["bash", "-c", f'{command}; echo "codes ${{PIPESTATUS[*]}}" >&2']
    return subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", errors="replace")


@pytest.mark.parametrize("pipe", ["| head -1", "2>&1 | head -1", "2>&1 | true"])
def test_a_closed_pipe_only_makes_a_command_silent(pipe: str, tmp_path: Path) -> None:
    told = shell(f'"$P" -c "$S" "$D" {pipe}', tmp_path / "done")
    assert told.stderr.splitlines()[-1] == "codes 0 0"
    assert "Traceback" not in told.stderr
    assert "Exception ignored" not in told.stderr
    assert (tmp_path / "done").exists()  # its work is done to the end


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
def test_a_console_of_another_encoding_shows_escapes(encoding: str, tmp_path: Path) -> None:
    told = shell('"$P" -c "$S" "$D" 2> /dev/null', tmp_path / "done", PYTHONIOENCODING=encoding)
    assert told.stderr == "codes 0\n"
    assert told.stdout.startswith("line 0 ")
    assert "\\u65e5" in told.stdout


@pytest.mark.parametrize(("streams", "code"), [("> /dev/full", 74), (">&-", 0), ("> /dev/full 2>&1", 74), (">&- 2>&-", 0)])
def test_an_output_that_cannot_be_written(streams: str, code: int, tmp_path: Path) -> None:
    told = shell(f'"$P" -c "$S" "$D" {streams}', tmp_path / "done")
    *_, codes = told.stderr.splitlines()
    assert codes == f"codes {code}"
    assert "Traceback" not in told.stderr
    assert (tmp_path / "done").exists() == (code == 0)


def test_a_signal_while_a_command_is_imported_is_one_line(tmp_path: Path) -> None:
    """Before the command line is read: here, in the first import after the handlers."""
    (tmp_path / "tyro.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), getattr(signal, os.environ['NUMBER']))\ntime.sleep(20)\n"
    )
    for number, code in (("SIGINT", 130), ("SIGTERM", 75)):
        told = shell('"$P" -m experiments.babilong', tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}", NUMBER=number)
        first, codes = told.stderr.splitlines()
        assert first.startswith(f"stopped by {'Ctrl-C' if code == 130 else 'SIGTERM'}")
        assert codes == f"codes {code}"
    # A program of somebody else that imports the package keeps its own handlers.
    program = "import signal, qrag_jax; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout == "True\n"


def test_after_ctrl_c_the_line_stands_over_what_the_terminal_has_written(tmp_path: Path) -> None:
    """It writes ^C where its cursor is."""
    (tmp_path / "tyro.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    wait = "lambda: print('ready', flush=True) or time.sleep(60)"
    command = f"import time; from qrag_jax.rundir.ending import execute; raise SystemExit(execute({wait}))"
    for words, place, line in (
        (["-m", "experiments.babilong"], f"{tmp_path}:{ROOT}", "stopped by Ctrl-C"),
        (["-c", command], str(ROOT), "interrupted: run the same command again"),
    ):
        terminal, inside = os.openpty()
        started = subprocess.Popen(
            [sys.executable, *words], env={**os.environ, "PYTHONPATH": place}, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        assert b"".join(iter(partial(os.read, terminal, 1), b"\n")) == b"ready\r"
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 130
        assert os.read(terminal, 200).startswith(b"\r" + line.encode())
        os.close(terminal)


def test_what_never_ends_does_not_keep_a_command(tmp_path: Path) -> None:
    """A thread that writes into a folder which was removed, for instance."""
    (tmp_path / "tyro.py").write_text(
        "import threading, time\nfrom qrag_jax.rundir import early\nfrom qrag_jax.rundir.ending import execute\n"
        "early.be_patient(0.2)\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "def run():\n    raise ValueError('bad')\nraise SystemExit(execute(run))\n"
    )
    began = time.monotonic()
    told = shell('"$P" -m experiments.babilong', tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert told.stderr.splitlines() == ["error: bad", "codes 64"]
    assert time.monotonic() - began < 30


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device.*results\.json") as caught, whole_file(tmp_path / "results.json"):
        raise full(name=None)
    assert disk_error(caught.value) == "No space left on device"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder; choose another --run-dir"):
        check_folder(tmp_path / "file" / "below")
    check_folder(tmp_path / "new" / "below")
    assert execute(lambda: write_text(tmp_path / "file" / "x", "") and None) == 64


def test_say_goes_on_after_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    assert execute(lambda: say("a line")) == 0


COMMANDS: dict[str, tuple[str, ...]] = {
    "ask": ("qrag_jax", "ask", "index", "Where is Mary?"),
    "build": ("qrag_jax", "index", "build", "story.txt", "new", "--retriever", "run"),
    "evaluate": ("experiments.evaluate", "run", "--run-dir", "out", "--eval-tokens", "1k", "--eval-episodes", "2"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever, a text and its index."""
    from qrag_jax.__main__ import main
    from tests.support.index import CHUNKS, write_small_export

    place = tmp_path_factory.mktemp("place")
    write_small_export(place / "run")
    (place / "story.txt").write_text(" ".join(CHUNKS))
    assert main(["index", "build", str(place / "story.txt"), str(place / "index"), "--retriever", str(place / "run")]) == 0
    return place


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("name", "number"), [("build", signal.SIGINT), ("evaluate", signal.SIGINT), ("ask", signal.SIGTERM)])
def test_a_signal_at_any_moment_of_a_command_is_one_line(name: str, number: signal.Signals, place: Path) -> None:
    """While Python imports, JAX starts and compiles, and at the end: never swallowed, never killed, never a crash."""
    from tests.support.processes import environment

    words = [sys.executable, "-m", *COMMANDS[name]]
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    subprocess.run(words, cwd=place, env=variables, check=True, capture_output=True)
    whole = time.monotonic() - began
    for share in (0.2, 0.5, 0.8):
        for out in ("new", "out"):
            shutil.rmtree(place / out, ignore_errors=True)
        started = subprocess.Popen(words, cwd=place, env=variables, stdout=-1, stderr=-1, text=True)
        with suppress(subprocess.TimeoutExpired):
            started.wait(share * whole)
        asked = time.monotonic()
        started.send_signal(number)
        _, told = started.communicate(timeout=60)
        took = time.monotonic() - asked
        lines = re.findall("(?:interrupted|preempted): |stopped by ", told)  # a progress bar may stand before it
        assert "Traceback" not in told, (share, told)
        assert started.returncode in (0, 130 if number == signal.SIGINT else 75), (share, started.returncode, told)
        assert len(lines) == (started.returncode != 0), (share, told)
        assert started.returncode or took < max(1.0, 0.15 * whole), (share, took, "it went on to its end")
