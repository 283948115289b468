"""Hard stops over real HTTP: no limit is ever passed, what was answered is kept, and a raised limit goes on."""

import threading
import time

import pytest

from core.claims import open_database
from core.config import parse_config
from core.errors import BudgetExceeded, ConfigError
from core.expert.account import Account
from core.expert.client import ExpertClient
from core.expert.estimate import Use, image_tokens, most_of
from core.expert.ledger import Ledger
from core.expert.outcome import use_of
from core.expert.request import build_request
from core.expert.settings import ExpertSettings
from tests.core.expert.asking import IMAGE, IMAGES, SHA, late_after, requests, settings

PRICES = {"price_in": 1.0, "price_out": 2.0}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def ask(config, ledger, n, *, run="tuesday", began=None, sha=SHA):
    client = ExpertClient(config, ledger=ledger, run=run, began=began)
    return client.ask(requests(config, n, sha=sha), IMAGES.__getitem__)


def spent(ledger, config, run="tuesday") -> Use:
    return Account(ledger.session(), config, run=run).spent()


def answered(ledger, config, n) -> int:
    found = ledger.find([request.key for request in requests(config, n)])
    return sum(reply.status == "answered" for reply in found.values())


def test_no_more_requests_are_sent_than_the_limit_and_a_raised_limit_goes_on(start_expert, ledger):
    expert = start_expert(latency_s=0.02)
    config = settings(expert.url, concurrency=8, max_requests=10)
    with pytest.raises(BudgetExceeded, match=r"expert\.max_requests: 10 of 10 requests.*raise the limit and run again"):
        ask(config, ledger, 25)
    assert expert.stats["requests"] == answered(ledger, config, 25) == spent(ledger, config).requests == 10
    with pytest.raises(BudgetExceeded):
        ask(config, ledger, 25)
    assert expert.stats["requests"] == 10
    replies = ask(config.model_copy(update={"max_requests": 25}), ledger, 25)
    assert all(reply.status == "answered" for reply in replies)
    assert expert.stats["requests"] == 25


@pytest.mark.parametrize("name", ["max_tokens_total", "max_cost_usd"])
def test_tokens_and_dollars_never_pass_the_limit_but_come_near_it(start_expert, ledger, name):
    expert = start_expert(latency_s=0.01)
    free = settings(expert.url, max_tokens=100, concurrency=8, **PRICES)
    (one,) = ask(free, ledger, 1)
    most = most_of(free, requests(free, 1)[0].body(IMAGE), IMAGE)
    use = use_of(one, most)
    assert use.tokens < most.tokens
    assert use.cost_usd < most.cost_usd
    limit = 9 * use.tokens + most.tokens if name == "max_tokens_total" else 9 * use.cost_usd + most.cost_usd
    config = free.model_copy(update={name: limit})
    with pytest.raises(BudgetExceeded, match=rf"expert\.{name}: .* and one more request may take"):
        ask(config, ledger, 40)
    total = spent(ledger, config)
    reached = total.tokens if name == "max_tokens_total" else total.cost_usd
    assert reached <= limit
    assert answered(ledger, config, 40) == total.requests >= 9  # those in flight gave back what they did not take
    assert all(reply.status == "answered" for reply in ask(free, ledger, 40))
    assert expert.stats["repeated"] == 0


def test_shards_of_a_run_share_its_limit_and_other_runs_do_not(start_expert, tmp_path):
    expert, database = start_expert(latency_s=0.02), f"sqlite:///{tmp_path / 'state.db'}"
    config = settings(expert.url, concurrency=4, max_requests=15)
    Ledger(open_database(database))
    outcomes: list = [None] * 3

    def work(shard: int) -> None:
        client = ExpertClient(config, ledger=Ledger(open_database(database)), run="tuesday")
        try:
            outcomes[shard] = client.ask(requests(config, 30)[shard::3], IMAGES.__getitem__)
        except BudgetExceeded as error:
            outcomes[shard] = error

    threads = [threading.Thread(target=work, args=(shard,)) for shard in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expert.stats["requests"] == 15
    assert any(isinstance(outcome, BudgetExceeded) for outcome in outcomes)
    ledger = Ledger(open_database(database))
    assert len(ask(config, ledger, 30, run="wednesday")) == 30
    assert expert.stats["requests"] == 30


def test_what_others_only_hold_is_waited_for(start_expert, tmp_path):
    """Two shards that need less than the limit both finish, though what they hold together passes it."""
    expert, database = start_expert(latency_s=0.05), f"sqlite:///{tmp_path / 'state.db'}"
    config = settings(expert.url, concurrency=8, max_tokens=1000, max_tokens_total=20_000)
    Ledger(open_database(database))
    outcomes: list = [None] * 2

    def work(shard: int) -> None:
        client = ExpertClient(config, ledger=Ledger(open_database(database)), run="tuesday")
        outcomes[shard] = client.ask(requests(config, 16)[shard::2], IMAGES.__getitem__)

    threads = [threading.Thread(target=work, args=(shard,)) for shard in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(outcome or []) for outcome in outcomes] == [8, 8]


@pytest.mark.slow
def test_what_a_dead_process_had_in_flight_stays_counted(start_expert, ledger):
    expert = start_expert()
    config = settings(expert.url, max_requests=3)
    dead = Account(ledger.session(), config, run="tuesday")
    assert dead.hold(Use(requests=1, tokens=500))
    with pytest.raises(BudgetExceeded, match="3 of 3"):
        ExpertClient(config, ledger=Ledger(ledger._engine, ttl_s=0.5), run="tuesday").ask(
            requests(config, 9), IMAGES.__getitem__
        )
    assert expert.stats["requests"] == 2


def test_failures_count_what_they_may_have_cost(start_expert, ledger):
    refused = settings(start_expert(share_500=1.0).url, max_attempts=2, max_tokens_total=10**6)
    ask(refused, ledger, 1, run="refused")
    assert spent(ledger, refused, "refused") == Use(requests=1)
    silent = settings(start_expert(latency_s=1.0).url, timeout_s=0.1, max_attempts=1, max_tokens_total=10**6)
    ask(silent, ledger, 1, run="silent")
    assert spent(ledger, silent, "silent").tokens == most_of(silent, requests(silent, 1)[0].body(IMAGE), IMAGE).tokens
    cut = settings(start_expert(share_truncated=1.0).url, max_tokens_total=10**6)
    (reply,) = ask(cut, ledger, 1, run="cut")
    assert spent(ledger, cut, "cut").tokens == reply.prompt_tokens + reply.completion_tokens


def test_without_limits_the_bill_is_kept_for_a_limit_that_comes_later(start_expert, ledger):
    config = settings(start_expert().url)
    ask(config, ledger, 5)
    assert spent(ledger, config).requests == 5
    with pytest.raises(BudgetExceeded, match="5 of 5"):
        ask(config.model_copy(update={"max_requests": 5}), ledger, 6)


def test_the_deadline_stops_orderly_and_a_later_run_goes_on(start_expert, ledger, monkeypatch):
    expert = start_expert(latency_s=0.1)
    with monkeypatch.context() as patch:
        config = settings(expert.url, concurrency=2, **late_after(patch, expert, 4))
        with pytest.raises(BudgetExceeded, match=r"expert\.deadline_s"):
            ask(config, ledger, 40)
    sent = expert.stats["requests"]
    assert 4 <= sent <= 6
    assert answered(ledger, config, 40) == sent  # those in flight were brought to their end
    with pytest.raises(BudgetExceeded, match=r"expert\.deadline_s"):
        ask(config, ledger, 40, began=time.time() - 3600)
    assert expert.stats["requests"] == sent
    assert len(ask(config, ledger, sent, began=time.time() - 3600)) == sent  # nothing is left to send: nothing is late


def test_a_cost_limit_without_prices_is_refused():
    with pytest.raises(ConfigError, match=r"expert\.price_in"):
        ExpertSettings(max_cost_usd=1.0)
    with pytest.raises(ConfigError, match=r"expert\.price_in"):
        parse_config({"expert": {"max_cost_usd": 1.0}}, "my.toml")


def test_the_estimate_is_more_than_what_is_used(start_expert, ledger):
    config = settings(start_expert().url, **PRICES)
    question = "which colour has it? 颜色是什么？" * 20
    request = build_request(config, question=question, reference="a ring", prediction="a disc", image_sha=SHA)
    (reply,) = ExpertClient(config, ledger=ledger).ask([request], IMAGES.__getitem__)
    most = most_of(config, request.body(IMAGE), IMAGE)
    assert reply.prompt_tokens + config.max_tokens < most.tokens
    assert reply.cost_usd < most.cost_usd
    assert image_tokens(IMAGE) == 86
    assert image_tokens(b"no image") == 85


def test_what_waited_for_a_place_when_the_run_was_stopped_is_not_taken_off_the_account_twice(
    start_expert, ledger, monkeypatch
):
    expert = start_expert(latency_s=0.3)
    config = settings(expert.url, concurrency=4, max_requests=1000, **late_after(monkeypatch, expert, 9))
    with pytest.raises(BudgetExceeded, match="deadline"):
        ask(config, ledger, 60, sha=None)
    assert spent(ledger, config).requests == expert.stats["requests"] > 0
