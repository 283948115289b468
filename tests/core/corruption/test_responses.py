import numpy as np
import polars as pl
import pytest

from core.corruption.responses import encode_prompts, encode_responses, prompt_ids, vocabulary
from core.corruption.rows import token_regions
from core.errors import InputError
from core.models.tokenizer import train_bpe_tokenizer
from data_contracts import Samples
from tests.core.corruption.tables import EOS, MASK, TOKENIZER, UNK, WORDS, ids, spans, word_tokenizer


def test_a_response_is_text_then_end_of_text_to_its_last_position():
    encoded = encode_responses(TOKENIZER, ["a red ring", "a"], 5)
    assert encoded.ids_NL.tolist() == [ids("a red ring", 5), ids("a", 5)]
    assert encoded.start_NL.tolist() == [[0, 2, 6, -1, -1], [0, -1, -1, -1, -1]]
    assert encoded.end_NL.tolist() == [[1, 5, 10, -1, -1], [1, -1, -1, -1, -1]]
    assert encoded.length_N.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("a red ring is", None, ""),
        ("a red ring is at", "too_long", "5 tokens, at most 4 fit"),
        ("a zebra ring", "unknown_token", "zebra"),
        ("a [MASK] ring", "special_token", "[MASK]"),
        ("   ", "empty", ""),
    ],
)
def test_a_text_that_cannot_be_a_response_has_a_reason(text, reason, detail):
    encoded = encode_responses(TOKENIZER, ["a", text], 5)
    assert (encoded.reason_N, encoded.detail_N) == ([None, reason], ["", detail])


def test_settings_left_by_an_earlier_call_of_the_tokenizer_change_nothing():
    tokenizer = word_tokenizer()
    tokenizer(["a red ring is at", "a"], padding=True, truncation=True, max_length=2)
    assert encode_responses(tokenizer, ["a red ring", "a"], 5).length_N.tolist() == [3, 1]


def test_offsets_are_those_of_transformers_for_byte_level_tokens():
    texts = ["a blue ring, naïve", "zwei größere Ringe"]
    tokenizer = train_bpe_tokenizer(texts * 3, 280)
    encoded = encode_responses(tokenizer, texts, 40)
    expected = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    for row, (row_ids, offsets) in enumerate(zip(expected["input_ids"], expected["offset_mapping"], strict=True)):
        length = len(row_ids)
        assert encoded.ids_NL[row, :length].tolist() == row_ids
        pairs = np.stack([encoded.start_NL, encoded.end_NL], axis=-1)[row, :length]
        assert [tuple(pair) for pair in pairs.tolist()] == offsets


def test_a_vocabulary_knows_its_special_tokens():
    vocab = vocabulary(TOKENIZER)
    assert (vocab.mask, vocab.eos, vocab.unknown) == (MASK, EOS, UNK)
    assert vocab.ordinary_K.tolist() == list(range(len(WORDS)))
    assert not set(vocab.special_K) & set(vocab.ordinary_K)


def test_a_tokenizer_without_a_mask_is_refused_with_what_to_do():
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(InputError, match="mask_token"):
        vocabulary(tokenizer)


def test_each_distinct_prompt_is_encoded_once():
    prompts = encode_prompts(TOKENIZER, pl.Series(["the image", "describe", "the image", "the _"]), 5)
    assert [row.tolist() for row in prompts.ids_P] == [ids("the image"), ids("describe"), [WORDS.index("the"), UNK]]
    assert prompts.index_N.tolist() == [0, 1, 0, 2]
    assert prompts.reason_P == [None, None, "unknown_token"]


def test_a_prompt_that_leaves_no_room_for_the_response_is_told_apart():
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 7
    prompts = encode_prompts(tokenizer, pl.Series(["the image", "the red image"]), 5)
    assert prompts.reason_P == [None, "prompt_too_long"]


def test_a_chat_template_wraps_the_prompt():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "a {{ messages[0].content }} {% if add_generation_prompt %}is{% endif %}"
    assert prompt_ids(tokenizer, "red ring") == ids("a red ring is")


def test_a_token_speaks_of_the_region_that_its_chars_do():
    texts = ["a red ring is", "a red ring is", "a ring"]
    encoded = encode_responses(TOKENIZER, texts, 6)
    grounding = pl.Series(
        [spans(texts[0], {"red": 4, "ring": 0}), None, []], dtype=Samples.create_empty().schema["grounding"]
    )
    regions = token_regions(grounding, encoded.start_NL, encoded.end_NL)
    assert regions.tolist() == [[-1, 4, 0, -1, -1, -1], [-1] * 6, [-1] * 6]


def test_a_span_that_begins_where_a_token_ends_is_not_that_token_s():
    encoded = encode_responses(TOKENIZER, ["a red ring"], 4)
    grounding = pl.Series([[{"start": 1, "end": 6, "region": 2}]], dtype=Samples.create_empty().schema["grounding"])
    assert token_regions(grounding, encoded.start_NL, encoded.end_NL).tolist() == [[-1, 2, -1, -1]]
