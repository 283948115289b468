"""What revising is going to take is known before the first request, and right within a tenth on text."""

import json

import polars as pl
import pytest

from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.forecast import forecast
from core.expert.ledger import Ledger
from core.expert.settings import AlignmentSettings
from core.models.tokenizer import train_bpe_tokenizer
from core.revising import revise
from tests.core.expert.asking import settings
from tests.core.test_reasking import SCENES, scene_drafts

DRAFTS = scene_drafts(120)
NO_IMAGES: dict[str, bytes] = {}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def expected(config, ledger, *drafts):
    return forecast(drafts or [DRAFTS], config, ledger, NO_IMAGES.__getitem__)


def revised(config, ledger, drafts=DRAFTS):
    client = ExpertClient(config, ledger=ledger)
    return revise(drafts, client=client, tokenizer=SCENES, load_image=NO_IMAGES.__getitem__)


def used(found, name):
    return found.revisions[name].sum() + found.reasks[name].sum()


def test_requests_tokens_and_cost_are_within_a_tenth(start_expert, ledger):
    config = settings(start_expert().url, price_in=2.0, price_out=8.0)
    told = expected(config, ledger)
    found = revised(config, ledger)
    assert told.requests == 120
    assert told.prompt_tokens == pytest.approx(used(found, "prompt_tokens"), rel=0.1)
    assert told.completion_tokens == pytest.approx(used(found, "completion_tokens"), rel=0.1)
    assert told.cost_usd == pytest.approx(used(found, "cost_usd"), rel=0.1)


def test_second_questions_are_expected_as_often_as_they_were_before(start_expert, ledger):
    config = settings(start_expert().url, model="reference-resizes-0.5-complies-0.6", align=AlignmentSettings(window=1))
    revised(config, ledger, DRAFTS[:60])
    told = expected(config, ledger, DRAFTS[60:])
    found = revised(config, ledger, DRAFTS[60:])
    assert told.reasks == pytest.approx(found.reasks.height, rel=0.15)
    assert told.prompt_tokens == pytest.approx(used(found, "prompt_tokens"), rel=0.1)
    assert told.completion_tokens == pytest.approx(used(found, "completion_tokens"), rel=0.1)


def test_what_is_empty_repeated_or_answered_is_not_sent(start_expert, ledger):
    expert = start_expert()
    config = settings(expert.url)
    revised(config, ledger, DRAFTS[:50])
    empty = DRAFTS[60:70].with_columns(text=pl.lit(" "))
    told = expected(config, ledger, DRAFTS[:60], pl.concat([empty, DRAFTS[:5], DRAFTS[70:80], DRAFTS[70:80]]))
    assert (told.drafts, told.empty, told.repeated, told.from_ledger, told.requests) == (95, 10, 15, 50, 20)
    sent = expert.stats["requests"]
    assert sent == 50  # to count is not to ask
    assert told.cost_usd is None


def test_prompts_are_counted_with_the_tokenizer_of_the_expert(tmp_path, ledger):
    train_bpe_tokenizer([json.dumps({"prediction": text}) for text in DRAFTS["text"]], 300).save_pretrained(tmp_path)
    plain = settings("http://127.0.0.1:9/v1")
    coarse, exact = expected(plain, ledger), expected(plain.model_copy(update={"tokenizer": str(tmp_path)}), ledger)
    assert exact.prompt_tokens > 1.2 * coarse.prompt_tokens  # a vocabulary of 300 has short tokens
    assert any("counted with the tokenizer" in line for line in exact.basis)
