"""Wait for all siblings of a fan-out, then fail if any of them failed: a failure never discards finished shards."""

from collections.abc import Callable, Sequence

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from core.errors import FatalError, RedraftError
from core.manifest import Ref


class PartialFailure(RedraftError):
    """Some shards failed; those that finished are kept. `redraft rerun` computes the missing ones alone."""


def gather(futures: Sequence[PrefectFuture[Ref]], what: str) -> list[Ref]:
    """The refs of all futures, in order.

    Raises:
        PartialFailure: some failed, after all of them have ended; says how many and why the first one did.
        FatalError: all of several failed.
        Exception: the cause itself, where there is one future.
    """
    wait(list(futures))
    failed = [future for future in futures if not future.state.is_completed()]
    if failed and len(futures) == 1:
        return [failed[0].result()]  # raises it
    if failed:
        reason = failed[0].state.result(raise_on_failure=False) or failed[0].state.name
        if len(failed) < len(futures):
            raise PartialFailure(f"{len(failed)} of {len(futures)} {what} failed, the others are kept. First: {reason}")
        raise FatalError(f"all {len(futures)} {what} failed. First: {reason}")
    return [future.result() for future in futures]


def side_by_side(what: str, workers: int, tasks: Sequence[Callable[[], PrefectFuture[Ref]]]) -> list[Ref]:
    """Submit the tasks in a flow of their own, at most `workers` at a time, and `gather` them.

    Prefect's own thread runner would start all of them at once: as many models in memory as there are shards.
    """

    @flow(name=what, flow_run_name=what, task_runner=ThreadPoolTaskRunner(max_workers=workers))
    def shards() -> list[Ref]:
        return gather([submit() for submit in tasks], what)

    return shards()


def only(future: PrefectFuture[Ref], what: str) -> Ref:
    """The ref of one future: `gather` for a stage without shards."""
    return gather([future], what)[0]
