"""Which requests are in which batch at the endpoint: written before a batch is sent, read by whoever comes next.

A line is there from just before its request is sent until its outcome is in the ledger. A process that finds lines of
requests which it has claimed goes on with their batch, whoever sent it.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Engine, Float, Integer, String, Text, delete, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from core.claims import Base, create_tables
from core.expert.dialect import Dialect
from core.expert.estimate import Use
from core.expert.ledger import chunks, transaction


class BatchRow(Base):
    """A batch. `id` is ours, and in the batch's metadata; `batch_id` the endpoint's, null until it has said it."""

    __tablename__ = "expert_batches"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    endpoint: Mapped[str] = mapped_column(String(500))
    run: Mapped[str] = mapped_column(String(200))
    created: Mapped[float] = mapped_column(Float)
    held: Mapped[int] = mapped_column(Integer)
    dialect: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20))
    input_file_id: Mapped[str | None] = mapped_column(String(200))
    batch_id: Mapped[str | None] = mapped_column(String(200))


class BatchLineRow(Base):
    """A request in a batch, with the most that it may take."""

    __tablename__ = "expert_batch_lines"
    batch: Mapped[str] = mapped_column(String(32), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    attempt: Mapped[int] = mapped_column(Integer)
    tokens: Mapped[int] = mapped_column(Integer)
    cost_usd: Mapped[float] = mapped_column(Float)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A request in a batch: the how manieth try it is, and the most that it may take."""

    attempt: int
    most: Use


@dataclass(kw_only=True)
class Batch:
    """A batch, and those of its `lines` that a worker minds, by request key.

    run: whose account it is on; held: whether the most that it may take is counted there already; found: Unix seconds
    since when this process knows of it; faults: looks in a row at it that failed.
    """

    endpoint: str
    run: str
    held: bool
    dialect: Dialect
    lines: dict[str, Line]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: float = field(default_factory=time.time)
    status: str = "planned"
    input_file_id: str | None = None
    batch_id: str | None = None
    found: float = field(default_factory=time.time)
    faults: int = 0


class BatchStore:
    """The batches in the database of the ledger. Blocking."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        create_tables(engine)

    def add(self, batch: Batch) -> None:
        """Write a batch that is about to be sent."""
        row = {column.name: getattr(batch, column.name) for column in BatchRow.__table__.columns}
        row |= {"held": int(batch.held), "dialect": json.dumps(asdict(batch.dialect))}
        lines: list[dict[str, Any]] = [
            {
                "batch": batch.id,
                "key": key,
                "attempt": line.attempt,
                "tokens": line.most.tokens,
                "cost_usd": line.most.cost_usd,
            }
            for key, line in batch.lines.items()
        ]
        with transaction(self._engine) as connection:
            connection.execute(insert(BatchRow), row)
            connection.execute(insert(BatchLineRow), lines)

    def note(self, batch: Batch) -> None:
        """Write what the endpoint has said about it."""
        known = {name: getattr(batch, name) for name in ("status", "input_file_id", "batch_id")}
        with transaction(self._engine) as connection:
            connection.execute(update(BatchRow).where(BatchRow.id == batch.id).values(**known))

    def find(self, keys: Sequence[str], endpoint: str) -> list[Batch]:
        """The batches at the endpoint that hold any of the keys, with those of their lines, the oldest first."""
        found: dict[str, dict[str, Line]] = {}
        with self._engine.connect() as connection:
            for chunk in chunks(keys):
                rows = connection.execute(select(BatchLineRow.__table__).where(BatchLineRow.key.in_(chunk)))
                for row in rows.mappings():
                    most = Use(requests=1, tokens=row["tokens"], cost_usd=row["cost_usd"])
                    found.setdefault(row["batch"], {})[row["key"]] = Line(attempt=row["attempt"], most=most)
            batches: list[Batch] = []
            for chunk in chunks(sorted(found)):
                there = select(BatchRow.__table__).where(BatchRow.id.in_(chunk), BatchRow.endpoint == endpoint)
                for row in connection.execute(there).mappings():
                    known = {**row, "held": bool(row["held"]), "dialect": Dialect(**json.loads(row["dialect"]))}
                    batches.append(Batch(**known, lines=found[row["id"]]))
        return sorted(batches, key=lambda batch: batch.created)

    def close(self, batch: Batch, keys: Sequence[str]) -> set[str]:
        """Strike the lines of these keys; those that were still there, for one worker alone."""
        closed: set[str] = set()
        with transaction(self._engine) as connection:
            for chunk in chunks(sorted(keys)):
                mine = delete(BatchLineRow).where(BatchLineRow.batch == batch.id, BatchLineRow.key.in_(chunk))
                closed |= set(connection.scalars(mine.returning(BatchLineRow.key)))
        return closed
