"""Keep a flow going on one machine: a schedule that never overlaps itself, until Ctrl-C or SIGTERM."""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping

from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.runner import Runner
from prefect.schedules import Cron, Schedule
from tzlocal import get_localzone_name

from core.errors import ConfigError
from flows.lost_runs import mark_lost_runs

_log = logging.getLogger(__name__)
_POLL_SECONDS = 5.0
# Enough for a few firings to be looked at while one runs; each of them is cancelled at once, see `serve_loop`.
_LOOKED_AT_TOGETHER = 8


def cron_schedule(cron: str) -> Schedule:
    """A schedule in local time: cron_schedule("0 2 * * *") fires every night at two. Raises ConfigError."""
    try:
        return Cron(cron, timezone=get_localzone_name())
    except ValueError as error:
        msg = f'{cron!r} is no cron expression ({error}); five fields are wanted, e.g. "0 2 * * *" for two at night.'
        raise ConfigError(msg) from error


def serve_loop(
    flow: Flow[..., object],
    *,
    name: str,
    schedule: Schedule,
    parameters: Mapping[str, object],
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run `flow` at every firing of `schedule`, each in a process of its own, until Ctrl-C or SIGTERM.

    A firing that comes while a run is going on is cancelled by the server and not made up for later; of several that
    were missed while nothing served, at most one runs. Stopping cancels the current run and pauses the schedule. Call
    it within `servers(...)` in the main thread of a program whose start is guarded by `__main__`.
    """
    before = signal.getsignal(signal.SIGTERM)
    for run in mark_lost_runs():
        _log.warning("run %s was killed; resume it with `redraft rerun %s`", run, run)
    try:
        asyncio.run(_serve(flow, name, schedule, dict(parameters), on_ready))
    finally:
        signal.signal(signal.SIGTERM, before)  # asyncio leaves the default, which would skip the caller's clean-up


async def _serve(
    flow: Flow[..., object], name: str, schedule: Schedule, parameters: dict[str, object], on_ready: Callable[[], None]
) -> None:
    runner = Runner(name=name, query_seconds=_POLL_SECONDS, limit=_LOOKED_AT_TOGETHER)
    # The runner's own limit would let firings queue up; the deployment's limit on the server cancels them.
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    await runner.aadd_flow(
        flow, name=name, schedule=schedule, parameters=parameters, concurrency_limit=alone, paused=False
    )
    running = asyncio.create_task(runner.start())
    while not runner.started and not running.done():
        await asyncio.sleep(0.05)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):  # the runner's own handler deadlocks within its loop
        loop.add_signal_handler(number, stop.set)
    on_ready()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
    if runner.started:
        await runner.astop()
    await running
