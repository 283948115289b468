"""Who does what: one row a piece of work that somebody is doing now. Serves stage keys and expert requests alike.

A claim is held by a heartbeat. If its owner dies, the claim expires and another may take it over.
"""

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Engine, Float, String, create_engine, delete, event, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.errors import StoreError


class Base(DeclarativeBase):
    """Tables that processes share."""


class Claim(Base):
    """`owner` works on `key`; the claim ends at `expires` (Unix seconds) unless a heartbeat moves it."""

    __tablename__ = "claims"
    key: Mapped[str] = mapped_column(String(160), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    heartbeat: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)


def open_database(url: str) -> Engine:
    """An engine for SQLite (WAL, waits for locks) or PostgreSQL, e.g. "sqlite:////home/me/.redraft/state.db"."""
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA busy_timeout=30000")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

    try:
        create_tables(engine)
    except OperationalError as error:
        raise StoreError(f"cannot open the database {engine.url.render_as_string()}: {error.orig}") from error
    return engine


def create_tables(engine: Engine) -> None:
    """Create the tables of all modules that are imported and that the database lacks.

    Two processes may begin at once: what was not there when this one looked, the other may have made since.
    """
    try:
        Base.metadata.create_all(engine)
    except (OperationalError, ProgrammingError, IntegrityError):  # the drivers' names for "it exists already"
        Base.metadata.create_all(engine)


def take_claims(connection: Connection, keys: Collection[str], *, owner: str, ttl_s: float) -> set[str]:
    """Take those of some hundred `keys` that nobody holds or whose holder has expired; those that are ours now.

    Claims of others that are alive are not locked: their owners give back and prolong many at once, in any order. New
    ones are made in order, so that two that want the same keys never wait for each other crosswise.
    """
    now = time.time()
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    row = {"owner": owner, "heartbeat": now, "expires": now + ttl_s}
    connection.execute(delete(Claim).where(Claim.key.in_(keys), Claim.expires < now))
    connection.execute(insert(Claim).on_conflict_do_nothing(), [{"key": key, **row} for key in sorted(keys)])
    return set(connection.scalars(select(Claim.key).where(Claim.key.in_(keys), Claim.owner == owner)))


class Claims:
    """The claims of one process (`owner`) in a shared database."""

    def __init__(self, engine: Engine, *, owner: str | None = None, ttl_s: float = 60.0) -> None:
        self._engine = engine
        self.owner = owner or uuid.uuid4().hex
        self.ttl_s = ttl_s

    def take(self, key: str) -> bool:
        """Take `key` if nobody holds it or its holder has expired. True if it is ours now; never waits."""
        return self.take_all([key]) == {key}

    def take_all(self, keys: Collection[str]) -> set[str]:
        """`take` for some hundred keys at once, in one transaction; those that are ours now."""
        with self._engine.begin() as connection:
            return take_claims(connection, keys, owner=self.owner, ttl_s=self.ttl_s)

    def beat(self, key: str) -> bool:
        """Prolong a claim of ours. False if it was lost (it expired and another took it)."""
        now = time.time()
        statement = update(Claim).where(Claim.key == key, Claim.owner == self.owner)
        with self._engine.begin() as connection:
            return connection.execute(statement.values(heartbeat=now, expires=now + self.ttl_s)).rowcount == 1

    def beat_all(self) -> None:
        """Prolong every claim of ours that nobody has taken over."""
        now = time.time()
        with self._engine.begin() as connection:
            mine = update(Claim).where(Claim.owner == self.owner)
            connection.execute(mine.values(heartbeat=now, expires=now + self.ttl_s))

    def release(self, key: str) -> None:
        """Give a claim of ours back."""
        self.release_all([key])

    def release_all(self, keys: Collection[str]) -> None:
        """Give some hundred claims of ours back, in one transaction."""
        with self._engine.begin() as connection:
            connection.execute(delete(Claim).where(Claim.key.in_(keys), Claim.owner == self.owner))

    def holders(self, prefix: str) -> dict[str, str]:
        """Key -> owner of all claims, anybody's, whose key begins with `prefix` and that have not expired."""
        alive = Claim.key.startswith(prefix, autoescape=True), Claim.expires >= time.time()
        with self._engine.connect() as connection:
            return {row.key: row.owner for row in connection.execute(select(Claim.key, Claim.owner).where(*alive))}

    @contextmanager
    def hold(self, key: str, *, poll_s: float = 0.5) -> Iterator[Callable[[], bool]]:
        """Hold `key` while the block runs, waiting for whoever holds it first. A thread keeps the heartbeat.

        What the block gets says whether the claim is still held: a database that was away too long may have lost it.
        """
        unique = Claims(
            self._engine, ttl_s=self.ttl_s
        )  # an owner a block: two threads of one process exclude each other
        while not unique.take(key):
            time.sleep(poll_s)
        done = threading.Event()

        def keep() -> None:
            while not done.wait(unique.ttl_s / 4):
                with suppress(SQLAlchemyError):  # a busy or absent database: the next beat may reach it
                    unique.beat(key)

        thread = threading.Thread(target=keep, name=f"claim-{key[:16]}", daemon=True)
        thread.start()
        try:
            yield lambda: unique.beat(key)
        finally:
            done.set()
            thread.join()
            unique.release(key)
