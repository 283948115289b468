"""The client against a real vLLM: tiny models with random weights on the CPU, behind the server that users run.

`make test-vllm` builds the environment and runs these. What the replies say means nothing; that each of them ends as
an outcome, and which, is what is tested.
"""

import hashlib
import io
import os
from pathlib import Path

import pytest
from PIL import Image
from pydantic import SecretStr

from core.claims import open_database
from core.errors import ExpertUnavailable
from core.expert.client import ExpertClient
from core.expert.dialect import process_dialects
from core.expert.ledger import Ledger
from core.expert.reply import parse_reply
from core.expert.request import AnswerModel, build_request
from core.expert.settings import ExpertSettings
from core.models.tokenizer import train_bpe_tokenizer
from core.revising import revise
from data_contracts import Revisions, split_rows
from tests.core.expert.asking import IMAGES, requests, settings
from tests.core.expert.serving import CONTEXT, KEY, NAME, make_models, served
from tests.core.test_revising import drafts_of

ENVIRONMENT = os.environ.get("REDRAFT_VLLM_ENV", "")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),  # the first test waits for the server: a minute on an idle machine
    pytest.mark.skipif(not ENVIRONMENT, reason="REDRAFT_VLLM_ENV names no environment with vLLM: `make test-vllm`"),
]


def png(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (0, 0, 200)).save(data, "png")
    return data.getvalue()


SMALL, LARGE, BROKEN = png(96, 64), png(320, 240), b"\x89PNG\r\n\x1a\n and nothing else"
PICTURES = {hashlib.sha256(data).hexdigest(): data for data in (SMALL, LARGE, BROKEN)}
SMALL_SHA, LARGE_SHA, BROKEN_SHA = PICTURES


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(Path(ENVIRONMENT), folder)
    return folder


@pytest.fixture(scope="module")
def vllm(models):
    with served(Path(ENVIRONMENT), models / "vision", models / "vision.log") as server:
        yield server


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def ours(server, **changes) -> ExpertSettings:
    return settings(server.url, **({"model": NAME, "max_tokens": 512, "timeout_s": 120} | changes))


def client(config, ledger, key=KEY) -> ExpertClient:
    return ExpertClient(config, ledger=ledger, api_key=SecretStr(key))


def ask(config, ledger, asked, images=IMAGES | PICTURES, **options):
    return client(config, ledger, **options).ask(asked, images.__getitem__)


def about(config, *pictures: str | None):
    """One request for each picture."""
    texts = {"question": "what?", "reference": "a red ring", "prediction": "a blue ring"}
    return [build_request(config, image_sha=picture, **texts) for picture in pictures]


def test_a_model_without_eyes_fails_the_requests_with_images_and_answers_the_others(models, ledger):
    with served(Path(ENVIRONMENT), models / "text", models / "text.log") as server:
        config = ours(server)
        seen, read = ask(config, ledger, about(config, SMALL_SHA, None))
    assert (seen.status, seen.error.partition(":")[0], seen.attempts) == ("failed", "http_400", 1)
    assert (read.status, read.error) == ("answered", None)


def test_64_requests_with_images_at_once_keep_the_schema_or_are_cut_off(vllm, ledger):
    config = ours(vllm, concurrency=64)
    replies = ask(config, ledger, requests(config, 64))
    assert [reply.key for reply in replies] == [request.key for request in requests(config, 64)]
    answered = [reply for reply in replies if reply.status == "answered"]
    assert {reply.error for reply in replies if reply.status == "failed"} <= {"length"}
    assert len(answered) >= 48
    for reply in answered:
        segments = AnswerModel.model_validate_json(reply.raw).segments
        assert parse_reply(reply.raw).segments == tuple((segment.org, segment.target) for segment in segments)
    assert "revised" in {parse_reply(reply.raw).verdict for reply in answered}
    assert all(reply.prompt_tokens > 400 and reply.completion_tokens > 4 for reply in replies)
    assert {reply.attempts for reply in replies} == {1}


def test_a_second_ask_sends_only_what_was_not_answered(vllm, ledger):
    config = ours(vllm)
    before = vllm.answered
    first = ask(config, ledger, requests(config, 12))
    assert vllm.answered == before + 12
    again = ask(config, ledger, requests(config, 12))
    cut_off = [reply for reply in first if reply.status == "failed"]
    assert vllm.answered == before + 12 + len(cut_off)
    assert [pair[0] for pair in zip(first, again, strict=True) if pair[0] != pair[1]] == cut_off


def test_the_probe_finds_that_a_schema_is_taken(vllm, ledger):
    config = ours(vllm, structured="auto")
    replies = ask(config, ledger, requests(config, 4))
    assert process_dialects(config).current.structured == "json_schema"
    assert {reply.attempts for reply in replies} == {1}
    assert all(reply.raw.startswith('{"segments":[') for reply in replies)


@pytest.mark.parametrize("structured", ["json_object", "none"])
def test_without_a_schema_every_reply_is_answered_or_failed_with_a_reason(vllm, ledger, structured):
    config = ours(vllm, structured=structured)
    for reply in ask(config, ledger, requests(config, 8)):
        parsed = parse_reply(reply.raw)
        cut_off = reply.finish_reason == "length"
        assert (reply.status == "answered") == (parsed.verdict != "failed" and not cut_off)
        assert reply.error == ("length" if cut_off else parsed.problems[0] if reply.status == "failed" else None)
        assert reply.completion_tokens > 0


@pytest.mark.parametrize("field", ["max_completion_tokens", "max_tokens"])
def test_a_reply_at_its_longest_is_recorded_as_cut_off_with_what_it_cost(vllm, ledger, field):
    config = ours(vllm, max_tokens=2, max_tokens_field=field, price_in=1.0, price_out=10.0)
    (reply,) = ask(config, ledger, requests(config, 1))
    assert (reply.status, reply.error, reply.finish_reason) == ("failed", "length", "length")
    assert reply.completion_tokens == 2
    assert reply.cost_usd == pytest.approx((reply.prompt_tokens + 20) / 1e6)
    assert ledger.find([reply.key]) == {reply.key: reply}


def test_a_token_of_an_image_is_28_pixels_square_and_scaling_saves_them(vllm, ledger):
    config = ours(vllm)
    plain, small, large = (reply.prompt_tokens for reply in ask(config, ledger, about(config, None, *PICTURES)[:3]))
    assert small - plain == 3 * 2 + 2  # 84 x 56 pixels; one token before, one behind
    assert large - plain == 9 * 6 + 2  # the model itself scales what has more than 64
    scaled = ours(vllm, image_max_side=96)
    (reply,) = ask(scaled, ledger, about(scaled, LARGE_SHA))
    assert reply.prompt_tokens - plain == 3 * 3 + 2


def test_what_cannot_be_answered_fails_alone(vllm, ledger):
    config = ours(vllm)
    long = build_request(config, question="?", reference="ring " * CONTEXT, prediction="a ring", image_sha=None)
    replies = ask(config, ledger, [*about(config, BROKEN_SHA), long, *about(config, SMALL_SHA)])
    assert [reply.status for reply in replies] == ["failed", "failed", "answered"]
    assert [reply.error.partition(":")[0] for reply in replies[:2]] == ["http_400", "http_400"]
    assert str(CONTEXT) in replies[1].error
    assert {reply.attempts for reply in replies} == {1}


def test_a_limit_beyond_the_models_context_stops_the_run_and_says_so(vllm, ledger):
    config = ours(vllm, max_tokens=CONTEXT + 1, breaker=4, concurrency=2)
    with pytest.raises(ExpertUnavailable, match=f"max_model_len={CONTEXT}"):
        ask(config, ledger, requests(config, 40))


def test_a_request_that_takes_too_long_is_given_up_and_the_server_goes_on(vllm, ledger):
    endless = ours(vllm, structured="none", max_tokens=CONTEXT // 2, timeout_s=0.3, max_attempts=2)
    # no prompt makes a random model brief: of so many requests some are still being answered
    replies = ask(endless, ledger, requests(endless, 16, sha=None))
    late = [reply for reply in replies if reply.error == "timeout: no answer in 0.3 s"]
    assert late
    assert {reply.attempts for reply in late} == {2}
    config = ours(vllm)
    assert ask(config, ledger, about(config, SMALL_SHA))[0].status == "answered"


def test_a_model_that_is_not_served_is_named_beside_the_one_that_is(vllm, ledger):
    config = ours(vllm, model="another")
    with pytest.raises(ExpertUnavailable, match=rf"expert\.model.*another.*{NAME}"):
        ask(config, ledger, requests(config, 3))


def test_a_wrong_key_stops_the_run_and_is_not_repeated(vllm, ledger):
    config = ours(vllm, api_key_env="EXPERT_KEY")
    with pytest.raises(ExpertUnavailable, match=r"HTTP 401: check the API key") as caught:
        ask(config, ledger, requests(config, 3), key="sk-wrong-456")
    assert "sk-wrong-456" not in str(caught.value)


def test_every_draft_is_decided_and_keeps_the_contract(vllm, ledger):
    texts = [f"a {colour} ring on the {side}" for colour in ("red", "blue") for side in ("left", "right")]
    tokenizer = train_bpe_tokenizer(texts * 20, 400)
    drafts = drafts_of(
        tokenizer,
        *[(text, texts[0], SMALL_SHA) for text in texts],
        (texts[1], texts[2], None),
        ("", texts[0], SMALL_SHA),
        (texts[0], texts[1], "f" * 64),
        (texts[0], texts[1], BROKEN_SHA),
    )
    frame = revise(drafts, client=client(ours(vllm), ledger), tokenizer=tokenizer, load_image=PICTURES.__getitem__)
    good, failures = split_rows(Revisions, frame)
    assert failures == []
    assert good["draft_id"].to_list() == drafts["draft_id"].to_list()
    errors = [error and error.partition(":")[0] for error in good["error"]]
    assert errors[5:] == ["empty_draft", "image_missing", "http_400"]
    for verdict, error, segments, tokens in zip(
        good["verdict"], errors, good["segments"], good["completion_tokens"], strict=True
    ):
        assert (verdict == "failed") == (error is not None)
        assert (verdict == "right") == (error is None and not len(segments))
        assert tokens is not None or error in ("empty_draft", "image_missing", "http_400")
        if verdict == "unusable":
            assert all(segment["reason"] for segment in segments)
    assert set(errors[:5]) <= {None, "length"}
