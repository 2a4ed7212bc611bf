"""The command ``qrag serve``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from qrag_jax.config.command_line import RARE
from qrag_jax.config.parse import require
from qrag_jax.config.secrets import clean_key
from qrag_jax.reader.make import open_reader
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.asking import RECORDED
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rundir.log import aside
from qrag_jax.serve.limits import Limits
from qrag_jax.serve.service import Service

KEY = "QRAG_API_KEY"
SHORTEST = 16  # characters of a key
AT_ONCE = 4  # answers that an endpoint writes
REPEATED = tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none; may be repeated)")


@dataclass(frozen=True)
class Serve:
    """Serve an index to applications and browsers over HTTP, and to agents over MCP.

    Requests must send the key in the variable QRAG_API_KEY, if it is set.

    Example: qrag serve docs.index --reader openai:http://localhost:9000/v1,MODEL
    """

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    reader: Annotated[str | None, tyro.conf.arg(metavar="READER", help_behavior_hint="(default: none, only search)")] = None
    """The LLM that answers from the picks: openai:URL,MODEL (its key in OPENAI_API_KEY), or flax:NAME (folder, .gguf file, hub name)."""
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on. The default is reached from this machine only."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    modes: Annotated[tuple[Mode, ...], tyro.conf.arg(metavar="MODE ...", help_behavior_hint="(default: the retriever's usual ones)")] = ()
    """How questions may be searched; the first is the usual one: multi, single, bm25, hybrid."""
    budget: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 8, or what the retriever reads)")] = None
    """The most picks of a question."""
    mcp: Annotated[Literal["http", "stdio"], tyro.conf.arg(metavar="HOW")] = "http"
    """How agents ask. http: at /mcp beside the other addresses. stdio: over standard input and output, without HTTP."""
    public: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let other machines ask without a key."""
    allow_host: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], RARE, REPEATED] = ()
    """A name under which this server is asked, besides localhost and IP addresses."""
    allow_origin: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], RARE, REPEATED] = ()
    """Another site whose pages may ask, such as https://example.org."""
    otel: Annotated[Literal["off", "spans", "texts"], RARE, tyro.conf.arg(metavar="HOW")] = "off"
    """OpenTelemetry spans of each question and its steps, sent to where OTEL_EXPORTER_OTLP_ENDPOINT says. texts: with the question, the
    passages and the answer."""
    characters: Annotated[int, RARE] = Limits.characters
    """Longest question, in characters."""
    requests: Annotated[int, RARE] = Limits.requests
    """Requests at once: in search, in line, or being answered. More are refused with status 429."""
    answers: Annotated[int | None, RARE, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 4 for openai:, 1 for flax:)")] = None
    """Answers that the reader writes at once."""
    seconds: Annotated[float, RARE] = Limits.seconds
    """Longest time of a request."""
    reader_tokens: Annotated[int, RARE] = 256
    """Longest answer, in tokens of the reader."""
    reader_timeout: Annotated[float, RARE] = 30.0
    """Seconds to wait for an openai: reader before asking again, once."""
    retriever: Annotated[str | None, RARE, tyro.conf.arg(metavar="RUN", help_behavior_hint=RECORDED)] = None
    """The retriever that the index was built with; needed only if it has moved."""


def run_serve(command: Serve, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises ValueError on bad input, Interrupted after Ctrl-C."""
    try:
        from qrag_jax.serve.app import make_app, told
        from qrag_jax.serve.guard import Access
        from qrag_jax.serve.mcp import run_stdio
        from qrag_jax.serve.server import address, bind, run
    except ImportError as error:
        raise ValueError(f"qrag serve needs the package {error.name}: pip install 'qrag-jax[serve]'") from error
    if command.mcp == "stdio":
        _refuse_http(command)
        with aside():
            run_stdio(_service(command).start(), told)
        return
    access = Access(_key(command), _hosts(command), _origins(command))
    bound = bind(command.host, command.port)
    try:
        service = _service(command).start()
        index, place = service.index, address(bound, command.host)
        line = f"{index.path}: {len(index):,} chunks at {place} ({place}/docs describes the addresses); Ctrl-C stops"
        run(make_app(service, access), service, bound, ready=lambda: say(line))
    finally:
        bound.close()


def _service(command: Serve) -> Service:
    limits = _limits(command)
    index = Index.open(command.index)
    reader = _reader(command)
    retriever = Retriever.of_index(index, command.retriever)
    if command.otel == "off":
        return Service(index, retriever, reader, limits, command.modes)
    from qrag_jax.serve.tracing import TracedService, send_spans

    return TracedService(index, retriever, reader, limits, command.modes, tracer=send_spans(), texts=command.otel == "texts")


def _refuse_http(command: Serve) -> None:
    """Raises ValueError if an option was given that only HTTP has."""
    for name in ("host", "port", "public", "allow_host", "allow_origin"):
        value = getattr(command, name)
        require(value == getattr(Serve, name), name, value, "left out with --mcp stdio, which listens on no address")


def _key(command: Serve) -> str | None:
    """The key of requests. Raises ValueError if one is needed and not given."""
    from qrag_jax.serve.server import is_loopback

    require(0 <= command.port <= 65535, "port", command.port, "in 0..65535")
    key = clean_key(os.environ.get(KEY, ""), KEY) or None
    if key is not None:
        if len(key) < SHORTEST:
            raise ValueError(f"{KEY}: has {len(key)} characters; it must have {SHORTEST} or more, such as `openssl rand -hex 16` gives")
        require(not command.public, "public", command.public, f"left out when {KEY} is set, which every request must then send")
    elif not command.public and not is_loopback(command.host):
        raise ValueError(
            f"host = {command.host!r}: other machines reach this address, and there is no key: set {KEY} to a key of {SHORTEST} or more "
            "characters, or give --public to answer anyone"
        )
    return key


def _hosts(command: Serve) -> tuple[str, ...]:
    for name in command.allow_host:
        require(bool(name) and not set(name) & set("/:* "), "allow_host", name, "a name such as search.example.org, without a port")
    own = () if command.host.replace(".", "").isdigit() or ":" in command.host else (command.host,)
    return tuple(name.lower() for name in (*command.allow_host, *own))


def _origins(command: Serve) -> tuple[str, ...]:
    for origin in command.allow_origin:
        scheme, _, rest = origin.partition("://")
        valid = scheme in ("http", "https") and rest and not set(rest) & set("/?#* @")
        require(bool(valid), "allow_origin", origin, "a site such as https://example.org, without a path")
    return command.allow_origin


def _limits(command: Serve) -> Limits:
    flax = (command.reader or "").startswith("flax:")
    require(not flax or command.answers in (None, 1), "answers", command.answers, "1 with a flax: reader, which writes one at a time")
    answers = command.answers if command.answers is not None else 1 if flax else AT_ONCE
    return Limits(command.budget, command.characters, command.requests, answers, command.seconds)


def _reader(command: Serve) -> Reader | None:
    for name in ("reader_tokens", "reader_timeout"):
        value = getattr(command, name)
        require(0 < value < float("inf"), name, value, "above 0")
    if command.reader is None:
        return None
    return open_reader(command.reader, max_new_tokens=command.reader_tokens, timeout=command.reader_timeout, retries=1)
