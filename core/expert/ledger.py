"""Every reply that was ever paid for, by request key: written before it is used, never asked for again.

A request is claimed (core.claims) before it is sent, so that of all tasks and processes one sends it. Failures are
recorded too; a later run asks again. SQLite and PostgreSQL.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Float, Integer, String, Text, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapped, mapped_column

from core.claims import Base, Claim, create_tables
from core.errors import StoreError

_PREFIX = "expert:"
_CHUNK = 400  # keys a statement: databases bound the number of variables


class LedgerRow(Base):
    """One request's last outcome."""

    __tablename__ = "expert_replies"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    created: Mapped[float] = mapped_column(Float)
    model: Mapped[str] = mapped_column(String(200))
    prompt_version: Mapped[str] = mapped_column(String(100))
    raw: Mapped[str | None] = mapped_column(Text)
    finish_reason: Mapped[str | None] = mapped_column(String(50))
    prompt_tokens: Mapped[int | None] = mapped_column(Integer)
    completion_tokens: Mapped[int | None] = mapped_column(Integer)
    cost_usd: Mapped[float | None] = mapped_column(Float)
    latency_s: Mapped[float | None] = mapped_column(Float)
    attempts: Mapped[int] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a request. `failed`: no usable reply, `error` says why ("length", "no_json", "http_500: ...").

    usage, cost and raw text are kept for failures as well: a reply that is cut off was paid for.
    """

    key: str
    status: Literal["answered", "failed"]
    model: str
    prompt_version: str
    created: float = field(default_factory=time.time)
    raw: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    attempts: int = 0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """So many replies; the tokens of one, and its characters that can be read, on average."""

    replies: int
    prompt_tokens: float
    completion_tokens: float
    characters: float


class Ledger:
    """The replies in a shared database. Blocking: an event loop calls it from a thread."""

    def __init__(self, engine: Engine, *, ttl_s: float = 60.0) -> None:
        self._engine = engine
        self._ttl_s = ttl_s
        create_tables(engine)

    def session(self) -> "LedgerSession":
        """An owner of claims: two sessions exclude each other, also within one process."""
        return LedgerSession(self, self._engine, ttl_s=self._ttl_s)

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The last outcome of each of `keys` that has one."""
        found: dict[str, Reply] = {}
        with self._engine.connect() as connection:
            for chunk in chunks(keys):
                rows = connection.execute(select(LedgerRow.__table__).where(LedgerRow.key.in_(chunk)))
                found |= {row["key"]: Reply(**row) for row in rows.mappings()}
        return found

    def usage(self, model: str, prompt_version: str) -> Usage:
        """What answers of this model to this prompt have taken, as far as the endpoint told."""
        tokens = LedgerRow.prompt_tokens, LedgerRow.completion_tokens
        query = select(func.count(), *(func.avg(column) for column in (*tokens, func.length(LedgerRow.raw)))).where(
            LedgerRow.model == model,
            LedgerRow.prompt_version == prompt_version,
            LedgerRow.status == "answered",
            *(column.is_not(None) for column in tokens),
        )
        with self._engine.connect() as connection:
            replies, *means = connection.execute(query).one()
        prompt, completion, characters = (float(mean or 0) for mean in means)
        return Usage(replies=replies, prompt_tokens=prompt, completion_tokens=completion, characters=characters)


class LedgerSession:
    """One worker's view: what it may send, and where it writes what it got. Many keys a transaction, for speed."""

    def __init__(self, ledger: Ledger, engine: Engine, *, ttl_s: float) -> None:
        self._ledger = ledger
        self.engine = engine
        self.ttl_s = ttl_s
        self.owner = uuid.uuid4().hex
        self._insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]
        self.started = time.time()
        self.beat_s = ttl_s / 4

    def claim(self, keys: Sequence[str]) -> dict[str, Reply | bool]:
        """What to do about each key: a Reply to use, True (ours to send), or False (somebody else is sending it).

        A failure counts as a reply if it was recorded since this session began: nobody pays twice for it in one run.
        """
        held = {key.removeprefix(_PREFIX) for key in self._take([_PREFIX + key for key in keys])}
        replies = self._ledger.find(keys)  # after the claim: whoever held it before has written by now
        final = {key for key, reply in replies.items() if reply.status == "answered" or reply.created >= self.started}
        self._give_back(held & final)
        return {key: replies[key] if key in final else key in held for key in keys}

    def record(self, replies: Sequence[Reply]) -> None:
        """Write outcomes and give their claims back, in one transaction. A failure never replaces an answer."""
        statement = self._insert(LedgerRow)
        names = [item.name for item in fields(Reply)]
        statement = statement.on_conflict_do_update(
            index_elements=["key"],
            set_={name: statement.excluded[name] for name in names},
            where=LedgerRow.status != "answered",
        )
        with transaction(self.engine) as connection:
            connection.execute(statement, [asdict(reply) for reply in sorted(replies, key=lambda reply: reply.key)])
            self._delete(connection, {reply.key for reply in replies})

    def release(self, key: str) -> None:
        """Give a claim back without an outcome."""
        self._give_back({key})

    def beat(self) -> None:
        """Prolong every claim of this session."""
        now = time.time()
        with transaction(self.engine) as connection:
            mine = update(Claim).where(Claim.owner == self.owner)
            connection.execute(mine.values(heartbeat=now, expires=now + self.ttl_s))

    def close(self) -> None:
        """Give back whatever is still claimed, after an interruption."""
        with transaction(self.engine) as connection:
            connection.execute(delete(Claim).where(Claim.owner == self.owner))

    def _take(self, names: Sequence[str]) -> list[str]:
        """Claim those of `names` that are free or whose holder has expired; returns what is ours."""
        now = time.time()
        statement = self._insert(Claim)
        columns = ("owner", "heartbeat", "expires")
        statement = statement.on_conflict_do_update(
            index_elements=["key"],
            set_={column: statement.excluded[column] for column in columns},
            where=Claim.expires < now,
        )
        row = {"owner": self.owner, "heartbeat": now, "expires": now + self.ttl_s}
        taken: list[str] = []
        with transaction(self.engine) as connection:
            # sorted: two sessions that want the same keys must not wait for each other crosswise
            connection.execute(statement, [{"key": name, **row} for name in sorted(names)])
            for chunk in chunks(names):
                ours = select(Claim.key).where(Claim.key.in_(chunk), Claim.owner == self.owner)
                taken += connection.scalars(ours)
        return taken

    def _give_back(self, keys: set[str]) -> None:
        if keys:
            with transaction(self.engine) as connection:
                self._delete(connection, keys)

    def _delete(self, connection: Connection, keys: set[str]) -> None:
        for chunk in chunks([_PREFIX + key for key in sorted(keys)]):
            connection.execute(delete(Claim).where(Claim.key.in_(chunk), Claim.owner == self.owner))


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction whose failure (disk full, database gone) is a StoreError that says so."""
    try:
        with engine.begin() as connection:
            yield connection
    except OperationalError as error:
        raise StoreError(f"the ledger of expert replies cannot be written: {error.orig}") from error


def chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many at a time as a statement may name."""
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
