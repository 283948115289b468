"""The key appears nowhere, whatever the endpoint says back: an endpoint that repeats every header in every spelling."""

import pickle
import traceback

import pytest
from pydantic import SecretStr

from core.claims import open_database
from core.errors import RedraftError
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from tests.core.expert.asking import IMAGES, requests, settings
from tests.core.expert.echoing import echoing_endpoint, leaks, spellings

KEY = "sk-\"quo'te\\d/+=%-5f3Q"  # every character that a header may hold and that some spelling changes


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def client_of(url: str, ledger: Ledger, key: str = KEY, **changes) -> ExpertClient:
    config = settings(url, max_attempts=1, concurrency=1, **changes)
    return ExpertClient(config, ledger=ledger, api_key=SecretStr(key))


@pytest.mark.parametrize("status", [200, 400, 401, 429, 503])
@pytest.mark.parametrize("where", ["message", "page", "content", "refusal", "reason"])
def test_an_endpoint_that_repeats_our_headers_does_not_get_the_key_into_anything(
    status, where, ledger, tmp_path, caplog, capfd
):
    caplog.set_level("DEBUG")
    told, fault = [], None
    with echoing_endpoint(KEY, status, where) as url:
        client = client_of(url, ledger, max_tokens=200 + status)
        try:
            told = client.ask(requests(client.settings, 2), IMAGES.__getitem__, on_progress=told.append)
        except RedraftError as error:
            fault = error
    said = (
        "".join(traceback.format_exception(fault))
        + repr(fault)
        + repr(told)
        + caplog.text
        + "".join(capfd.readouterr())
    )
    assert leaks(KEY, said.encode()) == []
    assert leaks(KEY, pickle.dumps((fault, told))) == []
    written = list(ledger.find([request.key for request in requests(client.settings, 2)]).values())
    assert written, "an outcome is kept, and it is searched"
    assert leaks(KEY, repr(written).encode()) == []
    assert [
        (path.name, leaks(KEY, path.read_bytes())) for path in tmp_path.iterdir() if leaks(KEY, path.read_bytes())
    ] == []


def test_what_is_searched_for_is_found():
    for name, spelling in spellings(KEY).items():
        assert name in leaks(KEY, f"the endpoint says {spelling}".encode()), name


@pytest.mark.parametrize("key", [f" {KEY}\n", f"\t{KEY} "])
def test_white_space_around_a_key_is_no_part_of_it(key, start_expert, ledger):
    expert = start_expert(api_key=KEY)
    client = client_of(expert.url, ledger, key)
    (reply,) = client.ask(requests(client.settings, 1), IMAGES.__getitem__)
    assert reply.status == "answered"


def test_an_endpoint_that_is_not_there_is_said_without_the_key(ledger):
    client = client_of("http://127.0.0.1:9/v1", ledger)
    with pytest.raises(RedraftError) as caught:
        client.ask(requests(client.settings, 1), IMAGES.__getitem__)
    assert leaks(KEY, "".join(traceback.format_exception(caught.value)).encode()) == []


@pytest.mark.parametrize("key", ["a", "none", "EMPTY", "blue"])
def test_a_key_that_is_a_plain_word_is_no_secret_and_changes_no_reply(key, start_expert, ledger):
    """Local servers take any word; one that is also in a caption must not be blotted out there."""
    expert = start_expert()
    free, keyed = client_of(expert.url, ledger), client_of(expert.url, ledger, key, max_tokens=99)
    (reply,) = free.ask(requests(free.settings, 1), IMAGES.__getitem__)
    (same,) = keyed.ask(requests(keyed.settings, 1), IMAGES.__getitem__)
    assert same.raw == reply.raw
    assert "blue" in reply.raw


def test_neither_a_client_nor_its_settings_show_the_key(ledger):
    client = client_of("http://127.0.0.1:9/v1", ledger)
    shown = f"{client!r} {client} {vars(client)} {client.settings!r} {client.settings.model_dump_json()}"
    assert leaks(KEY, shown.encode() + pickle.dumps(client.settings)) == []
    with pytest.raises((TypeError, AttributeError)) as caught:  # a client holds connections: it cannot travel at all
        pickle.dumps(client)
    assert leaks(KEY, str(caught.value).encode()) == []
