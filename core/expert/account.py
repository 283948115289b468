"""What a run has spent on the expert, kept in the shared database, and the limits at which it stops.

A request is held at the most that it may take before it is sent, and settled at what it took. The sums include what
is held: a process that dies leaves what it had in flight counted in full, for it may have been paid for.
"""

import hashlib
import operator
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import BigInteger, Float, String, and_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, mapped_column

from core.claims import Base, Claim, Claims, create_tables
from core.expert.estimate import Use
from core.expert.ledger import LedgerSession, transaction
from core.expert.settings import ExpertSettings

_DUST = 1e-9
"""US dollars that sums of many floats may be off by."""


class AccountRow(Base):
    """One run's sums."""

    __tablename__ = "expert_accounts"
    run: Mapped[str] = mapped_column(String(200), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[float] = mapped_column(Float)


class Account:
    """One session's view of a run's account; sessions of other threads, processes and machines share it. Blocking."""

    def __init__(self, session: LedgerSession, settings: ExpertSettings, *, run: str) -> None:
        self._engine = session.engine
        self._limits: dict[str, float | None] = {
            "requests": settings.max_requests,
            "tokens": settings.max_tokens_total,
            "cost_usd": settings.max_cost_usd,
        }
        self.limited = any(limit is not None for limit in self._limits.values())
        self._run = run[:200]
        self._claims = Claims(session.engine, owner=session.owner, ttl_s=session.ttl_s)  # its heartbeat keeps ours
        self._spending = f"spending:{hashlib.sha256(run.encode()).hexdigest()[:16]}:"
        self._marked = self._is_open = False

    def hold(self, most: Use) -> bool:
        """Count a request that is about to be sent, unless a limit could be passed by it.

        One statement decides, so that two processes never pass a limit together. Without limits nothing is held.
        """
        if not self.limited:
            return True
        self._open()
        if not self._marked:
            self._marked = self._claims.take(self._spending + self._claims.owner)
        within = [
            getattr(AccountRow, name) + getattr(most, name) <= limit + _DUST
            for name, limit in self._limits.items()
            if limit is not None
        ]
        with transaction(self._engine) as connection:
            mine = update(AccountRow).where(AccountRow.run == self._run, and_(true(), *within))
            return connection.execute(mine.values(_added(most))).rowcount == 1

    def hold_some(self, most: Sequence[Use]) -> int:
        """Count as many of these, in order, as no limit could be passed by: how many."""
        count = len(most)
        while self.limited and count:
            totals = accumulate(most[:count], operator.add, initial=self.spent())
            count = sum(self._allows(total) for total in list(totals)[1:])
            if count and self.hold(Use.total(most[:count])):
                break
            count -= count > 0  # another process was faster
        return count

    def _allows(self, total: Use) -> bool:
        return all(limit is None or getattr(total, name) <= limit + _DUST for name, limit in self._limits.items())

    def settle(self, held: Use, used: Use) -> None:
        """Put what requests took in the place of what was held for them."""
        self.add(used - held if self.limited else used)

    def add(self, use: Use) -> None:
        """Count so much more, or less."""
        self._open()
        with transaction(self._engine) as connection:
            connection.execute(update(AccountRow).where(AccountRow.run == self._run).values(_added(use)))

    def is_shared(self) -> bool:
        """Whether others have requests of this run in flight, that may take less than is held for them.

        Ask only with none in flight here: two that both waited would wait for each other.
        """
        if self._marked:
            self._claims.release(self._spending + self._claims.owner)
            self._marked = False
        alive = and_(Claim.key.startswith(self._spending), Claim.expires > time.time())
        with self._engine.connect() as connection:
            return connection.scalar(select(Claim.key).where(alive).limit(1)) is not None

    def spent(self) -> Use:
        """What the run has spent, with what is in flight."""
        columns = (AccountRow.requests, AccountRow.tokens, AccountRow.cost_usd)
        with self._engine.connect() as connection:
            row = connection.execute(select(*columns).where(AccountRow.run == self._run)).mappings().first()
        return Use(**row) if row else Use()

    def reached(self, most: Use) -> str:
        """The limits that one more request could pass, for people: "expert.max_requests: 20 of 20 requests"."""
        spent = self.spent()
        words = {
            "requests": f"expert.max_requests: {spent.requests} of {self._limits['requests']} requests",
            "tokens": f"expert.max_tokens_total: {spent.tokens} of {self._limits['tokens']} tokens, and one more "
            f"request may take {most.tokens}",
            "cost_usd": f"expert.max_cost_usd: ${spent.cost_usd:.4f} of ${self._limits['cost_usd']}, and one more "
            f"request may take ${most.cost_usd:.4f}",
        }
        full = [
            words[name]
            for name, limit in self._limits.items()
            if limit is not None and getattr(spent, name) + getattr(most, name) > limit + _DUST
        ]
        return "; ".join(full)

    def _open(self) -> None:
        if self._is_open:
            return
        create_tables(self._engine)
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[self._engine.dialect.name]
        statement = insert(AccountRow).values(run=self._run, requests=0, tokens=0, cost_usd=0.0)
        with transaction(self._engine) as connection:
            connection.execute(statement.on_conflict_do_nothing())
        self._is_open = True


def _added(use: Use) -> dict[Any, Any]:
    return {
        AccountRow.requests: AccountRow.requests + use.requests,
        AccountRow.tokens: AccountRow.tokens + use.tokens,
        AccountRow.cost_usd: AccountRow.cost_usd + use.cost_usd,
    }
