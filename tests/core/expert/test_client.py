"""The client against the reference expert, over real HTTP on 127.0.0.1."""

import http.server
import socket
import threading
import traceback

import httpx2
import openai
import pytest
from pydantic import SecretStr

from core.claims import open_database
from core.errors import ConfigError, ExpertUnavailable, StoreError
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from core.expert.reply import parse_reply
from core.expert.request import build_request
from core.expert.transport import retry_after_s
from tests.core.expert.asking import IMAGE, IMAGES, SHA, requests, settings

SECRET = "sk-very-secret-123"


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def ledger(database):
    return Ledger(open_database(database))


def ask(config, ledger, n=1, *, images=IMAGES, api_key=None, **options):
    client = ExpertClient(config, ledger=ledger, api_key=SecretStr(api_key) if api_key else None)
    return client.ask(requests(config, n), images.__getitem__, **options)


def test_answers_come_in_order_with_usage_and_cost(start_expert, ledger):
    seen = []
    config = settings(start_expert().url, price_in=1.0, price_out=2.0)
    replies = ask(config, ledger, 5, on_progress=seen.append)
    assert [parse_reply(reply.raw).segments for reply in replies] == [((("blue", "red")),)] * 5
    assert [reply.key for reply in replies] == [request.key for request in requests(config, 5)]
    for reply in replies:
        assert reply.cost_usd == pytest.approx((reply.prompt_tokens + 2 * reply.completion_tokens) / 1e6)
        assert reply.attempts == 1
        assert reply.latency_s > 0
    assert [progress.done for progress in seen] == [0, 1, 2, 3, 4, 5]
    assert seen[-1].cost_usd == pytest.approx(sum(reply.cost_usd for reply in replies))


def test_without_a_schema_the_expert_answers_as_it_likes_and_is_understood(start_expert, ledger):
    config = settings(start_expert().url, structured="none", temperature=0.5, max_tokens_field="max_tokens")
    request = build_request(config, question="?", reference="a ring", prediction="a ring", image_sha=None)
    (reply,) = ExpertClient(config, ledger=ledger).ask([request], IMAGES.__getitem__)
    assert reply.raw == "right"
    assert parse_reply(ask(config, ledger)[0].raw).verdict == "revised"


def test_a_second_run_asks_nothing(start_expert, ledger, database):
    expert = start_expert()
    first = ask(settings(expert.url), ledger, 6)
    seen = []
    again = ask(settings(expert.url), Ledger(open_database(database)), 6, images={}, on_progress=seen.append)
    assert again == first
    assert expert.stats["requests"] == 6
    assert (seen[0].cached, seen[0].done) == (6, 6)


def test_equal_requests_are_sent_once(start_expert, ledger):
    expert = start_expert()
    config = settings(expert.url)
    replies = ExpertClient(config, ledger=ledger).ask(requests(config, 2) * 3, IMAGES.__getitem__)
    assert len(replies) == 6
    assert expert.stats["requests"] == 2


def test_two_workers_at_once_never_pay_twice(start_expert, database):
    expert = start_expert(latency_s=0.03)
    results: list[list] = [[], [], []]

    def work(slot: int) -> None:
        results[slot] = ask(settings(expert.url, concurrency=4), Ledger(open_database(database)), 20)

    Ledger(open_database(database))
    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert all(reply.status == "answered" for reply in results[0])
    assert expert.stats["requests"] == expert.stats["answered"] == 20


def test_rate_limits_and_server_errors_are_tried_again(start_expert, ledger):
    expert = start_expert(share_429=0.3, share_500=0.2, retry_after_s=0.02)
    replies = ask(settings(expert.url, max_attempts=30), ledger, 20)
    stats = expert.stats
    assert all(reply.status == "answered" for reply in replies)
    assert stats["fault_429"] > 0
    assert stats["fault_500"] > 0
    assert sum(reply.attempts for reply in replies) == stats["requests"] == 20 + stats["fault_429"] + stats["fault_500"]


def test_a_reply_that_is_no_json_fails_is_recorded_and_is_asked_again_by_a_later_run(start_expert, ledger):
    (failed,) = ask(settings(start_expert(share_malformed=1.0).url), ledger)
    assert (failed.status, failed.error) == ("failed", "no_json")
    assert failed.raw.startswith("I am sorry")
    assert failed.completion_tokens > 0
    assert ledger.find([failed.key]) == {failed.key: failed}
    (answered,) = ask(settings(start_expert().url), ledger)
    assert (answered.key, answered.status) == (failed.key, "answered")


@pytest.mark.parametrize("how", ["fault", "limit"])
def test_a_reply_that_is_cut_off_is_a_failure(start_expert, ledger, how):
    expert = start_expert(share_truncated=1.0 if how == "fault" else 0.0)
    (reply,) = ask(settings(expert.url, max_tokens=2048 if how == "fault" else 3), ledger)
    assert (reply.status, reply.error, reply.finish_reason) == ("failed", "length", "length")


def test_a_missing_and_a_broken_image_fail_alone(start_expert, ledger):
    config, broken = settings(start_expert().url), b"\x89PNG\r\n\x1a\nbroken"
    batch = [requests(config, 1, sha=sha)[0] for sha in (SHA, "0" * 64, "1" * 64)]
    good, missing, bad = ExpertClient(config, ledger=ledger).ask(batch, {SHA: IMAGE, "1" * 64: broken}.__getitem__)
    assert good.status == "answered"
    assert missing.error.startswith("image_missing")
    assert bad.error.startswith("http_400")
    assert "no readable image" in bad.error


def test_an_endpoint_that_refuses_stops_with_advice_and_is_recorded(ledger):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(ExpertUnavailable, match=r"127\.0\.0\.1.*expert\.base_url"):
        ask(settings(url), ledger, 5)
    (first, *_) = requests(settings(url), 1)
    assert ledger.find([first.key])[first.key].error.startswith("connection")


@pytest.mark.parametrize(
    ("changes", "key", "advice"),
    [({}, "sk-wrong-one", "API key"), ({}, None, "API key"), ({"model": "other"}, SECRET, r"expert\.model")],
)
def test_a_wrong_key_or_model_stops_with_advice(start_expert, ledger, changes, key, advice):
    expert = start_expert(api_key=SECRET)
    with pytest.raises(ExpertUnavailable, match=advice) as caught:
        ask(settings(expert.url, **changes), ledger, 50, api_key=key)
    assert expert.stats["requests"] < 50
    assert (key or SECRET) not in "".join(traceback.format_exception(caught.value))


def test_the_right_key_opens_and_stays_out_of_everything_written(start_expert, ledger, tmp_path, caplog):
    caplog.set_level("DEBUG")
    client = ExpertClient(settings(start_expert(api_key=SECRET).url), ledger=ledger, api_key=SecretStr(SECRET))
    (reply,) = client.ask(requests(client.settings, 1), IMAGES.__getitem__)
    assert reply.status == "answered"
    assert SECRET not in repr(client) + repr(vars(client)) + caplog.text
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_an_endpoint_that_echoes_the_key_does_not_get_it_into_our_words(ledger):
    url, stop = serve_always(500, '{"error": {"message": "bad key ' + SECRET + '"}}')
    try:
        (reply,) = ask(settings(url, max_attempts=1), ledger, api_key=SECRET)
    finally:
        stop()
    assert reply.error.startswith("http_500")
    assert SECRET not in reply.error


def test_too_many_failures_in_a_row_stop_the_run_and_keep_what_was_answered(start_expert, ledger):
    good = settings(start_expert().url)
    answered = ask(good, ledger, 3)
    expert = start_expert(share_500=1.0)
    with pytest.raises(ExpertUnavailable, match="in a row"):
        ask(settings(expert.url, max_attempts=2, breaker=4, concurrency=2), ledger, 40)
    assert expert.stats["requests"] <= 12
    assert ask(good, ledger, 3) == answered


def test_an_answer_that_never_comes_is_a_timeout(start_expert, ledger):
    (reply,) = ask(settings(start_expert(latency_s=1.0).url, timeout_s=0.2, max_attempts=2), ledger)
    assert (reply.status, reply.attempts) == ("failed", 2)
    assert reply.error.startswith("timeout")


@pytest.mark.parametrize("body", ["<html>hello</html>", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'])
def test_a_page_that_is_no_chat_completion_is_a_failure(ledger, body):
    url, stop = serve_always(200, body)
    try:
        (reply,) = ask(settings(url), ledger)
    finally:
        stop()
    assert reply.error.startswith("bad_response")


def test_a_fatal_error_of_the_store_ends_the_run_as_it_is(start_expert, ledger):
    def load(_sha: str) -> bytes:
        raise StoreError("disk is gone")

    config = settings(start_expert().url)
    with pytest.raises(StoreError, match="disk is gone"):
        ExpertClient(config, ledger=ledger).ask(requests(config, 3), load)
    assert all(reply.status == "answered" for reply in ask(config, ledger, 3))  # no claim was left behind


@pytest.mark.parametrize("body", ["<html>key {key} is wrong</html>", '{"error": "{key}"}', "x" * 190 + "{key}"])
def test_a_page_that_echoes_the_key_does_not_get_it_into_our_words(ledger, body):
    url, stop = serve_always(200, body.replace("{key}", SECRET))
    try:
        (reply,) = ask(settings(url), ledger, api_key=SECRET)
    finally:
        stop()
    assert reply.error.startswith("bad_response")
    assert SECRET[:6] not in reply.error


def test_a_refusal_that_echoes_the_key_does_not_get_it_into_our_words(ledger):
    url, stop = serve_always(200, '{"choices": [{"message": {"refusal": "no, ' + SECRET + '"}}]}')
    try:
        (reply,) = ask(settings(url), ledger, api_key=SECRET)
    finally:
        stop()
    assert reply.error == "refusal: no, ***"


@pytest.mark.parametrize("url", ["", "ftp://x/v1", "not a url", "http://x:port/v1", "http://[x/v1"])
def test_an_address_that_is_none_is_the_users_mistake(ledger, url):
    with pytest.raises(ConfigError, match="base_url"):
        ask(settings(url), ledger)


def test_a_key_that_no_header_can_hold_is_not_repeated(ledger):
    with pytest.raises(ConfigError) as caught:
        ask(settings("http://127.0.0.1:9/v1"), ledger, api_key="sk-\nbroken")
    assert "broken" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    response = httpx2.Response(429, headers=headers, request=httpx2.Request("POST", "http://x"))
    assert retry_after_s(openai.RateLimitError("slow", response=response, body=None)) == seconds


def serve_always(status: int, body: str):
    """A server that answers every request alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if body.startswith("{") else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return f"http://127.0.0.1:{server.server_address[1]}/v1", stop
