"""Every reply that was ever paid for, by request key: written before it is used, never asked for again.

A request is claimed (core.claims) before it is sent, so that of all tasks and processes one sends it. Failures are
recorded too; a later run asks again. SQLite and PostgreSQL.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sqlalchemy import Engine, Float, Integer, String, Text, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Mapped, mapped_column

from core.claims import Base, Claim, Claims

_PREFIX = "expert:"
_CHUNK = 400


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


class Ledger:
    """The replies in a shared database. Blocking: an event loop calls it from a thread."""

    def __init__(self, engine: Engine, *, ttl_s: float = 60.0) -> None:
        self._engine = engine
        self._ttl_s = ttl_s
        try:
            Base.metadata.create_all(engine)
        except (OperationalError, ProgrammingError):  # another process created the table at the same moment
            Base.metadata.create_all(engine)

    def session(self) -> "LedgerSession":
        """An owner of claims: two sessions exclude each other, also within one process."""
        return LedgerSession(self, Claims(self._engine, owner=uuid.uuid4().hex, ttl_s=self._ttl_s), self._engine)

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The last outcome of each of `keys` that has one."""
        found: dict[str, Reply] = {}
        with self._engine.connect() as connection:
            for start in range(0, len(keys), _CHUNK):
                rows = connection.execute(
                    select(LedgerRow.__table__).where(LedgerRow.key.in_(keys[start : start + _CHUNK]))
                )
                found |= {row["key"]: Reply(**row) for row in rows.mappings()}
        return found


class LedgerSession:
    """One worker's view: what it may send, and where it writes what it got."""

    def __init__(self, ledger: Ledger, claims: Claims, engine: Engine) -> None:
        self._ledger = ledger
        self._claims = claims
        self._engine = engine
        self.started = time.time()
        self.beat_s = claims.ttl_s / 4

    def claim(self, key: str) -> Reply | bool:
        """What to do about `key`: a Reply to use, True (ours to send), or False (somebody else is sending it).

        A failure counts as a reply if it was recorded since this session began: nobody pays twice for it in one run.
        """
        ours = self._claims.take(_PREFIX + key)
        reply = self._ledger.find([key]).get(key)  # after the claim: whoever held it before has written by now
        if reply is None or (reply.status == "failed" and reply.created < self.started):
            return ours
        if ours:
            self._claims.release(_PREFIX + key)
        return reply

    def record(self, reply: Reply) -> None:
        """Write the outcome and give the claim back, in one transaction. A failure never replaces an answer."""
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[self._engine.dialect.name]
        values = asdict(reply)
        statement = insert(LedgerRow).values(**values)
        answered = LedgerRow.status == "answered"
        statement = statement.on_conflict_do_update(index_elements=["key"], set_=values, where=~answered)
        mine = (Claim.key == _PREFIX + reply.key) & (Claim.owner == self._claims.owner)
        with self._engine.begin() as connection:
            connection.execute(statement)
            connection.execute(delete(Claim).where(mine))

    def release(self, key: str) -> None:
        """Give a claim back without an outcome."""
        self._claims.release(_PREFIX + key)

    def beat(self) -> None:
        """Prolong every claim of this session."""
        now = time.time()
        statement = update(Claim).where(Claim.owner == self._claims.owner)
        with self._engine.begin() as connection:
            connection.execute(statement.values(heartbeat=now, expires=now + self._claims.ttl_s))

    def close(self) -> None:
        """Give back whatever is still claimed, after an interruption."""
        with self._engine.begin() as connection:
            connection.execute(delete(Claim).where(Claim.owner == self._claims.owner))
