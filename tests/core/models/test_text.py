import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from core.models.text import ResponseText, decode_response
from core.models.tokenizer import build_word_tokenizer, train_bpe_tokenizer

WORDS = ["a", "red", "ring", "left", "über", "環"]
CORPUS = ["a red ring left of a blue box", "naïve café 😀 環 the ring", "Größe über alles: 12,5 %"] * 20
WORD = build_word_tokenizer(WORDS)
BPE = train_bpe_tokenizer(CORPUS, 330)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", *fallback], show_progress=False)
    backend.train_from_iterator(["a red ring left of a blue box"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


META = metaspace_tokenizer()


def check_spans(response: ResponseText, shown: int, total: int) -> None:
    starts, ends = response.char_start, response.char_end
    assert len(starts) == len(ends) == total
    assert starts[shown:] == ends[shown:] == [-1] * (total - shown)
    starts, ends = starts[:shown], ends[:shown]
    assert starts == sorted(starts)
    assert ends == sorted(ends)
    assert all(0 <= start < end <= len(response.text) for start, end in zip(starts, ends, strict=True))


def test_word_level_example() -> None:
    eos = WORD.eos_token_id
    response = decode_response(WORD, [0, 1, 2, eos, 1, eos])
    assert response == ResponseText(
        text="a red ring", char_start=[0, 2, 6, -1, -1, -1], char_end=[1, 5, 10, -1, -1, -1]
    )


def test_an_empty_response_and_one_without_end_of_text() -> None:
    assert decode_response(WORD, [WORD.eos_token_id] * 2).text == ""
    assert decode_response(WORD, [0, 1]).text == "a red"
    assert decode_response(BPE, []).text == ""


@given(st.lists(st.sampled_from(range(len(WORD))).filter(lambda i: i != WORD.eos_token_id), max_size=12))
def test_word_level_spans_are_the_words_joined_by_single_spaces(ids: list[int]) -> None:
    response = decode_response(WORD, [*ids, WORD.eos_token_id, 0])
    check_spans(response, len(ids), len(ids) + 2)
    words = [response.text[a:b] for a, b in zip(response.char_start, response.char_end, strict=True) if a >= 0]
    assert words == [WORD.convert_ids_to_tokens(i) for i in ids]
    assert response.text == " ".join(words) == WORD.decode(ids)


@given(st.text(max_size=30).filter(lambda text: text.isprintable()))
def test_byte_level_spans_are_the_offsets_of_the_encoder(text: str) -> None:
    encoding = BPE.backend_tokenizer.encode(text, add_special_tokens=False)
    response = decode_response(BPE, [*encoding.ids, BPE.eos_token_id])
    assert response.text == text
    check_spans(response, len(encoding.ids), len(encoding.ids) + 1)
    assert list(zip(response.char_start, response.char_end, strict=True))[:-1] == encoding.offsets


@given(st.lists(st.sampled_from(range(len(BPE))).filter(lambda i: i != BPE.eos_token_id), max_size=20))
def test_byte_level_text_of_any_ids_is_the_tokenizers_own(ids: list[int]) -> None:
    response = decode_response(BPE, ids)
    assert response.text == BPE.decode(ids, clean_up_tokenization_spaces=False)
    check_spans(response, len(ids), len(ids))
    covered = {c for a, b in zip(response.char_start, response.char_end, strict=True) for c in range(a, b)}
    assert covered == set(range(len(response.text)))


def test_a_character_split_over_tokens_belongs_to_each_of_them() -> None:
    ids = BPE("a 龍 b", add_special_tokens=False)["input_ids"]
    response = decode_response(BPE, ids)
    holders = [i for i, (a, b) in enumerate(zip(response.char_start, response.char_end, strict=True)) if a <= 2 < b]
    assert response.text[2] == "龍"
    assert len(holders) >= 2


@pytest.mark.parametrize("text", ["a red ring", "a blue ring left of a box", "a 龍 ring é"])
def test_other_tokenizers_by_prefixes(text: str) -> None:
    ids = META(text, add_special_tokens=False)["input_ids"]
    response = decode_response(META, [*ids, META.eos_token_id])
    assert response.text == text
    check_spans(response, len(ids), len(ids) + 1)
    covered = {c for a, b in zip(response.char_start, response.char_end, strict=True) for c in range(a, b)}
    assert covered == set(range(len(text)))


def test_special_tokens_before_the_end_are_shown() -> None:
    mask, unknown = WORD.mask_token_id, WORD.unk_token_id
    assert decode_response(WORD, [0, mask, unknown, WORD.eos_token_id]).text == "a <mask> <unk>"
    ring = BPE(" ring", add_special_tokens=False)["input_ids"]
    shown = decode_response(BPE, [BPE.mask_token_id, *ring, BPE.eos_token_id])
    assert shown.text == "<mask> ring"
    assert (shown.char_start[0], shown.char_end[0]) == (0, 6)
