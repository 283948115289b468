"""What could not be used of a first reply is asked for once more; nothing that could be used is lost by it."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.alignment import AlignedSegment, DraftTokens, TextCodec, align
from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from core.expert.reask_request import read_reask
from core.expert.reply import parse_reply
from core.expert.settings import AlignmentSettings, ExpertSettings
from core.models.tokenizer import build_word_tokenizer
from core.reasking import merge, reask_of
from core.revising import revise
from core.seeds import rng
from core.worlds.scenes import PROMPT, VOCABULARY, synthesize
from data_contracts import Drafts, Reasks, Revisions

WORDS = ("a", "red", "blue", "ring", "on", "the", "left", "of", "small", "square")
CODEC = TextCodec.of(build_word_tokenizer(WORDS))
WINDOW = AlignmentSettings(window=1)


def tokens(text: str, length: int = 12) -> DraftTokens:
    ids, spans = CODEC.encode(text)
    fill = length - len(ids)
    return DraftTokens(
        text=text,
        prompt="what?",
        token_ids=[*ids, *[CODEC.eos_id] * fill],
        char_start=[*(start for start, _ in spans), *[-1] * fill],
        char_end=[*(end for _, end in spans), *[-1] * fill],
    )


def first(draft: DraftTokens, *segments: tuple[str, str]):
    return align(draft, segments, codec=CODEC, settings=WINDOW).segments


def outcome(merged) -> list[tuple[str, str | None]]:
    return [(segment.org, segment.reason) for segment in merged.second]


def test_a_second_segment_stands_beside_those_of_the_first_reply():
    draft = tokens("a red ring on the left of a blue ring")
    before = first(draft, ("red", "blue"), ("ring", "square"))
    assert [segment.reason for segment in before] == [None, "ambiguous"]
    merged = merge(draft, before, [("blue ring", "blue square")], codec=CODEC, settings=WINDOW)
    assert merged.alignment.text == "a blue ring on the left of a blue square"
    assert outcome(merged) == [("blue ring", None)]
    assert [segment.org for segment in merged.alignment.segments] == ["red", "blue ring"]


def test_a_second_segment_that_would_displace_a_first_one_is_left_out_and_the_others_are_used():
    draft = tokens("a red ring on the left of a blue ring")  # with room for one token more
    wide = AlignmentSettings(window=12)
    before = align(draft, [("a blue", "a small blue"), ("zebra", "ring")], codec=CODEC, settings=wide).segments
    assert [segment.reason for segment in before] == [None, "not_found"]
    second = [("a red", "a small red"), ("on", "of"), ("a blue ring", "ring")]
    merged = merge(draft, before, second, codec=CODEC, settings=wide)
    assert merged.alignment.text == "a red ring of the left of a small blue ring"
    assert outcome(merged) == [("a red", "length_mismatch"), ("on", None), ("a blue ring", "overlap")]


def test_a_second_reply_that_helps_nothing_changes_nothing():
    draft = tokens("a red ring on the left")
    before = first(draft, ("red", "blue"), ("zebra", "ring"))
    merged = merge(draft, before, [("lion", "ring"), ("red", "blue")], codec=CODEC, settings=WINDOW)
    assert merged.alignment is None
    assert outcome(merged) == [("lion", "not_found"), ("red", "overlap")]


segments = st.lists(
    st.tuples(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
        st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join),
    ),
    max_size=4,
)


@given(st.lists(st.sampled_from(WORDS), min_size=3, max_size=11).map(" ".join), segments, segments)
@settings(max_examples=300, deadline=None)
def test_nothing_that_was_accepted_is_lost_and_the_merged_text_is_what_its_tokens_say(text, one, two):
    draft = tokens(text)
    before = first(draft, *one)
    merged = merge(draft, before, two, codec=CODEC, settings=WINDOW)
    assert [(s.org, s.target) for s in merged.second] == two
    if merged.alignment is None:
        return
    after = merged.alignment
    accepted = lambda found: [(s.org, s.target) for s in found if s.reason is None]  # noqa: E731
    stayed = after.segments[: len(after.segments) - len(two)]
    assert {*accepted(before)} <= {*accepted(stayed)}  # one that only a rejected one kept out may come in as well
    assert len(accepted(after.segments)) > len(accepted(stayed))
    assert CODEC.spells([token for token in after.target_ids if token != CODEC.eos_id], after.text)
    assert len(after.target_ids) == len(draft.token_ids)
    usable = accepted(after.segments)
    again = align(draft, usable, codec=CODEC, settings=WINDOW)
    assert (again.target_ids, again.accepted) == (after.target_ids, len(usable))


SCENES = build_word_tokenizer(VOCABULARY)
LENGTH = 72


def scene_drafts(number: int) -> pl.DataFrame:
    """Captions with four words changed, as drafts."""
    codec, rows = TextCodec.of(SCENES), []
    captions = synthesize(split="train", start=0, count=number, captions=1, seed=0)[0]["reference"]
    for index, reference in enumerate(captions):
        words, stream = reference.split(), rng("reask test", reference)
        for at in stream.choice(len(words), 4, replace=False):
            words[at] = VOCABULARY[int(stream.integers(len(VOCABULARY)))]
        ids, spans = codec.encode(" ".join(words))
        fill = LENGTH - len(ids)
        rows.append(
            {
                "draft_id": f"d{index}", "sample_id": f"s{index}", "image_sha": None, "prompt": PROMPT,
                "reference": reference, "prompt_ids": [1], "token_ids": [*ids, *[codec.eos_id] * fill],
                "text": " ".join(words), "char_start": [*(s for s, _ in spans), *[-1] * fill],
                "char_end": [*(e for _, e in spans), *[-1] * fill], "writes": [], "setting": "8 refine",
                "tokens_per_step": 8, "extra_steps": 0, "policy": "refine", "nfe": 2, "model_digest": "0" * 64,
                "round": 1,
            }
        )  # fmt: skip
    return Drafts.validate(pl.DataFrame(rows, schema=Drafts.create_empty().schema))


def revised_by(url: str, model: str, folder, *, window: int, **changes):
    ledger = Ledger(open_database(f"sqlite:///{folder}/state.db"))
    asked = ExpertSettings(base_url=url, model=model, align=AlignmentSettings(window=window), **changes)
    client = ExpertClient(asked, ledger=ledger)
    return revise(scene_drafts(120), client=client, tokenizer=SCENES, load_image={}.__getitem__)


def test_asking_again_brings_what_the_published_filter_drops(start_expert, tmp_path):
    """Half of the segments break the rule of equal length; asked again, the expert complies with .6 of them."""
    expert = start_expert()
    model = "reference-resizes-0.5-complies-0.6"
    alone = revised_by(expert.url, model, tmp_path, window=1)
    assert alone.usable_first == alone.equal  # nothing is gained by moving tokens
    said = [one for reply in alone.reasks["raw_reply"] for one in parse_reply(reply).segments]
    complied = sum(not target.startswith("quite") for _, target in said)
    assert alone.usable == alone.equal + complied  # each of them is used
    assert complied / (alone.segments - alone.equal) == pytest.approx(0.6, abs=0.1)
    assert alone.usable >= 1.45 * alone.equal  # 1.6 is what .5 + .5 x .6 could bring
    assert alone.reasks.height == expert.stats["requests"] - 120
    assert Revisions.validate(alone.revisions).height == 120
    assert Reasks.validate(alone.reasks).height == alone.reasks.height
    with_moves = revised_by(expert.url, model, tmp_path, window=32)
    assert with_moves.usable >= 1.6 * with_moves.equal


def test_every_segment_of_every_reply_is_accounted_for(start_expert, tmp_path):
    found = revised_by(start_expert().url, "reference-resizes-0.6-complies-0.5", tmp_path, window=1)
    again = {row["draft_id"]: row for row in found.reasks.iter_rows(named=True)}
    for row in found.revisions.iter_rows(named=True):
        said = [tuple(one) for one in parse_reply(row["raw_reply"]).segments]
        there = [(one["org"], one["target"]) for one in row["segments"]]
        if row["draft_id"] in again:
            reask = again[row["draft_id"]]
            said_again = [tuple(one) for one in parse_reply(reask["raw_reply"]).segments]
            assert [(one["org"], one["target"]) for one in reask["segments"]] == said_again
            if reask["mended"]:
                there = [*there[: len(there) - len(said_again)]]
                there += [(one["org"], one["target"]) for one in reask["rejected"]]
        assert sorted(there) == sorted(said)
    assert any(row["mended"] for row in again.values())
    assert not all(row["mended"] for row in again.values())


def test_without_the_second_question_nothing_is_asked_again(start_expert, tmp_path):
    expert = start_expert()
    found = revised_by(expert.url, "reference-resizes-0.5", tmp_path, window=1, reask=False)
    assert (found.reasks.height, found.usable, expert.stats["requests"]) == (0, found.usable_first, 120)


def test_a_flawless_expert_has_nothing_to_add(start_expert, tmp_path):
    expert = start_expert()
    once = revised_by(expert.url, "reference", tmp_path, window=1, reask=False)
    twice = revised_by(expert.url, "reference", tmp_path, window=1)
    assert twice.revisions.equals(once.revisions)
    assert twice.reasks["mended"].sum() == 0


def test_a_second_request_says_why_and_how_long(start_expert, tmp_path):
    draft = scene_drafts(1).row(0, named=True)
    reask = reask_of(
        draft,
        [
            AlignedSegment(org="red ring", target="large red ring", reason="length_mismatch"),
            AlignedSegment(org="blue", target="red"),
            AlignedSegment(org="x", target="x", reason="no_op"),
        ],
        ExpertSettings(base_url="http://127.0.0.1:9/v1"),
        TextCodec.of(SCENES),
    )
    task = read_reask(reask.request.task.model_dump_json())
    assert [(one.org, one.problem, one.org_tokens, one.target_tokens) for one in task.rejected] == [
        ("red ring", "length_mismatch", 2, 3)
    ]
    assert [one.org for one in task.accepted] == ["blue"]


def test_what_was_no_text_does_not_become_one_by_a_second_reply():
    codec = TextCodec.of(build_word_tokenizer((*WORDS, "None")))
    draft = tokens("a red ring")
    before = align(draft, [("red", None), ("zebra", "small")], codec=codec, settings=WINDOW).segments
    assert [segment.reason for segment in before] == ["parse_error", "not_found"]
    merged = merge(draft, before, [("ring", "square")], codec=codec, settings=WINDOW)
    assert merged.alignment.text == "a red square"
    assert [segment.reason for segment in merged.alignment.segments] == [None, "parse_error"]
