"""Alignment against goldens, against a search over all subsets, and its invariant on word-level and byte-level text."""

from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from core.alignment import AlignmentSettings, DraftTokens, TextCodec, align, tier_shares
from core.rediff import Edit, Run, compatible, displaced, splice

WORDS = [f"w{i}" for i in range(40)]
LENGTH = 24


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[EOS]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", mask_token="[MASK]"
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        "a small red ring is left of the large blue square",
        "two green rings, three red squares.",
        "café ☕ naïve",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eos|>", mask_token="<|mask|>")


WORD = TextCodec.of(word_tokenizer())
BYTE = TextCodec.of(byte_tokenizer())


def draft_of(text: str, codec: TextCodec, *, length: int = LENGTH, prompt: str = "describe the image") -> DraftTokens:
    encoded = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    fill = length - len(ids)
    assert fill >= 0
    return DraftTokens(
        text=text,
        prompt=prompt,
        token_ids=[*ids, *[codec.eos_id] * fill],
        char_start=[*[start for start, _ in spans], *[-1] * fill],
        char_end=[*[end for _, end in spans], *[-1] * fill],
    )


def said(alignment, codec: TextCodec) -> str:
    ids = alignment.target_ids
    return codec.tokenizer.decode(ids[: ids.index(codec.eos_id)] if codec.eos_id in ids else ids)


def reasons(alignment) -> list[str | None]:
    return [segment.reason for segment in alignment.segments]


def test_an_equal_replacement_changes_its_tokens_alone():
    draft = draft_of("w1 w2 w3 w4", WORD)
    result = align(draft, [("w2 w3", "w8 w9")], codec=WORD)
    (segment,) = result.segments
    assert said(result, WORD) == result.text == "w1 w8 w9 w4"
    assert (segment.char_start, segment.char_end, segment.token_start, segment.token_end) == (3, 8, 1, 3)
    assert (segment.reason, segment.tier) == (None, "equal")
    assert [i for i in range(LENGTH) if result.target_ids[i] != draft.token_ids[i]] == [1, 2]


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (("w9", "w1"), "not_found"),
        (("describe", "w1"), "in_prompt"),
        (("w1", "w8"), "ambiguous"),  # w1 and w12
        (("w2 ", " w2"), "no_op"),
        (("w3", "[MASK]"), "special_token"),
        (("w3", "never seen"), "special_token"),
        (("", "w1"), "parse_error"),
        ((" ", "w1"), "parse_error"),
        ((None, "w1"), "parse_error"),
        (("w3", 7), "parse_error"),
    ],
)
def test_a_segment_that_cannot_be_used_says_why(segment, reason):
    draft = draft_of("w1 w2 w3 w12", WORD)
    result = align(draft, [segment, ("w3 w12", "w5 w6")], codec=WORD)
    assert reasons(result) == [reason, None]
    assert said(result, WORD) == "w1 w2 w5 w6"


def test_overlapping_occurrences_are_ambiguous():
    assert reasons(align(draft_of("w7 w7 w7", WORD), [("w7 w7", "w1 w2")], codec=WORD)) == ["ambiguous"]


def test_the_first_named_of_two_overlapping_segments_wins():
    result = align(draft_of("w1 w2 w3", WORD), [("w2 w3", "w8 w9"), ("w1 w2", "w5 w6")], codec=WORD)
    assert reasons(result) == [None, "overlap"]
    assert result.text == "w1 w8 w9"


def test_changes_of_length_that_cancel_are_kept_and_the_rest_stays_in_place():
    draft = draft_of("w1 w2 w3 w4 w5 w6", WORD)
    result = align(draft, [("w2", "w8 w9"), ("w4 w5", "w7")], codec=WORD)
    assert said(result, WORD) == "w1 w8 w9 w3 w7 w6"
    assert [segment.tier for segment in result.segments] == ["re-diff", "re-diff"]
    assert result.target_ids[5] == draft.token_ids[5]


@pytest.mark.parametrize(("length", "accepted"), [(48, True), (45, True), (44, False)])
def test_the_fill_gives_way_to_a_longer_end_while_one_end_of_text_fits(length, accepted):
    words = [f"w{i}" for i in range(40)]
    draft = draft_of(" ".join(words), WORD, length=length)
    result = align(draft, [("w38 w39", "w38 w1 w2 w3 w4 w5")], codec=WORD)
    assert reasons(result) == [None if accepted else "length_mismatch"]
    assert len(result.target_ids) == length
    assert said(result, WORD).split() == ([*words[:38], "w38", "w1", "w2", "w3", "w4", "w5"] if accepted else words)


def test_a_shorter_end_becomes_fill():
    result = align(draft_of("w1 w2 w3 w4", WORD), [("w3 w4", "w9")], codec=WORD)
    assert said(result, WORD) == "w1 w2 w9"
    assert result.target_ids[3:] == [WORD.eos_id] * (LENGTH - 3)


def test_a_change_of_length_that_nothing_near_cancels_is_dropped_and_the_others_stay():
    draft = draft_of(" ".join(WORDS), WORD, length=48)
    segments = [("w10", "w1 w2"), ("w20", "w3"), ("w38", "w5 w6")]
    result = align(draft, segments, codec=WORD, settings=AlignmentSettings(window=8))
    assert reasons(result) == ["length_mismatch", None, None]
    assert [segment.tier for segment in result.segments] == [None, "equal", "re-diff"]


def test_a_rewrite_of_the_whole_draft_moves_only_what_it_must():
    old = " ".join(WORDS[:20])
    new = " ".join(["w30", *WORDS[1:19], "w31", "w32"])
    narrow = AlignmentSettings(window=3)
    assert reasons(align(draft_of(old, WORD), [(old, new)], codec=WORD, settings=narrow)) == [None]


def test_text_after_the_end_becomes_fill_even_when_nothing_is_revised():
    draft = draft_of("w1 w2", WORD)
    noisy = DraftTokens(
        text=draft.text,
        prompt="",
        token_ids=[*draft.token_ids[:3], 7, *draft.token_ids[4:]],
        char_start=draft.char_start,
        char_end=draft.char_end,
    )
    assert align(noisy, [], codec=WORD).target_ids == list(draft.token_ids)


def test_an_empty_target_deletes_the_word_and_one_space():
    result = align(draft_of("w1 w2 w3", WORD), [("w1", ""), ("w2", "")], codec=WORD)
    assert result.text == said(result, WORD) == "w3"


def test_a_span_that_starts_inside_a_token_takes_the_whole_token():
    text = "a small red ring"
    draft = draft_of(text, BYTE)
    result = align(draft, [("mall red", "mart blue")], codec=BYTE)
    assert reasons(result) == [None]
    assert said(result, BYTE) == "a smart blue ring"
    (segment,) = result.segments
    assert (segment.char_start, segment.char_end) == (3, 11)
    assert draft.char_start[segment.token_start] <= 3


def test_a_draft_that_is_not_tokenized_as_text_would_be_keeps_its_own_tokens():
    letters = [BYTE.tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "a red "]
    ring = BYTE.tokenizer("ring", add_special_tokens=False)["input_ids"]
    ids, starts = [*letters, *ring], [*range(6), *range(6, 10)][: 6 + len(ring)]
    ends = [*starts[1:], 10]
    fill = [BYTE.eos_id] * (LENGTH - len(ids))
    draft = DraftTokens(
        text="a red ring",
        prompt="",
        token_ids=ids + fill,
        char_start=starts + [-1] * len(fill),
        char_end=ends + [-1] * len(fill),
    )
    result = align(draft, [("ring", "square")], codec=BYTE)
    assert said(result, BYTE) == "a red square"
    assert result.target_ids[:5] == ids[:5]


def apply_accepted(text: str, segments: list[tuple[str, str]], alignment) -> str:
    spans = sorted(
        (s.char_start, s.char_end, target.strip())
        for s, (_, target) in zip(alignment.segments, segments, strict=True)
        if s.reason is None
    )
    for start, end, target in reversed(spans):
        text = text[:start] + target + text[end:]
    return text


@st.composite
def drafts_with_segments(draw, alphabet: list[str], *, most: int):
    words = draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=most))
    segments = []
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(words) - 1))
        end = draw(st.integers(start + 1, min(len(words), start + 3)))
        target = draw(st.lists(st.sampled_from(alphabet), min_size=0, max_size=4))
        segments.append((" ".join(words[start:end]), " ".join(target)))
    return " ".join(words), segments


@settings(max_examples=80, deadline=None)
@given(drafts_with_segments(WORDS, most=22), st.integers(1, 12))
def test_word_level_targets_say_the_draft_with_exactly_the_accepted_replacements(case, window):
    text, segments = case
    draft = draft_of(text, WORD)
    result = align(draft, segments, codec=WORD, settings=AlignmentSettings(window=window))
    expected = apply_accepted(text, segments, result)
    assert result.target_ids == list(draft_of(expected, WORD).token_ids)
    assert result.text.split() == expected.split()
    if all(segment.tier in (None, "equal") for segment in result.segments):
        inside = {i for s in result.segments if s.reason is None for i in range(s.token_start, s.token_end)}
        assert all(result.target_ids[i] == draft.token_ids[i] for i in set(range(LENGTH)) - inside)


PIECES = ["a", "small", "red", "ring", "rings,", "blue.", "café", "☕", "x", "naïve", "left of", "\n", "Zebra"]


@settings(max_examples=80, deadline=None)
@given(drafts_with_segments(PIECES, most=10), st.randoms(use_true_random=False), st.integers(2, 40))
def test_byte_level_targets_say_the_draft_with_exactly_the_accepted_replacements(case, random, window):
    text, segments = case
    cuts = sorted(random.sample(range(len(text) + 1), 2)) if len(text) > 1 else [0, 1]
    segments = [*segments, (text[cuts[0] : cuts[1]], random.choice(PIECES))]
    draft = draft_of(text, BYTE, length=90)
    result = align(draft, segments, codec=BYTE, settings=AlignmentSettings(window=window))
    assert said(result, BYTE).split() == result.text.split()
    assert "".join(result.text.split()) == "".join(apply_accepted(text, segments, result).split())
    text_end = sum(start >= 0 for start in draft.char_start)
    if result.accepted == 0:
        assert result.target_ids[:text_end] == draft.token_ids[:text_end]


def stands(runs: list[Run], old: list[int], room: int, window: int) -> bool:
    """Second implementation: walk the runs, closing a group whenever the lengths are in step again."""
    shift, start = 0, 0
    for i, run in enumerate(runs):
        if shift == 0:
            start = i
        shift += run.growth
        group = runs[start : i + 1]
        if shift == 0 and any(r.growth for r in group):
            a, b = group[0].start, run.end
            if displaced(old[a:b], splice(old, group, a, b)) > window:
                return False
    if shift == 0:
        return True
    a = runs[start].start
    return shift <= room and displaced(old[a:], splice(old, runs[start:], a)) <= window


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(0, 4)), max_size=6),
    st.integers(-1, 3),
    st.integers(2, 12),
)
def test_no_larger_set_of_segments_could_stand(shapes, room, window):
    runs, position = [], 0
    for index, (gap, size, new) in enumerate(shapes):
        position += gap
        edit = Edit(index, 0, 1, "")
        runs.append(Run(position, position + size, tuple(100 + 10 * index + k for k in range(new)), (edit,)))
        position += size
    old = list(range(position + 2))
    chosen = compatible(runs, old, room=room, window=window)
    assert stands(chosen, old, room, window)
    best = next(
        n for n in range(len(runs), -1, -1) if any(stands(list(s), old, room, window) for s in combinations(runs, n))
    )
    assert len(chosen) == best


def test_tier_shares_say_what_re_diff_recovers():
    outcomes = [(None, "equal"), (None, "re-diff"), ("length_mismatch", None), ("no_op", None)]
    frame = pl.DataFrame({"segments": [[{"reason": r, "tier": t} for r, t in outcomes], []]})
    assert tier_shares(frame) == {
        "equal": 0.25,
        "re-diff": 0.25,
        "length_mismatch": 0.25,
        "no_op": 0.25,
        "recovered": 0.5,
    }
