"""A Hugging Face hub on loopback: the few endpoints that huggingface_hub asks for to read and to write model repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    """What a repository with the files of a folder holds."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class HubServer(ThreadingHTTPServer):
    """``repositories``: OWNER/NAME -> revision -> files. Writing, and reading those in ``private``, needs ``token``."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Files]] = {}
        self.private: set[str] = set()
        self.token = "hf_of_the_test"
        self.fetched: list[tuple[str, str]] = []  # repository and file of every download

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def serve(self, repo: str, files: Files, revision: str = "main") -> str:
        self.repositories.setdefault(repo, {})[revision] = files
        return repo

    def downloads(self, repo: str) -> set[str]:
        return {file for owner, file in self.fetched if owner == repo}


def commit_of(files: Files) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **{key.replace("_", "-"): text for key, text in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def trusted(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {self.server.token}"

    def find(self, repo: str, revision: str) -> Files | None:
        """The files of a revision, a branch or a commit; None: refused, as the hub does."""
        revisions = self.server.repositories.get(repo)
        if revisions is None or (repo in self.server.private and not self.trusted()):
            self.refuse(401, "RepoNotFound")
            return None
        commits = {commit_of(files): files for files in revisions.values()}
        found = (commits | revisions).get(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound")
        return found

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if (files := self.find(asked[1], asked[2] or "main")) is not None:
                about = {"id": asked[1], "sha": commit_of(files), "private": asked[1] in self.server.private, "tags": []}
                self.answer(about | {"siblings": [{"rfilename": name} for name in files]})
        elif asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if (files := self.find(asked[1], asked[2])) is not None:
                digest = lambda content: hashlib.sha1(content).hexdigest()
                self.answer([{"type": "file", "path": name, "size": len(one), "oid": digest(one)} for name, one in files.items()])
        elif asked := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (files := self.find(asked[1], asked[2])) is None:
                return
            if asked[3] not in files:
                self.refuse(404, "EntryNotFound")
                return
            if self.command == "GET":
                self.server.fetched.append((asked[1], asked[3]))
            content = files[asked[3]]
            self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit_of(files))
        else:
            self.refuse(404, "NotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        server, path = self.server, urlsplit(self.path).path
        if path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif not self.trusted():
            self.refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            asked = json.loads(content)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = repo in server.repositories
            if not known:
                server.serve(repo, {})
                # Two ages of huggingface_hub.
                server.private |= {repo} if asked.get("private") or asked.get("visibility") == "private" else set()
            self.answer({"url": f"{server.url}/{repo}", "name": repo, "id": repo}, 409 if known else 200)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(content)["files"]]
            self.answer({"files": modes})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files = server.repositories[found[1]]["main"]
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitOid": commit_of(files), "commitUrl": f"{server.url}/{found[1]}/commit/{commit_of(files)}"})
        else:
            self.refuse(404, "NotFound")


@contextmanager
def hub_server() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of huggingface_hub as HF_ENDPOINT and HF_HOME in the environment of a new process give them; its code stays as it is."""
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
