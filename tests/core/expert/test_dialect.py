"""Endpoints that know less than others are asked in what they know, over real HTTP."""

import pytest

from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.dialect import Dialect, _dialects
from core.expert.ledger import Ledger
from core.expert.reply import parse_reply
from core.expert.request import build_request
from tests.core.expert.asking import IMAGES, requests, settings

SCHEMA = Dialect(auto=True, structured="json_schema", limit="max_completion_tokens")
BODY = {"model": "m", "messages": [], "max_completion_tokens": 7, "temperature": 0.5, "response_format": {"type": "x"}}


@pytest.fixture(autouse=True)
def _nothing_is_known_yet():
    _dialects.cache_clear()  # ports come back


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def ask(config, ledger, n):
    return ExpertClient(config, ledger=ledger).ask(requests(config, n), IMAGES.__getitem__)


@pytest.mark.parametrize(
    ("refuses", "strict"),
    [((), True), (("json_schema",), True), (("json_schema", "json_object"), False)],
)
def test_the_first_request_finds_out_which_structured_output_is_taken(start_expert, ledger, refuses, strict):
    expert = start_expert(refuses=refuses)
    config = settings(expert.url, structured="auto", concurrency=8)
    replies = ask(config, ledger, 12)
    assert expert.stats["requests"] == 12 + len(refuses)
    assert all((reply.raw.startswith("{"), reply.status) == (strict, "answered") for reply in replies)
    assert [parse_reply(reply.raw).segments for reply in replies] == [(("blue", "red"),)] * 12
    ask(config, ledger, 15)
    assert expert.stats["requests"] == 15 + len(refuses)  # what was found out is remembered


@pytest.mark.parametrize(
    "refuses", [("max_tokens",), ("max_completion_tokens",), ("temperature",), ("temperature", "max_tokens")]
)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_parameter_that_is_refused_by_name_is_written_otherwise(start_expert, ledger, refuses, field):
    expert = start_expert(refuses=refuses)
    config = settings(expert.url, temperature=0.5, max_tokens_field=field, concurrency=1)
    assert all(reply.status == "answered" for reply in ask(config, ledger, 4))
    assert expert.stats["answered"] == 4
    assert expert.stats["requests"] == 4 + len(set(refuses) & {field, "temperature"})


def test_everything_at_once(start_expert, ledger):
    expert = start_expert(refuses=("json_schema", "json_object", "temperature", "max_completion_tokens"))
    config = settings(expert.url, structured="auto", temperature=0.0, concurrency=4)
    replies = ask(config, ledger, 5)
    assert [reply.attempts for reply in replies] == [5, 1, 1, 1, 1]
    assert expert.stats["answered"] == 5


def test_a_fixed_form_is_not_changed(start_expert, ledger):
    expert = start_expert(refuses=("json_schema",))
    (reply,) = ask(settings(expert.url), ledger, 1)
    assert (reply.status, reply.attempts) == ("failed", 1)
    assert reply.error.startswith("http_400")
    (reply,) = ask(settings(expert.url, structured="json_object"), ledger, 1)
    assert reply.status == "answered"


def test_an_endpoint_without_either_limit_is_at_fault_and_not_asked_for_ever(start_expert, ledger):
    expert = start_expert(refuses=("max_tokens", "max_completion_tokens"))
    replies = ask(settings(expert.url, concurrency=1), ledger, 3)
    assert [reply.error.partition(":")[0] for reply in replies] == ["http_400"] * 3
    assert expert.stats["requests"] == 4


def test_an_endpoint_that_is_down_while_it_is_found_out_holds_up_nobody_for_long(start_expert, ledger):
    expert = start_expert(share_500=0.5, seed=3)
    replies = ask(settings(expert.url, structured="auto", max_attempts=20), ledger, 10)
    assert all(reply.status == "answered" for reply in replies)


@pytest.mark.parametrize(
    ("param", "said", "changes"),
    [
        ("response_format", "'response_format' of type 'json_schema' is not supported", "structured"),
        (None, "No endpoints found that support the requested structured_outputs", "structured"),
        (None, "json: unknown field \"response_format\"", "structured"),
        ("max_completion_tokens", "Unrecognized request argument supplied: max_completion_tokens", "limit"),
        (None, "body.max_completion_tokens: Extra inputs are not permitted", "limit"),
        ("temperature", "Unsupported value: 'temperature' does not support 0.5 with this model.", "temperature"),
        ("max_completion_tokens", "max_completion_tokens is too large: 100000", None),
        ("messages", "Invalid image: not supported", None),
        (None, "Your input image may contain content that is not allowed by our safety system", None),
    ],
)  # fmt: skip
def test_only_a_refusal_that_names_a_parameter_changes_it(param, said, changes):
    other = SCHEMA.after(param, said)
    if changes is None:
        assert other is None
    else:
        assert getattr(other, changes) != getattr(SCHEMA, changes)


def test_each_step_goes_one_way_and_ends():
    dialect, seen = SCHEMA, []
    while dialect is not None:
        seen.append(dialect)
        dialect = dialect.after(None, "unsupported: response_format, temperature, max_tokens, max_completion_tokens")
    assert len(seen) == 5
    written = seen[-1].write(BODY)
    assert written == {"model": "m", "messages": [], "max_tokens": 7}
    assert SCHEMA.write(BODY) == BODY


def test_auto_has_keys_of_its_own_and_the_others_keep_theirs():
    keys = {
        form: build_request(
            settings("", structured=form), question="q", reference="r", prediction="p", image_sha=None
        ).key
        for form in ("auto", "json_schema", "json_object", "none")
    }
    assert len(set(keys.values())) == 4
    assert keys["json_schema"][:16] == "19a11308b9982dd6"
    assert keys["none"][:16] == "a579ae1c6251d512"
