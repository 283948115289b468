"""What a fan-out does when some of it fails. The flows run on a real server."""

import threading
import time

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from core.errors import BudgetExceeded, FatalError, InputError, PartialFailure
from core.manifest import Ref
from flows.gathering import gather, only, side_by_side
from flows.servers import Servers
from tests.clock import eventually

pytestmark = pytest.mark.usefixtures("servers")


@pytest.fixture
def servers(running_servers: Servers) -> Servers:
    return running_servers


@task(cache_policy=NO_CACHE)
def shard(number: int, broken: bool) -> Ref:
    if broken:
        raise InputError(f"shard {number} is broken")
    return Ref(uri=f"datasets/{number}", digest=str(number), kind="dataset")


@flow
def fan_out(broken: list[bool]) -> list[Ref]:
    return gather([shard.submit(number, one) for number, one in enumerate(broken)], "shards")


def test_all_siblings_end_before_a_flow_fails_and_the_message_counts_them():
    with pytest.raises(PartialFailure, match=r"1 of 3 shards failed, the others are kept\. First: shard 1 is broken"):
        fan_out([False, True, False])
    assert [ref.digest for ref in fan_out([False, False])] == ["0", "1"]


def test_a_failure_of_all_is_not_called_partial():
    with pytest.raises(FatalError, match=r"all 2 shards failed\. First: shard 0 is broken"):
        fan_out([True, True])


def test_an_orderly_stop_of_one_shard_is_that_of_all():
    @task(cache_policy=NO_CACHE)
    def stopped() -> Ref:
        raise BudgetExceeded("expert.max_requests: 3 of 3 requests")

    @flow
    def some() -> list[Ref]:
        return gather([shard.submit(0, True), stopped.submit(), shard.submit(2, False)], "shards")

    with pytest.raises(BudgetExceeded, match=r"^expert\.max_requests: 3 of 3 requests$"):
        some()


def test_a_single_stage_fails_with_its_own_error():
    @flow
    def one() -> Ref:
        return only(shard.submit(7, True), "stage")

    with pytest.raises(InputError, match=r"^shard 7 is broken$"):
        one()


def test_no_more_shards_run_side_by_side_than_there_are_workers():
    lock, now, most = threading.Lock(), 0, 0

    @task(cache_policy=NO_CACHE)
    def busy(number: int) -> Ref:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        eventually(lambda: most > 1)
        time.sleep(0.2)
        with lock:
            now -= 1
        return Ref(uri=f"datasets/{number}", digest=str(number), kind="dataset")

    @flow
    def parent() -> list[Ref]:
        return side_by_side("shards", 2, [lambda n=n: busy.submit(n) for n in range(5)])

    assert [ref.digest for ref in parent()] == ["0", "1", "2", "3", "4"]
    assert most == 2
