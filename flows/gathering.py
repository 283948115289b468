"""Wait for all siblings of a fan-out, then fail if any of them failed: a failure never discards finished shards."""

from collections.abc import Callable, Sequence

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from core.errors import FatalError, Interrupted, PartialFailure
from core.interruption import interrupt
from core.manifest import Ref
from core.stage import check_some_rows
from tasks.workplace import Workplace


def gather(futures: Sequence[PrefectFuture[Ref]], what: str) -> list[Ref]:
    """The refs of all futures, in order.

    Raises:
        ExpertUnavailable, BudgetExceeded: the expert stopped the work of one at least.
        PartialFailure: some failed, after all of them have ended; says how many and why the first one did.
        FatalError: all of several failed.
        Exception: the cause itself, where there is one future.
    """
    try:
        wait(list(futures))
    except BaseException:  # a signal: the threads of the tasks do not hear of it
        interrupt()
        raise
    failed = [future for future in futures if not future.state.is_completed()]
    if failed and len(futures) == 1:
        return [failed[0].result()]  # raises it
    if failed:
        reasons = [future.state.result(raise_on_failure=False) or future.state.name for future in failed]
        stopped = next((reason for reason in reasons if isinstance(reason, Interrupted)), None)
        if stopped is not None:  # the others stopped for the same cause, or soon would have
            raise stopped
        reason = reasons[0]
        if len(failed) < len(futures):
            raise PartialFailure(f"{len(failed)} of {len(futures)} {what} failed, the others are kept. First: {reason}")
        raise FatalError(f"all {len(futures)} {what} failed. First: {reason}")
    return [future.result() for future in futures]


def shards_of(
    place: Workplace, what: str, workers: int, tasks: Sequence[Callable[[], PrefectFuture[Ref]]]
) -> list[Ref]:
    """`side_by_side`, of one dataset: a shard of it may be without a good row, all of them may not."""
    refs = side_by_side(what, workers, tasks)
    check_some_rows(place.store, refs, what)
    return refs


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
