"""What all processes on one database share of an account with an endpoint: places in time, and slots in flight.

Places: one row an account says when the next request may begin (GCRA). One statement books many of them, evenly spread,
so that a database is asked a few times a second, whatever the rate.

Slots: `concurrency` claims an account (core.claims). Who is killed loses its slots when they expire. Who finds none
leaves a mark, and the others then keep no more than an equal share. Blocking.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import Engine, Float, String, case, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from core.claims import Base, Claims, create_tables
from core.errors import StoreError

TTL_S = 10.0
"""Seconds after which the slots of a process that was killed are free."""


class RateRow(Base):
    """An account's rate. Unix seconds: `free` is the next place, and before `resumes` the endpoint wants no request."""

    __tablename__ = "expert_rates"
    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    free: Mapped[float] = mapped_column(Float)
    resumes: Mapped[float] = mapped_column(Float)


@dataclass(frozen=True, kw_only=True)
class View:
    """Who holds what just now: slot -> owner, who wants more than there is, and when the endpoint resumes."""

    holders: dict[int, str]
    wanting: frozenset[str]
    resumes: float

    def share(self, owner: str, concurrency: int) -> int:
        """Slots that `owner` may hold: all that there are, or an equal share while others want some."""
        if not self.wanting - {owner}:
            return concurrency
        sharers = sorted({*self.holders.values(), *self.wanting, owner})
        return max(1, concurrency // len(sharers) + (sharers.index(owner) < concurrency % len(sharers)))


class Budget:
    """One process's part of an account's budget.

    Args:
        account: endpoint, model and key, by name; those who name the same share a budget.
        clock: Unix seconds; that of processes on several machines must agree.

    Raises:
        StoreError: any method, if the database cannot be reached.
    """

    def __init__(
        self, engine: Engine, account: Sequence[str], *, ttl_s: float = TTL_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._account = hashlib.sha256("\x1f".join(account).encode()).hexdigest()[:32]
        self._claims = Claims(engine, ttl_s=ttl_s)
        self._clock = clock
        self._slots, self._wanted = f"slot:{self._account}:", f"slot:{self._account}:wanted:"
        self.owner = self._claims.owner
        self.beat_s = ttl_s / 4
        create_tables(engine)
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]
        row = insert(RateRow).values(account=self._account, free=0.0, resumes=0.0).on_conflict_do_nothing()
        with _stored(), engine.begin() as connection:
            connection.execute(row)

    def book(self, costs_s: Sequence[float]) -> list[float]:
        """The next places for so many requests, in Unix seconds; each keeps the seconds behind it that it costs."""
        now, total = self._clock(), sum(costs_s)
        start = case((RateRow.free > now, RateRow.free), else_=now)
        statement = update(RateRow).where(RateRow.account == self._account).values(free=start + total)
        with _stored(), self._engine.begin() as connection:
            end = connection.execute(statement.returning(RateRow.free)).scalar_one()
        return [end - total + before for before in accumulate(costs_s[:-1], initial=0.0)]

    def pause(self, until: float) -> None:
        """Nobody is to send before `until`, Unix seconds."""
        later = RateRow.account == self._account, RateRow.resumes < until
        with _stored(), self._engine.begin() as connection:
            connection.execute(update(RateRow).where(*later).values(resumes=until))

    def view(self) -> View:
        """How things stand."""
        with _stored():
            claims = self._claims.holders(self._slots)
            with self._engine.connect() as connection:
                resumes = connection.scalar(select(RateRow.resumes).where(RateRow.account == self._account))
        wanting = frozenset(owner for key, owner in claims.items() if key.startswith(self._wanted))
        slots = {key: owner for key, owner in claims.items() if not key.startswith(self._wanted)}
        holders = {int(key.removeprefix(self._slots)): owner for key, owner in slots.items()}
        return View(holders=holders, wanting=wanting, resumes=resumes or 0.0)

    def take(self, slots: Collection[int]) -> set[int]:
        """Those of `slots` that are ours now."""
        with _stored():
            taken = self._claims.take_all([f"{self._slots}{slot}" for slot in slots])
        return {int(key.removeprefix(self._slots)) for key in taken}

    def give_back(self, slots: Collection[int]) -> None:
        """Others may have these slots of ours."""
        with _stored():
            self._claims.release_all([f"{self._slots}{slot}" for slot in slots])

    def want(self, more: bool) -> None:
        """Leave, or take away, the mark that we have less than we need."""
        with _stored():
            (self._claims.take if more else self._claims.release)(self._wanted + self.owner)

    def beat(self) -> None:
        """Say that we are alive."""
        with _stored():
            self._claims.beat_all()


@contextmanager
def _stored() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(f"the expert's budget cannot be read or written: {error}") from error
