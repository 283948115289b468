"""How far a call to the expert is, and what came of its requests so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.expert.ledger import Reply

LoadBytes = Callable[[str], bytes]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """So far: of `total` different requests `done` have an outcome, `cached` of them from the ledger.

    cost_usd is what this run spent, not what the ledger saved; None while no price is known. Of a batch that is under
    way, `done` counts what the endpoint says it has completed.
    """

    total: int
    done: int = 0
    cached: int = 0
    failed: int = 0
    cost_usd: float | None = None

    def __add__(self, other: "Progress") -> "Progress":
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Progress(
            total=self.total + other.total,
            done=self.done + other.done,
            cached=self.cached + other.cached,
            failed=self.failed + other.failed,
            cost_usd=sum(costs) if costs else None,
        )


class Tally:
    """The outcomes of one call, and who is told about them."""

    def __init__(self, keys: Sequence[str], on_progress: Callable[[Progress], None] | None) -> None:
        self.outcomes: dict[str, Reply] = {}
        self._tell, self._told = on_progress, 0
        self._progress = Progress(total=len(keys))

    def begin(self, known: dict[str, Reply]) -> None:
        """These were answered before."""
        self.outcomes |= known
        self._progress = replace(self._progress, done=len(known), cached=len(known))
        self.report()

    def settle(self, reply: Reply, *, cached: bool) -> None:
        """One more outcome, of the ledger or of now."""
        self.outcomes[reply.key] = reply
        cost, so_far = self._progress.cost_usd, self._progress
        if not cached and reply.cost_usd is not None:
            cost = (cost or 0.0) + reply.cost_usd
        self._progress = replace(
            so_far,
            done=so_far.done + 1,
            cached=so_far.cached + cached,
            failed=so_far.failed + (reply.status == "failed"),
            cost_usd=cost,
        )
        self.report()

    def report(self, under_way: int = 0) -> None:
        """Tell how far it is, never going back; `under_way` requests have been completed and not been fetched yet."""
        self._told = max(self._told, min(self._progress.done + under_way, self._progress.total))
        if self._tell is not None:
            self._tell(replace(self._progress, done=self._told))
