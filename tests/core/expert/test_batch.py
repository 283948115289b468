"""Batch mode over real HTTP: the outcomes of online mode, failed lines sent again, limits kept, nothing sent twice."""

import io
import json
import threading
import time
from dataclasses import replace

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import update

from core.claims import open_database
from core.errors import BudgetExceeded, ExpertUnavailable
from core.expert import batch_file
from core.expert.account import Account
from core.expert.answering import ApiError
from core.expert.batch_server import Batches
from core.expert.batch_store import BatchRow, BatchStore
from core.expert.client import ExpertClient
from core.expert.dialect import _dialects, process_dialects
from core.expert.estimate import Use, most_of
from core.expert.ledger import Ledger
from core.expert.reply import parse_reply
from tests.core.expert.asking import IMAGE, IMAGES, late_once, requests
from tests.core.expert.batching import settings

SECRET = "sk-very-secret-123"


@pytest.fixture(autouse=True)
def _nothing_is_known_yet():
    _dialects.cache_clear()  # ports come back


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def ledger(database):
    return Ledger(open_database(database))


def ask(config, ledger, n=1, *, images=IMAGES, api_key=None, run="tuesday", **options):
    client = ExpertClient(config, ledger=ledger, api_key=SecretStr(api_key) if api_key else None, run=run)
    return client.ask(requests(config, n), images.__getitem__, **options)


def spent(ledger, config, run="tuesday") -> Use:
    return Account(ledger.session(), config, run=run).spent()


def lines_left(ledger, config, n) -> int:
    keys = [request.key for request in requests(config, n)]
    address = config.base_url
    return sum(len(batch.lines) for batch in BatchStore(ledger._engine).find(keys, address))


def essence(reply):
    return replace(reply, created=0.0, latency_s=None)


def test_a_batch_answers_what_online_requests_are_answered(start_expert, ledger, tmp_path):
    expert, seen = start_expert(), []
    config = settings(expert.url, price_in=1.0, price_out=2.0)
    replies = ask(config, ledger, 12, on_progress=seen.append)
    other = Ledger(open_database(f"sqlite:///{tmp_path / 'other.db'}"))
    online = ask(config.model_copy(update={"mode": "online"}), other, 12)
    assert [essence(reply) for reply in replies] == [essence(reply) for reply in online]
    assert (expert.stats["batches"], expert.stats["requests"]) == (1, 24)
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 12, 12)
    assert seen[-1].cost_usd == pytest.approx(sum(reply.cost_usd for reply in replies))
    assert spent(ledger, config) == replace(spent(other, config), cost_usd=pytest.approx(seen[-1].cost_usd))
    assert lines_left(ledger, config, 12) == 0


def test_a_second_run_asks_nothing_and_equal_requests_are_sent_once(start_expert, ledger):
    expert = start_expert()
    config = settings(expert.url)
    client = ExpertClient(config, ledger=ledger)
    first = client.ask(requests(config, 3) * 2, IMAGES.__getitem__)
    assert client.ask(requests(config, 3) * 2, {}.__getitem__) == first
    assert (expert.stats["requests"], expert.stats["batches"]) == (3, 1)


def test_lines_that_failed_are_sent_again_and_others_are_not(start_expert, ledger):
    expert = start_expert(share_429=0.2, share_500=0.2)
    replies = ask(settings(expert.url, max_attempts=30), ledger, 30)
    stats = expert.stats
    assert all(reply.status == "answered" for reply in replies)
    assert stats["fault_429"] > 0
    assert stats["fault_500"] > 0
    assert sum(reply.attempts for reply in replies) == stats["requests"] == 30 + stats["fault_429"] + stats["fault_500"]
    assert max(reply.attempts for reply in replies) == stats["batches"]
    assert stats["repeated"] == 0


def test_a_line_that_fails_for_good_says_why_and_counts_as_online(start_expert, ledger):
    config = settings(start_expert(share_500=1.0).url, max_attempts=2, max_tokens_total=10**6)
    replies = ask(config, ledger, 3)
    assert [(reply.status, reply.attempts) for reply in replies] == [("failed", 2)] * 3
    assert all(reply.error.startswith("http_500") for reply in replies)
    assert spent(ledger, config) == Use(requests=3)
    cut = ask(settings(start_expert(share_truncated=1.0).url), Ledger(ledger._engine), 2)
    assert [reply.error for reply in cut] == ["length"] * 2
    assert all(reply.completion_tokens > 0 for reply in cut)


def test_too_many_failures_in_a_row_stop_the_run_after_all_is_recorded(start_expert, ledger):
    config = settings(start_expert(share_500=1.0).url, max_attempts=1, breaker=4)
    with pytest.raises(ExpertUnavailable, match="in a row"):
        ask(config, ledger, 9)
    assert len(ledger.find([request.key for request in requests(config, 9)])) == 9


def test_what_a_batch_did_not_come_to_before_it_expired_is_in_the_next(start_expert, ledger):
    expert = start_expert(batch_answers=5)
    replies = ask(settings(expert.url), ledger, 12)
    assert sorted(reply.attempts for reply in replies) == [1] * 5 + [2] * 5 + [3] * 2
    assert (expert.stats["batches"], expert.stats["requests"], expert.stats["repeated"]) == (3, 12, 0)
    never = ask(settings(start_expert(batch_answers=0).url, max_attempts=2, temperature=0.5), ledger, 2)
    assert [reply.error.partition(":")[0] for reply in never] == ["batch_expired"] * 2


def test_a_cancelled_batch_stops_the_run_keeps_its_answers_and_a_later_run_sends_the_rest(start_expert, ledger):
    expert = start_expert(latency_s=0.5)
    config = settings(expert.url)

    def cancel(progress):
        if 0 < progress.done < 70:
            (batch,) = httpx.get(f"{expert.url}/batches", trust_env=False, verify=False).json()["data"]
            httpx.post(f"{expert.url}/batches/{batch['id']}/cancel", trust_env=False, verify=False)

    with pytest.raises(ExpertUnavailable, match=r"batch_\w+ was cancelled .* run again"):
        ask(config, ledger, 100, on_progress=cancel)
    answered = expert.stats["requests"]
    assert answered == len(ledger.find([request.key for request in requests(config, 100)])) < 100
    assert all(reply.status == "answered" for reply in ask(config, ledger, 100))
    assert expert.stats["requests"] == 100


def test_a_file_that_is_refused_stops_with_the_endpoints_words_and_costs_nothing(start_expert, ledger, monkeypatch):
    expert = start_expert()
    config = settings(expert.url, max_requests=3)
    monkeypatch.setattr(batch_file, "URL", "/v1/other")
    with pytest.raises(ExpertUnavailable, match=r"mismatched_endpoint: .*\(line 1\)"):
        ask(config, ledger, 3)
    monkeypatch.undo()
    assert spent(ledger, config) == Use()
    assert lines_left(ledger, config, 3) == 0
    assert all(reply.status == "answered" for reply in ask(config, ledger, 3))


def test_a_queue_that_is_full_gets_smaller_batches(start_expert, ledger):
    expert = start_expert(batch_queue=3)
    replies = ask(settings(expert.url), ledger, 10)
    assert all((reply.status, reply.attempts) == ("answered", 1) for reply in replies)
    assert expert.stats["requests"] == 10


def test_an_endpoint_without_batches_says_so(start_expert, ledger, monkeypatch):
    def gone(*_):
        raise ApiError(404, "Not Found")

    monkeypatch.setattr(Batches, "new_file", gone)
    with pytest.raises(ExpertUnavailable, match=r'no Batch API; set expert\.mode = "online"'):
        ask(settings(start_expert().url), ledger, 2)


def test_a_batch_whose_creation_got_lost_on_the_way_back_is_not_created_twice(start_expert, ledger, monkeypatch):
    create = Batches.create

    def lost(batches, new):
        create(batches, new)
        raise ApiError(500, "internal error")

    monkeypatch.setattr(Batches, "create", lost)
    expert = start_expert()
    assert all(reply.status == "answered" for reply in ask(settings(expert.url), ledger, 5))
    assert (expert.stats["batches"], expert.stats["requests"]) == (1, 5)


def test_files_are_split_at_the_endpoints_limits(start_expert, ledger, monkeypatch):
    expert = start_expert()
    config = settings(expert.url)
    body = process_dialects(config).current.write(requests(config, 1)[0].body(IMAGE))
    monkeypatch.setattr(batch_file, "MAX_BYTES", 3 * len(json.dumps(body)) + 1000)
    assert all(reply.status == "answered" for reply in ask(config, ledger, 9))
    assert (expert.stats["batches"], expert.stats["requests"]) == (3, 9)
    monkeypatch.undo()
    monkeypatch.setattr("core.expert.batch_flights.MAX_REQUESTS", 4)
    assert len(ask(config, ledger, 19)) == 19
    assert (expert.stats["batches"], expert.stats["requests"]) == (6, 19)


def test_a_missing_image_and_a_request_that_is_too_large_fail_alone(start_expert, ledger, monkeypatch):
    expert, broken = start_expert(), b"\x89PNG\r\n\x1a\nbroken"
    config = settings(expert.url)
    batch = [requests(config, 1, sha=sha)[0] for sha in (None, "0" * 64, "1" * 64, "2" * 64)]
    monkeypatch.setattr(batch_file, "MAX_BYTES", 10_000)
    images = {"1" * 64: broken, "2" * 64: b"x" * 10_000}
    good, missing, bad, large = ExpertClient(config, ledger=ledger).ask(batch, images.__getitem__)
    assert good.status == "answered"
    assert missing.error.startswith("image_missing")
    assert bad.error.startswith("http_400")
    assert large.error.startswith("request_too_large")
    assert expert.stats["requests"] == 2


@pytest.mark.parametrize(
    "refuses", [("max_completion_tokens",), ("temperature",), ("temperature", "max_completion_tokens")]
)
def test_a_parameter_that_the_lines_are_refused_for_is_left_out_of_the_next_batch(start_expert, ledger, refuses):
    expert = start_expert(refuses=refuses)
    replies = ask(settings(expert.url, temperature=0.5, max_attempts=1), ledger, 4)
    assert [(reply.status, reply.attempts) for reply in replies] == [("answered", 1 + len(refuses))] * 4
    assert expert.stats["batches"] == 1 + len(refuses)


def test_the_structured_output_is_found_out_before_a_batch_is_sent(start_expert, ledger):
    expert = start_expert(refuses=("json_schema",))
    replies = ask(settings(expert.url, structured="auto"), ledger, 6)
    assert [parse_reply(reply.raw).segments for reply in replies] == [(("blue", "red"),)] * 6
    assert (expert.stats["requests"], expert.stats["batches"]) == (7, 1)


def test_no_more_is_sent_than_the_limit_and_a_raised_limit_goes_on(start_expert, ledger):
    expert = start_expert()
    config = settings(expert.url, max_requests=7)
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match=r"expert\.max_requests: 7 of 7 requests.*raise the limit"):
            ask(config, ledger, 20)
        assert expert.stats["requests"] == spent(ledger, config).requests == 7
    replies = ask(config.model_copy(update={"max_requests": 20}), ledger, 20)
    assert all(reply.status == "answered" for reply in replies)
    assert expert.stats["requests"] == 20


@pytest.mark.parametrize("name", ["max_tokens_total", "max_cost_usd"])
def test_tokens_and_dollars_never_pass_the_limit_but_come_near_it(start_expert, ledger, name):
    expert = start_expert()
    free = settings(expert.url, max_tokens=100, price_in=1.0, price_out=2.0)
    most = most_of(free, requests(free, 1)[0].body(IMAGE), IMAGE)
    limit = 6 * (most.tokens if name == "max_tokens_total" else most.cost_usd)
    config = free.model_copy(update={name: limit})
    with pytest.raises(BudgetExceeded, match=rf"expert\.{name}: .* and one more request may take"):
        ask(config, ledger, 40)
    total = spent(ledger, config)
    reached, one = (total.tokens, most.tokens) if name == "max_tokens_total" else (total.cost_usd, most.cost_usd)
    assert limit - one < reached <= limit
    assert total.requests == expert.stats["requests"] > 6  # what a batch did not take was given back, for the next
    assert expert.stats["repeated"] == 0


@pytest.fixture
def late_after_sending(monkeypatch):
    """A deadline that is over as soon as the first batch is being created."""
    create, sent = Batches.create, []

    def noted(batches, new):
        sent.append(new)
        return create(batches, new)

    monkeypatch.setattr(Batches, "create", noted)
    return late_once(monkeypatch, lambda: bool(sent))


def leave(config, ledger, n, **options):
    with pytest.raises(BudgetExceeded, match=r"expert\.deadline_s"):
        ask(config, ledger, n, **options)


def test_after_the_deadline_a_batch_is_left_to_the_endpoint_and_a_later_run_fetches_it(
    start_expert, ledger, late_after_sending
):
    expert = start_expert(batch_delay_s=0.5)
    config = settings(expert.url, max_requests=5)
    leave(config.model_copy(update=late_after_sending), ledger, 5)
    assert spent(ledger, config).requests == 5  # held
    replies = ask(config, ledger, 5, images={})
    assert all(reply.status == "answered" for reply in replies)
    assert (expert.stats["batches"], expert.stats["requests"]) == (1, 5)
    used = spent(ledger, config)
    assert (used.requests, used.tokens) == (5, sum(r.prompt_tokens + r.completion_tokens for r in replies))


def test_workers_with_the_same_requests_send_them_once(start_expert, database):
    expert = start_expert(batch_delay_s=0.3)
    results: list[list] = [[], [], []]
    Ledger(open_database(database))

    def work(slot: int) -> None:
        results[slot] = ask(settings(expert.url), Ledger(open_database(database)), 20)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert all(reply.status == "answered" for reply in results[0])
    assert (expert.stats["requests"], expert.stats["repeated"]) == (20, 0)


def test_progress_follows_the_endpoints_count(start_expert, ledger):
    seen = []
    ask(settings(start_expert(latency_s=0.5).url), ledger, 80, on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert next(count for count in done if count) in (32, 64)


def test_the_key_is_in_no_file_and_no_word(start_expert, ledger, tmp_path, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    expert, bodies = start_expert(api_key=SECRET), []
    path = Batches.path
    monkeypatch.setattr(Batches, "delete", lambda batches, name: bodies.append(path(batches, name).read_bytes()) or {})
    assert all(reply.status == "answered" for reply in ask(settings(expert.url), ledger, 3, api_key=SECRET))
    assert b"custom_id" in b"".join(bodies)
    assert SECRET not in caplog.text
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 3
    assert all(SECRET.encode() not in file.read_bytes() for file in files)
    with pytest.raises(ExpertUnavailable, match="API key") as caught:
        ask(settings(expert.url, temperature=0.5), ledger, 3, api_key="sk-wrong-one")
    assert "sk-wrong-one" not in str(caught.value)


def test_lines_that_are_missing_or_cannot_be_read_are_sent_again(start_expert, ledger, monkeypatch):
    content, asked = Batches.content, []

    def mangled(batches, name):
        path = content(batches, name)
        if not asked:
            first, _, *rest = path.read_text().splitlines(keepends=True)
            path.write_text("".join([first[:-20], "\n", '{"custom_id": "nobody"}\n', *rest]))
        asked.append(name)
        return path

    monkeypatch.setattr(Batches, "content", mangled)
    expert = start_expert()
    replies = ask(settings(expert.url), ledger, 6)
    assert [(reply.status, reply.attempts) for reply in replies] == [("answered", 2)] * 2 + [("answered", 1)] * 4
    assert expert.stats["requests"] == 8


def test_a_line_ends_at_a_line_feed_alone():
    text = '{"custom_id": "a\u2028b\x85c"}\nnot json\n{"custom_id": "d", "more": 1, "response": null}\n[]\n'
    assert [line.custom_id for line in batch_file.read_results(io.BytesIO(text.encode()))] == ["a\u2028b\x85c", "d"]


def test_an_endpoint_that_is_away_for_a_while_is_waited_for_and_for_long_is_not(start_expert, ledger, monkeypatch):
    batch, looks = Batches.batch, []

    def away(batches, name):
        looks.append(name)
        if 1 < len(looks) < 8 or is_down:
            raise ApiError(503, "overloaded")
        return batch(batches, name)

    monkeypatch.setattr(Batches, "batch", away)
    is_down, expert = False, start_expert(batch_delay_s=0.3)
    assert len(ask(settings(expert.url, max_attempts=2), ledger, 3)) == 3
    is_down = True
    config = settings(expert.url, max_attempts=2, breaker=3, temperature=0.5)
    with pytest.raises(ExpertUnavailable, match=r"does not show its batches: http_503.*run again"):
        ask(config, ledger, 3)
    is_down = False
    assert all(reply.status == "answered" for reply in ask(config, ledger, 3))
    assert expert.stats["requests"] == 6


def test_a_batch_that_the_endpoint_does_not_know_is_sent_again_only_when_it_must_be_gone(
    start_expert, ledger, late_after_sending
):
    expert = start_expert(batch_delay_s=60)
    leave(settings(expert.url, max_requests=5, **late_after_sending), ledger, 5)
    elsewhere = start_expert()
    with ledger._engine.begin() as connection:  # as if a key of another account were used
        connection.execute(update(BatchRow).values(endpoint=elsewhere.url))
    other = settings(elsewhere.url, max_requests=5)
    with pytest.raises(ExpertUnavailable, match=r"does not know batch batch_\w+.* 5 of these requests"):
        ask(other, ledger, 5)
    assert elsewhere.stats["requests"] == 0
    with ledger._engine.begin() as connection:
        connection.execute(update(BatchRow).values(created=time.time() - 49 * 3600))
    assert all(reply.status == "answered" for reply in ask(other, ledger, 5))
    assert elsewhere.stats["requests"] == 5


def test_two_workers_share_a_batch_of_one_that_left_it_and_each_pays_on_its_account(
    start_expert, database, late_after_sending
):
    expert = start_expert(batch_delay_s=0.5)
    config, ledger = settings(expert.url, max_requests=10), Ledger(open_database(database))
    leave(config.model_copy(update=late_after_sending), ledger, 10, run="monday")
    results: list[list] = [[], []]

    def work(half: int) -> None:
        client = ExpertClient(settings(expert.url), ledger=Ledger(open_database(database)), run="tuesday")
        results[half] = client.ask(requests(config, 10)[half::2], {}.__getitem__)

    threads = [threading.Thread(target=work, args=(half,)) for half in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for half in results for reply in half] == ["answered"] * 10
    assert (expert.stats["requests"], expert.stats["batches"]) == (10, 1)
    used = spent(ledger, config, "monday")
    assert (used.requests, used.tokens) == (
        10,
        sum(r.prompt_tokens + r.completion_tokens for r in results[0] + results[1]),
    )
    assert spent(ledger, config, "tuesday") == Use()


def test_a_full_queue_is_waited_for_while_batches_of_ours_are_in_it(start_expert, ledger, monkeypatch):
    validated, refused = Batches._validated, []

    def one_at_a_time(batches, batch):
        busy = [other for other in batches._batches.values() if other["status"] == "in_progress"]
        batches._settings = batches._settings.model_copy(update={"batch_queue": 1 if busy else None})
        refused.extend([batch["id"]] if busy else [])
        return validated(batches, batch)

    monkeypatch.setattr(Batches, "_validated", one_at_a_time)
    monkeypatch.setattr("core.expert.batch_flights.MAX_REQUESTS", 4)
    expert = start_expert(latency_s=1.0)
    replies = ask(settings(expert.url), ledger, 8)
    assert all((reply.status, reply.attempts) == ("answered", 1) for reply in replies)
    assert (expert.stats["requests"], expert.stats["batches"], len(refused)) == (8, 3, 1)


def test_a_creation_of_which_nothing_is_heard_is_looked_for_by_a_later_run(start_expert, ledger, monkeypatch):
    create = Batches.create

    def silent(*args):
        if len(args) == 2:
            create(*args)
        raise ApiError(503, "overloaded")

    expert = start_expert()
    config = settings(expert.url, max_attempts=2, max_requests=5)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "create", silent)
        patch.setattr(Batches, "page", lambda *_: silent())
        with pytest.raises(ExpertUnavailable, match=r"takes no batch: http_503.* run again"):
            ask(config, ledger, 5)
    assert spent(ledger, config).requests == 5  # held: they may be answered
    assert all(reply.status == "answered" for reply in ask(config, ledger, 5, images={}))
    assert (expert.stats["batches"], expert.stats["requests"]) == (1, 5)


def test_a_creation_that_is_refused_leaves_nothing_behind(start_expert, ledger, monkeypatch):
    def refuse(*_):
        raise ApiError(400, "billing hard limit has been reached")

    expert = start_expert()
    config = settings(expert.url, max_requests=5)
    monkeypatch.setattr(Batches, "create", refuse)
    with pytest.raises(ExpertUnavailable, match="billing hard limit"):
        ask(config, ledger, 5)
    assert spent(ledger, config) == Use()
    assert lines_left(ledger, config, 5) == 0
    monkeypatch.undo()
    assert len(ask(config, ledger, 5)) == 5
