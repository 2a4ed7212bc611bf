"""Where vectors may be: what ``--store`` takes, and the databases behind it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from qrag_jax.config.parse import unknown
from qrag_jax.config.secrets import redact
from qrag_jax.retrieve.stores.protocol import VectorStore

Opener = Callable[[str, str, int], VectorStore]
"""(place without its scheme, name of the index in it, width of a vector) -> the store. Opens nothing that another process could hold."""
STORES: dict[str, Opener | str] = {
    "postgresql": "qrag_jax.retrieve.stores.postgres:Postgres",
    "lancedb": "qrag_jax.retrieve.stores.lance:Lance",
    "qdrant": "qrag_jax.retrieve.stores.qdrant_edge:QdrantEdge",
    "qdrant://": "qrag_jax.retrieve.stores.qdrant:QdrantServer",
    "duckdb": "qrag_jax.retrieve.stores.duck:Duck",
}
"""Scheme -> what opens such a store; "SCHEME://": of an address instead of a path. Add a function of your own to use another database."""
FORMS = "postgresql://HOST/DATABASE, lancedb:FOLDER, qdrant:FOLDER, qdrant:http://HOST:6333 or duckdb:FILE"
SECRET = ("password", "sslpassword", "api_key", "apikey", "api-key", "token")


def checked_place(place: str) -> str:
    """A place as an index records it: with an absolute path, if it is one.

    Raises ValueError on an unknown form, and when it holds a password or a key.
    """
    scheme, colon, rest = place.partition(":")
    scheme = {"postgres": "postgresql"}.get(scheme, scheme)
    if not colon or not rest.strip("/"):
        raise ValueError(f"store = {redact(place)!r}: must be {FORMS}")
    if scheme not in STORES:
        raise unknown("store", redact(scheme), [name for name in STORES if name.isidentifier()])
    address = urlsplit(place if scheme == "postgresql" else rest)
    names = {name.lower() for name, _ in parse_qsl(address.query)}
    if address.password or names & set(SECRET) or (address.username and scheme != "postgresql"):
        shown = redact(place.partition("?")[0])
        raise ValueError(f"store = {shown!r}: holds a password or a key, which would be written to files; {_secret_of(scheme)}")
    if scheme == "postgresql":
        if not rest.startswith("//"):
            raise ValueError(f"store = {place!r}: must be postgresql://HOST/DATABASE")
        return f"{scheme}:{rest}"
    return f"{scheme}:{rest if address.scheme and '://' in rest else Path(rest).expanduser().resolve()}"


def _secret_of(scheme: str) -> str:
    known = {
        "postgresql": "give the password in PGPASSWORD, or in the file that PGPASSFILE names",
        "qdrant": "give the key in QDRANT_API_KEY",
    }
    return known.get(scheme, "give it in the environment variables of the object store")


def open_store(place: str, name: str, width: int) -> VectorStore:
    """Opens the vectors that are called ``name`` in a :func:`checked_place`. Raises ValueError when the package for it is not installed."""
    scheme, _, rest = place.partition(":")
    opener = STORES.get(f"{scheme}://", STORES[scheme]) if "://" in rest else STORES[scheme]
    if isinstance(opener, str):
        module, _, attribute = opener.partition(":")
        try:
            opener = getattr(import_module(module), attribute)
        except ImportError as error:
            raise ValueError(f"store {scheme}: needs the package {error.name}: pip install 'qrag-jax[stores]'") from error
    assert callable(opener)
    return opener(place if scheme == "postgresql" else rest, name, width)
