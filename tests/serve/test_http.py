"""The HTTP interface: what it gives, what it refuses and how, and what every response carries."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from qrag_jax import Index, Retriever
from qrag_jax.reader.protocol import ReaderError
from qrag_jax.retrieve.batching import Batcher
from qrag_jax.rundir.log import Unreachable
from qrag_jax.serve.app import make_app
from qrag_jax.serve.guard import BODY, Access
from qrag_jax.serve.limits import Limits
from qrag_jax.serve.service import Service
from tests.support.index import small_retriever
from tests.support.serving import QUESTION, TEXTS, SlowReader, build

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(scope="module")
def index(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build(retriever, tmp_path_factory.mktemp("http") / "index")


@pytest.fixture(scope="module")
def service(retriever: Retriever, index: Index) -> Iterator[Service]:
    with Service(index, retriever, SlowReader("In the ", "garden ", "[", "1][9]."), Limits(characters=100)) as service:
        yield service


def client(service: Service, **access: Any) -> TestClient:
    return TestClient(make_app(service, Access(**access)), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[TestClient]:
    with client(service) as http:
        yield http


def events(text: str) -> list[tuple[str, Any]]:
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def refused(response: Any, status: int) -> str:
    """The line of an error, which must have the one form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    tree = response.json()
    assert (set(tree), tree["status"]) == ({"status", "error"}, status)
    assert "\n" not in tree["error"]
    return str(tree["error"])


def test_a_search_is_that_of_the_retriever(http: TestClient, retriever: Retriever, index: Index) -> None:
    tree = http.post("/search", json={"question": QUESTION, "budget": 3}).json()
    steps = list(retriever.stream(QUESTION, index, 3))
    assert [one["chunk"] for one in tree["steps"]] == [step.pick.chunk for step in steps]
    assert [one["q"] for one in tree["steps"]] == pytest.approx([step.pick.q for step in steps], abs=1e-5)
    assert [one["text"] for one in tree["steps"]] == [step.pick.text for step in steps]
    assert tree["version"] == index.version
    assert (tree["mode"], tree["score"], tree["chunks"], tree["notes"], tree["fits"]) == ("multi", "Q", len(index), [], None)
    assert {one["place"] for one in tree["steps"]} <= {"a.pdf, page 3", "b.html, heading Rest", "c.txt:0-28", "c.txt:29-41", "c.txt:42-57"}
    tree = http.post("/search", json={"question": QUESTION, "mode": "single", "filter": {"year": 2024}, "budget": 5}).json()
    assert {one["source"] for one in tree["steps"]} == {"a.pdf"}
    assert tree["notes"] == ["2 picks, fewer than budget = 5: the index has no more chunks that match the filter"]


def test_steps_and_answers_come_as_events(http: TestClient) -> None:
    found = events(http.post("/search/stream", json={"question": QUESTION, "budget": 2}).text)
    assert [name for name, _ in found] == ["step", "step", "result"]
    assert found[-1][1]["steps"] == [step for _, step in found[:2]]
    response = http.post("/answer/stream", json={"question": QUESTION, "budget": 2})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert [name for name, _ in found] == ["step", "step", *["piece"] * (len(found) - 3), "result"]
    assert len(found) > 5
    result = found[-1][1]
    assert "".join(piece for name, piece in found if name == "piece") == result["text"] == "In the garden [1]."
    assert (result["found"], result["removed"], len(result["citations"]), len(result["also_read"])) == (True, [9], 1, 1)
    assert result == http.post("/answer", json={"question": QUESTION, "budget": 2}).json() | {
        "seconds": result["seconds"],
        "search": result["search"],
    }
    none = http.post("/answer", json={"question": QUESTION, "least_q": 1e6}).json()
    assert (none["found"], none["judge"], none["text"]) == (False, "stop rule", "not in the documents")


def test_documents_health_metrics(http: TestClient, index: Index) -> None:
    tree = http.get("/documents").json()
    assert [one["name"] for one in tree["documents"]] == ["a.pdf", "b.html", "c.txt"]
    assert tree["documents"][0] == {"name": "a.pdf", "chunks": 2, "characters": 44, "parts": 1, "metadata": {"page": 3, "year": 2024}}
    tree = http.get("/documents", params={"offset": 1, "limit": 1}).json()
    assert (tree["total"], [one["name"] for one in tree["documents"]]) == (3, ["b.html"])
    assert "limit = '0': must be greater than or equal to 1" in refused(http.get("/documents", params={"limit": 0}), 422)
    health = http.get("/health").json()
    assert {name: health[name] for name in ("live", "ready", "stale", "requests", "modes", "answers", "key")} == {
        "live": True,
        "ready": True,
        "stale": None,
        "requests": 0,
        "modes": ["multi", "single"],
        "answers": True,
        "key": False,
    }
    http.post("/search", json={"question": QUESTION})
    text = http.get("/metrics").text
    assert 'qrag_requests_total{route="/search",status="200"}' in text
    assert f"qrag_index_chunks {float(len(index))}" in text
    assert "qrag_pass_questions_bucket" in text
    assert QUESTION not in text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "question is missing: send a JSON object with it"),
        ({"question": ""}, "question is empty"),
        ({"question": "x" * 101}, "question = 'x"),
        ({"question": 3}, "question = 3: must be a valid string"),
        ({"question": QUESTION, "budget": "4"}, "budget = '4': must be a valid integer"),
        ({"question": QUESTION, "budget": True}, "budget = True: must be a valid integer"),
        ({"question": QUESTION, "budget": 0}, "budget = 0: must be >= 1"),
        ({"question": QUESTION, "budget": 99}, "budget = 99: must be at most 5"),
        ({"question": QUESTION, "bugdet": 3}, "body = 'bugdet': unknown field; known: question, budget, "),
        ({"question": QUESTION, "mode": "multy"}, "mode = 'multy': must be 'multi', 'single', 'bm25' or 'hybrid'"),
        ({"question": QUESTION, "mode": "bm25"}, "mode = 'bm25': must be one that is served: multi, single"),
        ({"question": QUESTION, "stop": True}, "stop = True: this retriever has no calibrated threshold"),
        ({"question": QUESTION, "filter": {"yaer": 1}}, "filter = 'yaer': unknown; known: source, "),
        ({"question": QUESTION, "filter": "year=1"}, "filter = 'year=1': must be a valid dictionary"),
        ({"question": "Where is \udce9?"}, "question"),
        ([], "body = []: must be a valid dictionary"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(http: TestClient, body: Any, message: str) -> None:
    for path in ("/search", "/search/stream", "/answer", "/answer/stream"):
        response = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert message in refused(response, 422)


def test_what_is_no_request_is_refused(http: TestClient) -> None:
    send = lambda content, **headers: http.post("/search", content=content, headers={"Content-Type": "application/json", **headers})
    assert refused(send(b"{"), 400).startswith("body: not JSON: ")
    assert refused(send(b"[" * 5000), 400).startswith("body: ")
    assert refused(send(b"\xff"), 400).startswith("body: not JSON: not UTF-8")
    assert "at most 65,536 bytes" in refused(send(b" " * (BODY + 1)), 413)
    assert "at most 65,536 bytes" in refused(send(iter([b" " * BODY, b"  "])), 413)
    assert "must be application/json" in refused(http.post("/search", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert "no such address" in refused(http.get("/absent"), 404)
    assert "does not take that method" in refused(http.get("/search"), 405)


def test_names_origins_and_keys_are_closed_by_default(service: Service) -> None:
    ask = {"question": QUESTION, "budget": 1}
    with client(service) as http:
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "[::1"):
            assert "must be localhost, an IP address" in refused(http.post("/search", json=ask, headers={"Host": host}), 421)
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7"):
            assert http.post("/search", json=ask, headers={"Host": host}).status_code == 200
        for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "http://127.0.0.1"):
            response = http.post("/search", json=ask, headers={"Origin": origin})
            assert "pages of other sites may not ask" in refused(response, 403)
            assert "access-control-allow-origin" not in response.headers
        assert http.post("/search", json=ask, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200
        assert refused(http.options("/search", headers={"Origin": "http://evil.example"}), 403)
    with client(service, hosts=("search.example",), origins=("https://site.example",), key=KEY) as http:
        assert http.get("/health", headers={"Host": "search.example"}).json()["key"] is True
        allowed = http.options("/search", headers={"Origin": "https://site.example", "Access-Control-Request-Method": "POST"})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, "https://site.example")
        for path in ("/", "/docs", "/openapi.json", "/health", "/health/live"):
            assert http.get(path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer é".encode()}):
            for method, path in (("GET", "/documents"), ("GET", "/metrics"), ("POST", "/search"), ("GET", "/absent")):
                response = http.request(method, path, headers={**headers, "Content-Type": "application/json"})  # type: ignore[dict-item]
                assert "Authorization: Bearer KEY" in refused(response, 401)
                assert KEY not in response.text
        assert http.post("/search", json=ask, headers={"Authorization": f"bearer {KEY}"}).status_code == 200


def test_every_response_is_closed_to_other_pages(http: TestClient) -> None:
    for response in (http.get("/health"), http.get("/absent"), http.post("/search", content=b"x"), http.get("/"), http.get("/docs")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"


def test_the_description_and_its_page(http: TestClient) -> None:
    tree = http.get("/openapi.json").json()
    assert set(tree["paths"]) == {
        "/search",
        "/search/stream",
        "/answer",
        "/answer/stream",
        "/documents",
        "/health",
        "/health/live",
        "/metrics",
    }
    assert tree["paths"]["/search"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorResponse")
    page = http.get("/docs").text
    for path in tree["paths"]:
        assert f" {path}</code></h2>" in page
    assert "http" not in page.replace("http://127.0.0.1:8000", "")
    assert "<script" not in page
    for words in ("required", "How many chunks to pick. Left out: 4.", "list of object (step, chunk, q, ", "string or null"):
        assert words in page


def test_faults_are_said_on_the_server_only(
    http: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: Exception) -> Any:
        def failing(*_: object, **__: object) -> None:
            raise error

        return failing

    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "step", fail(OSError("/secret/place is broken")))
        for path in ("/search", "/search/stream"):
            assert refused(http.post(path, json={"question": QUESTION}), 500) == "a fault of the server; its output says which"
    assert "/secret/place is broken" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "step", fail(Unreachable("table qrag_1 of postgresql://10.0.0.2/db: cannot be reached")))
        for path in ("/search", "/search/stream"):
            assert "the database of the vectors did not answer" in refused(http.post(path, json={"question": QUESTION}), 503)
    assert "10.0.0.2/db: cannot be reached" in capsys.readouterr().out
    monkeypatch.setattr(service.reader, "stream", fail(ReaderError("http://10.0.0.1: no connection")))
    assert "the reader did not answer" in refused(http.post("/answer", json={"question": QUESTION, "budget": 1}), 502)
    *_, (name, tree) = events(http.post("/answer/stream", json={"question": QUESTION, "budget": 1}).text)
    assert (name, tree["status"], "10.0.0.1" in tree["error"]) == ("error", 502, False)
    assert "http://10.0.0.1: no connection" in capsys.readouterr().out


def test_too_many_and_too_late(retriever: Retriever, index: Index) -> None:
    go = threading.Semaphore(0)
    reader = SlowReader("one ", "two", go=go)
    with Service(index, retriever, reader, Limits(requests=1, seconds=0.5)) as service, client(service) as http:
        with service.accept():
            response = http.post("/search", json={"question": QUESTION})
            assert "requests = 1: so many are being answered already" in refused(response, 429)
            assert int(response.headers["retry-after"]) >= 1
            assert refused(http.post("/search/stream", json={"question": QUESTION}), 429)
        assert "seconds = 0.5: the request was not answered" in refused(http.post("/answer", json={"question": QUESTION, "budget": 1}), 504)
        go.release(2)
    with client(service) as http:
        response = http.post("/search", json={"question": QUESTION})
        assert "is stopping" in refused(response, 503)
        assert response.headers["retry-after"] == "5"
        assert response.headers["connection"] == "close"
        assert http.get("/health").status_code == 503


def test_texts_of_documents_are_json(http: TestClient) -> None:
    tree = http.post("/search", json={"question": QUESTION, "budget": 5, "filter": ["source=b.html"]}).json()
    assert "<script>alert(1)</script>" in " ".join(one["text"] for one in tree["steps"])
    assert TEXTS[1].name == tree["steps"][0]["source"]
