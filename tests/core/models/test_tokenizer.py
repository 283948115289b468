import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from core.errors import ConfigError
from core.models.tokenizer import CONTROL_TOKENS, build_word_tokenizer, train_bpe_tokenizer

WORDS = ("a", "red", "ring", ".")
TEXTS = ["a red ring on a wall", "two dogs in the snow", "a dog and a ring", "snow on a red wall"] * 4
BPE = train_bpe_tokenizer(TEXTS, 290)


def control_ids(tokenizer):
    return [tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]


@pytest.fixture(params=["word", "bpe"])
def tokenizer(request):
    return build_word_tokenizer(WORDS) if request.param == "word" else BPE


def test_control_tokens_are_four_different_ids_after_the_vocabulary(tokenizer):
    ids = control_ids(tokenizer)
    assert len(set(ids)) == 4
    assert sorted(tokenizer.all_special_ids) == sorted(ids)
    assert max(ids) < len(tokenizer) <= 290


def test_nothing_is_added_to_a_text(tokenizer):
    assert tokenizer("")["input_ids"] == []
    with_specials = tokenizer("a red ring", add_special_tokens=True)["input_ids"]
    assert with_specials == tokenizer("a red ring", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(with_specials) == "a red ring"


@pytest.mark.parametrize("spelled", CONTROL_TOKENS[:3])
def test_text_that_spells_a_control_token_stays_text(tokenizer, spelled):
    control = {tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    for text in (spelled, f"a {spelled} ring", f"a{spelled}ring"):
        assert control.isdisjoint(tokenizer(text)["input_ids"])
        assert control.isdisjoint(tokenizer.encode(text))
        assert control.isdisjoint(tokenizer([text], padding=True)["input_ids"][0])


def test_saving_and_loading_keeps_every_id(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a red <mask> ring ."
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert control_ids(loaded) == control_ids(tokenizer)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])


def test_word_tokenizer_numbers_words_in_order_and_knows_no_other():
    tokenizer = build_word_tokenizer(WORDS)
    encoded = tokenizer("ring  a\nblue .", return_offsets_mapping=True)
    assert encoded["input_ids"] == [2, 0, tokenizer.unk_token_id, 3]
    assert encoded["offset_mapping"] == [(0, 4), (6, 7), (8, 12), (13, 14)]
    assert tokenizer.decode([2, 0, 3]) == "ring a ."


@pytest.mark.parametrize("words", [("a", "a"), ("a b",), ("",), ("<mask>",), (" a",)])
def test_words_that_cannot_be_told_apart_are_refused(words):
    with pytest.raises(ConfigError):
        build_word_tokenizer(words)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bpe_decodes_to_the_very_text(text):
    assert BPE.decode(BPE(text)["input_ids"]) == text


def test_bpe_learns_words_and_the_same_ones_each_time():
    assert len(BPE("a red ring")["input_ids"]) < len("a red ring")
    assert train_bpe_tokenizer(TEXTS, 290).get_vocab() == BPE.get_vocab()


def test_bpe_vocabulary_must_hold_all_bytes():
    with pytest.raises(ConfigError, match="260"):
        train_bpe_tokenizer(TEXTS, 259)
