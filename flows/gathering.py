"""Wait for all siblings of a fan-out, then fail if any of them failed: a failure never discards finished shards."""

from collections.abc import Sequence

from prefect.futures import PrefectFuture, wait

from core.errors import RedraftError
from core.manifest import Ref


class PartialFailure(RedraftError):
    """Some shards failed; those that finished are kept. `redraft rerun` computes the missing ones alone."""


def gather(futures: Sequence[PrefectFuture[Ref]], what: str) -> list[Ref]:
    """The refs of all futures, in order.

    Raises:
        PartialFailure: if any failed, after all of them have ended; says how many and why the first one did.
    """
    wait(list(futures))
    failed = [future for future in futures if not future.state.is_completed()]
    if failed:
        reason = failed[0].state.message or failed[0].state.name
        raise PartialFailure(f"{len(failed)} of {len(futures)} {what} failed, the others are kept. First: {reason}")
    return [future.result() for future in futures]


def only(future: PrefectFuture[Ref], what: str) -> Ref:
    """The ref of one future: `gather` for a stage without shards."""
    return gather([future], what)[0]
