"""PostgreSQL with the extension pgvector. Each index has a table of its own; the table ``qrag_indexes`` has the records of all.

Scores are computed by the function ``inner_product`` and not by an operator, so no approximate index (HNSW, IVFFlat) is ever used for them:
a search is one pass over the rows in its ranges. All queries of a search are one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import psycopg
from jaxtyping import Float
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from qrag_jax.config.secrets import redact
from qrag_jax.retrieve.stores.protocol import Best, Query, Span
from qrag_jax.rundir.log import CannotWrite, Unreachable

T = TypeVar("T")
TOGETHER = 256  # queries in one statement
INLINE = 1900  # wider vectors do not fit a page of 8 KB, so PostgreSQL keeps them beside the row
SECONDS = 15  # to wait for a connection
_RECORDS = sql.SQL("CREATE TABLE IF NOT EXISTS qrag_indexes (name text PRIMARY KEY, record text NOT NULL)")
_TABLE = sql.SQL("CREATE TABLE IF NOT EXISTS {table} (row bigint PRIMARY KEY, embedding vector({width}) NOT NULL)")
_RECORD = sql.SQL("INSERT INTO qrag_indexes (name, record) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET record = excluded.record")
# A row is in a multirange if it is in one of its ranges; the comparisons before that let the key's index find the span.
_BEST = sql.SQL(
    "SELECT q.n, found.row, found.score "
    "FROM unnest(%s::vector[], %s::text[]::int8multirange[]) WITH ORDINALITY AS q (vector, ranges, n) "
    "CROSS JOIN LATERAL ("
    "SELECT t.row, inner_product(t.embedding, q.vector) AS score FROM {table} AS t "
    "WHERE t.row >= lower(q.ranges) AND t.row < upper(q.ranges) AND t.row <@ q.ranges "
    "ORDER BY score DESC, t.row LIMIT %s) AS found"
)


class Postgres:
    """A :class:`~qrag_jax.retrieve.stores.protocol.VectorStore`. ``url`` is a libpq URL without a password, which libpq takes from
    PGPASSWORD or from the file that PGPASSFILE names (else ~/.pgpass)."""

    def __init__(self, url: str, name: str, width: int) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error as error:
            raise ValueError(f"store = {redact(url)}: {error}") from error
        self._url, self._name, self._width = url, name, width
        self._table = sql.Identifier(name)
        self.shown = f"table {name} of {redact(url)}"
        if "password" in parts:
            raise ValueError(f"store = {redact(url)}: holds a password; give it in PGPASSWORD, or in the file that PGPASSFILE names")
        self._open: psycopg.Connection[Any] | None = None

    def read_record(self) -> str | None:
        def read(connection: psycopg.Connection[Any]) -> str | None:
            if not _has(connection, "qrag_indexes") or not _has(connection, self._name):
                return None
            found = connection.execute("SELECT record FROM qrag_indexes WHERE name = %s", (self._name,)).fetchone()
            return None if found is None else str(found[0])

        return self._run(read)

    def write_record(self, record: str) -> None:
        def write(connection: psycopg.Connection[Any]) -> None:
            with connection.transaction():
                if not _has(connection, "qrag_indexes"):
                    connection.execute(_RECORDS)
                if not _has(connection, self._name):
                    connection.execute(_TABLE.format(table=self._table, width=sql.Literal(self._width)))
                    if self._width <= INLINE:
                        connection.execute(
                            sql.SQL("ALTER TABLE {table} ALTER COLUMN embedding SET STORAGE PLAIN").format(table=self._table)
                        )
                connection.execute(_RECORD, (self._name, record))

        self._run(write)

    def put(self, start: int, end: int, vectors: Float[np.ndarray, "R D"]) -> None:
        def write(connection: psycopg.Connection[Any]) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(sql.SQL("DELETE FROM {table} WHERE row >= %s AND row < %s").format(table=self._table), (start, end))
                with cursor.copy(
                    sql.SQL("COPY {table} (row, embedding) FROM STDIN WITH (FORMAT BINARY)").format(table=self._table)
                ) as copy:
                    copy.set_types(["int8", "vector"])
                    for row, vector in enumerate(vectors, start):
                        copy.write_row((row, Vector(vector)))

        self._run(write)

    def keep(self, ranges: Sequence[Span]) -> None:
        statement = sql.SQL("DELETE FROM {table} WHERE NOT row <@ %s::int8multirange").format(table=self._table)
        self._run(lambda connection: connection.execute(statement, (_multirange(ranges),)))

    def read(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        statement = sql.SQL("SELECT vector_send(embedding) FROM {table} WHERE row >= %s AND row < %s ORDER BY row").format(
            table=self._table
        )
        found = self._run(lambda connection: connection.execute(statement, (start, end), binary=True).fetchall())
        raw = b"".join(value[4:] for (value,) in found)  # two numbers of 16 bits come before the coordinates
        return np.frombuffer(raw, ">f4").reshape(-1, self._width).astype(np.float32)

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        found: list[Best] = []
        for start in range(0, len(queries), TOGETHER):
            found += self._best(queries[start : start + TOGETHER], count)
        return found

    def _best(self, queries: Sequence[Query], count: int) -> list[Best]:
        given = ([Vector(query.vector) for query in queries], [_multirange(query.ranges.tolist()) for query in queries], count)
        statement = _BEST.format(table=self._table)
        rows = self._run(lambda connection: connection.execute(statement, given, binary=True).fetchall())
        found: list[tuple[list[int], list[float]]] = [([], []) for _ in queries]
        for number, row, score in rows:  # those of a query in order, best first
            found[number - 1][0].append(row)
            found[number - 1][1].append(score)
        return [Best(np.array(rows, np.int64), np.array(scores, np.float32)) for rows, scores in found]

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _run(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """``work``, once more with a new connection if the old one is lost: everything here may be done twice."""
        for last in (False, True):
            try:
                return work(self._connection())
            except psycopg.errors.DiskFull as error:
                raise CannotWrite(f"{self.shown}: the disk of the database is full; make room, then run the same command again") from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                self.close()
                if last:
                    raise Unreachable(f"{self.shown}: the connection was lost ({_line(error)})") from error
            except psycopg.Error as error:
                raise ValueError(f"{self.shown}: {_line(error)}") from error
        raise AssertionError

    def _connection(self) -> psycopg.Connection[Any]:
        if self._open is not None:
            return self._open
        try:
            options: dict[str, Any] = {"connect_timeout": SECONDS, "application_name": "qrag"}
            # No prepared statements: a pool of connections (PgBouncer) may stand before the database.
            connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=None, **options)
        except psycopg.OperationalError as error:
            text = _line(error)
            if any(word in text for word in ("authentication", "no password", "does not exist", "permission", "pg_hba")):
                raise ValueError(
                    f"{self.shown}: refused ({text}); the password is read from PGPASSWORD, or from the file that PGPASSFILE names"
                ) from error
            raise Unreachable(f"{self.shown}: cannot be reached ({text})") from error
        try:
            if not connection.execute("SELECT FROM pg_extension WHERE extname = 'vector'").rowcount:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except psycopg.Error as error:
            connection.close()
            raise ValueError(
                f"{self.shown}: needs the extension pgvector ({_line(error)}); an administrator installs it with CREATE EXTENSION vector"
            ) from error
        self._open = connection
        return connection


def _has(connection: psycopg.Connection[Any], table: str) -> bool:
    found = connection.execute("SELECT to_regclass(quote_ident(%s))", (table,)).fetchone()
    return found is not None and found[0] is not None


def _multirange(ranges: Sequence[Sequence[int]]) -> str:
    return "{" + ",".join(f"[{start},{end})" for start, end in ranges) + "}"


def _line(error: Exception) -> str:
    return redact(" ".join(str(error).split()))
