"""What an endpoint puts into an answer can spoil that answer alone: nobody else's reply, and no place in flight."""

import json

import pytest

from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.dialect import said_by
from core.expert.ledger import Ledger
from core.expert.limiter import SharedLimiter
from core.expert.redaction import Redaction
from core.revising import revise
from tests.core.expert.asking import requests, settings
from tests.core.expert.revising import drafts_of, no_image, word_tokenizer
from tests.core.expert.test_client import serve_always

RIGHT = '{"segments": []}'


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def ask(ledger, status: int, body: str, n: int = 3):
    url, stop = serve_always(status, body)
    try:
        client = ExpertClient(settings(url, concurrency=2), ledger=ledger)
        replies = client.ask(requests(client.settings, n, sha=None), no_image)
    finally:
        stop()
    assert isinstance(client._limiter, SharedLimiter)
    assert client._limiter._used == 0
    assert ledger.find([reply.key for reply in replies]).keys() == {reply.key for reply in replies}
    return replies


def chat(content: object, **more: object) -> str:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more})


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 10**20, "completion_tokens": -1}, {"prompt_tokens": "?"}, "none", 3]
)
def test_a_usage_that_makes_no_sense_is_unknown_and_the_reply_is_used(ledger, usage):
    for reply in ask(ledger, 200, chat(RIGHT, usage=usage)):
        assert (reply.status, reply.prompt_tokens, reply.completion_tokens) == ("answered", None, None)


def test_a_content_in_parts_is_read(ledger):
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": RIGHT[:5]}, {"text": RIGHT[5:]}]
    assert {reply.raw for reply in ask(ledger, 200, chat(parts))} == {RIGHT}


def test_half_a_surrogate_pair_in_an_error_is_recorded(ledger):
    for reply in ask(ledger, 400, '{"error": {"message": "bad \\ud83d"}}'):
        assert reply.error.endswith("bad \ufffd")


def test_brackets_in_brackets_are_a_failed_reply_that_is_kept(ledger):
    content = 'so: {"a": ' + "[" * 2000 + "}"
    assert {(reply.error, reply.raw) for reply in ask(ledger, 200, chat(content))} == {("no_json", content)}


def test_half_a_surrogate_pair_in_a_segment_is_a_parse_error(ledger):
    url, stop = serve_always(
        200, chat('{"segments": [{"org": "ring", "target": "\\ud83d"}, {"org": "\\ud83d", "target": "a"}]}')
    )
    try:
        client = ExpertClient(settings(url), ledger=ledger)
        drafts = drafts_of([("a red ring", "a blue ring")])
        revised = revise(drafts, client=client, tokenizer=word_tokenizer(), load_image=no_image)
    finally:
        stop()
    assert [segment["reason"] for segment in revised.revisions["segments"][0]] == ["parse_error"] * 2
    assert [segment["target"] for segment in revised.revisions["segments"][0]] == ["\\ud83d", "a"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            '{"error": "response_format is not supported", "error_type": "validation"}',
            "response_format is not supported",
        ),
        ('{"detail": "no json_schema here"}', "no json_schema here"),
        (
            '{"detail": [{"msg": "Extra inputs", "loc": ["body", "max_tokens"], "input": 7}]}',
            "Extra inputs body max_tokens",
        ),
        ("<h1>Bad Request</h1>", "<h1>Bad Request</h1>"),
        ('{"error": {"message": "too long"}}', "too long"),
        ("[]", "Error code: 400"),
    ],
)
def test_what_an_endpoint_says_of_a_refusal_is_in_the_error_whatever_its_form(ledger, body, said):
    assert {reply.error.endswith(said) for reply in ask(ledger, 400, body)} == {True}


def test_an_error_of_no_endpoint_is_said_as_it_is():
    assert said_by(ValueError("x")) == "x"
    assert Redaction("").fault("\ud83d\0") == "\ufffd\ufffd"
