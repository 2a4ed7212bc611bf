"""``qrag serve`` as it is typed: what it refuses; and as a process: ready, changed while it serves, stopped under load."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.__main__ import main
from qrag_jax.serve.server import is_loopback
from tests.support.index import CHUNKS, write_small_export
from tests.support.processes import start_python

QUESTION = "Where is Mary?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with its retriever, and a folder of its text."""
    place = tmp_path_factory.mktemp("serving")
    write_small_export(place / "run/export")
    (place / "texts").mkdir()
    (place / "texts/story.txt").write_text(" ".join(CHUNKS))
    assert main(["index", "build", str(place / "texts"), str(place / "index"), "--retriever", str(place / "run")]) == 0
    return place


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main(["serve", *map(str, words)]) == 64
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_bad_options_are_one_line(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QRAG_API_KEY", raising=False)
    index = place / "index"
    for words, message in (
        (("--host", "0.0.0.0"), "--host = '0.0.0.0': other machines reach this address, and there is no key: set QRAG_API_KEY"),
        (("--host", "::"), "other machines reach this address"),
        (("--host", "no.such.name.invalid"), "--host = 'no.such.name.invalid': no such address"),
        (("--port", "70000"), "--port = 70000: must be in 0..65535"),
        (("--requests", "0"), "--requests = 0: must be in 1..1,000,000"),
        (("--characters", "-1"), "--characters = -1: must be in"),
        (("--seconds", "0"), "--seconds = 0.0: must be above 0"),
        (("--seconds", "nan"), "--seconds = nan: must be above 0"),
        (("--budget", "0"), "--budget = 0: must be in 1.."),
        (("--budget", "99", "--port", "0"), "--budget = 99: must be at most 5: the retriever reads 64 tokens"),
        (("--modes", "multy"), "--modes = 'multy': unknown; known: multi, single, bm25, hybrid; did you mean"),
        (("--allow-host", "a/b"), "--allow-host = 'a/b': must be a name such as"),
        (("--allow-origin", "*"), "--allow-origin = '*': must be a site such as"),
        (("--allow-origin", "https://a.example/x"), "must be a site such as"),
        (("--reader", "gpt", "--port", "0"), "--reader = 'gpt': must be flax:NAME"),
        (("--reader", "flax:x", "--answers", "2"), "--answers = 2: must be 1 with a flax: reader"),
        (("--reader-tokens", "0", "--port", "0"), "--reader-tokens = 0: must be above 0"),
    ):
        assert message in refused(capsys, index, *words)
    assert "not an index" in refused(capsys, place / "absent", "--port", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port = {port}: 127.0.0.1 port {port} cannot be used (Address already in use)" in refused(capsys, index, "--port", port)
    monkeypatch.setenv("QRAG_API_KEY", "short")
    assert "QRAG_API_KEY: has 5 characters; it must have 16 or more" in refused(capsys, index)
    monkeypatch.setenv("QRAG_API_KEY", "a key with spaces in it")
    assert "QRAG_API_KEY: the key holds a space" in refused(capsys, index)
    monkeypatch.setenv("QRAG_API_KEY", "0123456789abcdef")
    assert "--public = True: must be left out when QRAG_API_KEY is set" in refused(capsys, index, "--public")


def test_what_is_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")] == [True, True, True, False, False]


class Server:
    """``qrag serve`` as a process that is ready."""

    def __init__(self, place: Path, *options: str, **variables: str) -> None:
        self.process = start_python("-m", "qrag_jax", "serve", str(place), "--port", "0", *options, **variables)
        self.said: list[str] = []
        while True:
            line = self._line()
            if found := re.search(r" chunks at http://[\w.]+:(\d+) ", line):
                self.port = int(found[1])
                return

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.said.append(line)
        assert line, "".join(self.said)
        return line

    def ask(self, path: str = "/search", body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            given = json.dumps({"question": QUESTION} if body is None else body)
            method, sent = ("GET", None) if path in ("/health", "/documents") else ("POST", given)
            connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_a_server_is_asked_changed_and_stopped_under_load(place: Path, tmp_path: Path) -> None:
    server = Server(place / "index", QRAG_API_KEY="0123456789abcdef")
    key = {"Authorization": "Bearer 0123456789abcdef"}
    try:
        assert server.ask()[0] == 401
        status, before = server.ask(**key)
        assert (status, len(before["steps"])) == (200, 4)
        (place / "texts/more.txt").write_text("Sandra took the milk to the garden. Nobody saw her.")
        assert main(["index", "sync", str(place / "texts"), str(place / "index")]) == 0
        until = time.monotonic() + 20
        while server.ask("/health")[1]["version"] == before["version"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert server.ask(**key)[1]["chunks"] == before["chunks"] + 2
        seen: list[int | str] = []
        over = threading.Event()

        def client() -> None:
            while not over.is_set():
                try:
                    seen.append(server.ask(**key)[0])
                except ConnectionRefusedError:
                    return
                except (OSError, http.client.HTTPException) as error:
                    seen.append(repr(error))

        clients = [threading.Thread(target=client) for _ in range(16)]
        for one in clients:
            one.start()
        while seen.count(200) < 30:
            time.sleep(0.01)
        code, output = server.end(signal.SIGTERM)
        over.set()
        for one in clients:
            one.join(20)
        assert (code, "stopped; every accepted request was answered" in output) == (0, True), output
        assert {one for one in seen if isinstance(one, int)} == {200, 503}
        # The system resets a connection that it had queued and the server had not accepted when the port was closed: one a client at most.
        lost = [one for one in seen if isinstance(one, str)]
        assert len(lost) <= len(clients)
        assert all("Connection reset by peer" in one for one in lost)
        assert "Traceback" not in output
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_ctrl_c_answers_what_was_accepted(place: Path) -> None:
    server = Server(place / "index", "--budget", "2")
    try:
        assert server.ask()[0] == 200
        with socket.create_connection(("127.0.0.1", server.port)):  # an idle connection holds nothing up
            code, output = server.end(signal.SIGINT)
        assert code == 130
        assert output.endswith("stopped; every accepted request was answered\ninterrupted: stopped by Ctrl-C\n")
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_in_one_line(place: Path, number: signal.Signals) -> None:
    server = Server(place / "index", "--budget", "2")
    try:
        server.process.send_signal(number)
        time.sleep(0.1)  # it waits longer than this for requests that are on their way
        code, output = server.end(number)
        assert code == 130
        assert output.endswith("interrupted: stopped at once; some requests were not answered\n")
        assert "Traceback" not in output
    finally:
        server.process.kill()
        server.process.communicate()
