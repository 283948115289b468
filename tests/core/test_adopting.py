"""Texts become drafts in a model's tokens: nothing of a text is lost, and alignment can work on it."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from core.adopting import adopt
from core.alignment import DraftTokens, TextCodec, align
from core.errors import InputError
from core.models.tokenizer import build_word_tokenizer, train_bpe_tokenizer
from data_contracts import Corrections, Drafts, split_rows

BPE = train_bpe_tokenizer(["She sells 9 eggs at $2 each, so \\boxed{18} dollars. Größe 東京"] * 3, 400)
WORDS = build_word_tokenizer(["a", "red", "blue", "ring"])


def corrections(*rows: dict) -> pl.DataFrame:
    plain = {"question": "What?", "answer": "a red ring", "segments": [], "layout": "pred", "sample_id": "s"}
    records = [
        dict.fromkeys(Corrections.column_names()) | plain | {"correction_id": f"c{i}"} | row
        for i, row in enumerate(rows)
    ]
    return Corrections.validate(pl.DataFrame(records, schema=Corrections.create_empty().schema))


def adopted(frame, tokenizer=BPE, length=16, references=()):
    return adopt(frame, dict(references), tokenizer=tokenizer, response_length=length, model_digest="d")


@given(st.text(min_size=1, max_size=60).filter(lambda text: text.strip()))
@settings(max_examples=200, deadline=None)
def test_any_text_keeps_the_contract_and_its_characters(text):
    found = adopted(corrections({"draft": text}))
    good, failures = split_rows(Drafts, found.drafts)
    assert (failures, found.rejects.height) == ([], 0)
    (row,) = good.rows(named=True)
    ids = [token for token in row["token_ids"] if token != BPE.eos_token_id]
    assert BPE.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(row["token_ids"]) == max(16, len(ids) + 1)
    assert row["char_start"][len(ids) :] == [-1] * (len(row["token_ids"]) - len(ids))
    tokens = DraftTokens(**{name: row[name] for name in ("text", "prompt", "token_ids", "char_start", "char_end")})
    assert align(tokens, [], codec=TextCodec.of(BPE)).text == text


def test_the_truth_is_the_answer_or_what_is_known_of_the_sample():
    frame = corrections(
        {"draft": "a blue ring", "question": "<image>\nWhat?"},
        {"draft": "a blue ring", "answer": None, "sample_id": "known"},
        {"draft": "a blue ring", "answer": None, "sample_id": "unknown"},
        {"draft": "a blue ring", "answer": None, "sample_id": None},
    )
    found = adopted(frame, references={"known": "a ring"}.items())
    assert found.drafts["reference"].to_list() == ["a red ring", "a ring"]
    assert found.drafts["prompt"].to_list() == ["What?", "What?"]
    assert found.rejects.select("row_id", "reason").rows() == [("c2", "no_answer"), ("c3", "no_answer")]


def test_a_text_that_the_model_cannot_write_is_a_reject():
    found = adopted(corrections({"draft": "a blue zebra"}, {"draft": "a red ring"}), WORDS)
    assert found.drafts["draft_id"].to_list() == ["c1"]
    assert found.rejects["reason"].to_list() == ["special_token"]
    assert "<unk>" in found.rejects["detail"][0]


def test_a_tokenizer_without_an_end_of_text_is_an_error():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(InputError, match="needs a fast tokenizer with an eos token"):
        adopted(corrections({"draft": "a"}), bare)
