import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from core.corruption.refine import draft_columns, refine_rows
from core.corruption.replay import mix_replay
from core.corruption.settings import RefineSettings
from core.decoding.trace import replay
from core.errors import InputError
from data_contracts import Drafts, Revisions, TrainingExamples
from data_contracts import TokenKind as K
from tests.core.corruption.tables import EOS, MASK, TOKENIZER, ids, response, spans

LENGTH = 8


def writes_of(token_ids: list[int], order: list[int], per_step: int = 2) -> list[dict[str, int]]:
    """Reveal two positions a step in this order; the first of them is wrong until the step after."""
    writes = []
    for place, position in enumerate(order):
        step = place // per_step
        if place == 0 and token_ids[position] != 0:
            writes.append({"step": 0, "position": position, "token": 0})
            writes.append({"step": 1, "position": position, "token": token_ids[position]})
        else:
            writes.append({"step": step, "position": position, "token": token_ids[position]})
    return sorted(writes, key=lambda write: write["step"])


def draft(index: int, text: str, **columns) -> dict:
    token_ids = ids(text, LENGTH)
    order = np.random.default_rng(index).permutation(LENGTH).tolist()
    row = {
        "draft_id": f"d{index}",
        "sample_id": f"s{index}",
        "image_sha": None,
        "prompt": "describe the image",
        "reference": "a red ring is at left",
        "prompt_ids": ids("describe the image"),
        "token_ids": token_ids,
        "text": text.split(" .")[0],
        "char_start": [0] * LENGTH,
        "char_end": [0] * LENGTH,
        "writes": writes_of(token_ids, order),
        "setting": "2 refine",
        "tokens_per_step": 2,
        "extra_steps": 0,
        "policy": "refine",
        "nfe": 4,
        "model_digest": "m",
        "round": 1,
    }
    return row | columns


def segment(reason: str | None) -> dict:
    numbers = dict.fromkeys(("char_start", "char_end", "token_start", "token_end"), 0)
    return {"org": "a", "target": "b", "reason": reason, "tier": None} | numbers


def revision(index: int, text: str | None, verdict: str = "revised", **columns) -> dict:
    row = {
        "draft_id": f"d{index}",
        "sample_id": f"s{index}",
        "request_key": "0" * 64,
        "prompt_version": "1",
        "verdict": verdict,
        "segments": [],
        "target_ids": None if text is None else ids(text, LENGTH),
        "refined_text": text,
    }
    return row | columns


def drafts_of(*rows: dict) -> pl.DataFrame:
    return Drafts.validate(pl.DataFrame(rows, schema=Drafts.create_empty().schema))


def revisions_of(*rows: dict) -> pl.DataFrame:
    return Revisions.validate(pl.DataFrame(rows, schema=Revisions.create_empty().schema))


def refine(drafts, revisions, scope="mistakes", seed=0, ground=None, **settings):
    settings = RefineSettings(**settings)
    return refine_rows(drafts, revisions, TOKENIZER, seed=seed, scope=scope, settings=settings, ground=ground)


def many(count: int = 200) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drafts of which every fourth is right."""
    shapes = ("ring", "square", "image")
    texts = [f"a blue {shapes[i % 3]} is at left" for i in range(count)]
    fixed = [text if i % 4 == 0 else text.replace("blue", "red") for i, text in enumerate(texts)]
    verdicts = ["right" if i % 4 == 0 else "revised" for i in range(count)]
    revisions = [revision(i, text, verdict) for i, (text, verdict) in enumerate(zip(fixed, verdicts, strict=True))]
    return drafts_of(*(draft(i, text) for i, text in enumerate(texts))), revisions_of(*revisions)


def test_the_published_row_is_the_whole_draft_with_its_mistakes():
    result = refine(drafts_of(draft(0, "a blue ring is")), revisions_of(revision(0, "a red ring is")))
    TrainingExamples.validate(result.examples)
    row = result.examples.row(0, named=True)
    assert row["input_ids"] == ids("describe the image a blue ring is", 3 + LENGTH)
    assert row["target_ids"] == ids("describe the image a red ring is", 3 + LENGTH)
    assert row["kinds"] == [K.PROMPT] * 3 + [K.CLEAN, K.MISTAKE] + [K.CLEAN] * 6
    assert (row["t"], row["recipe"], row["origin"], row["round"]) == (0.0, "refine", "draft", 1)
    assert (row["example_id"], row["sample_id"], row["parents"]) == ("d0/refine/0", "s0", ["d0"])


def test_what_follows_the_end_of_text_must_be_end_of_text():
    result = refine(drafts_of(draft(0, "a blue ring . is .")), revisions_of(revision(0, "a red ring . is .")))
    assert response(result.examples, "target_ids").tolist() == [ids("a red ring", LENGTH)]
    kinds = [K.CLEAN, K.MISTAKE, K.CLEAN, K.CLEAN, K.MISTAKE, K.CLEAN, K.CLEAN, K.CLEAN]
    assert response(result.examples, "kinds").tolist() == [kinds]


def test_every_draft_that_is_dropped_has_a_reason():
    drafts = drafts_of(*(draft(i, "a blue ring is") for i in range(7)), draft(7, ""))
    revisions = revisions_of(
        revision(0, "a red ring is"),
        revision(1, "a blue ring is", "right"),
        revision(2, None, "failed", error="timeout"),
        revision(3, "a blue ring is", "unusable", segments=[segment("not_found"), segment("ambiguous")]),
        revision(4, "a red ring is", target_ids=ids("a red")),
        revision(5, "a red ring is", segments=[segment(None), segment("not_found"), segment("no_op")]),
        revision(7, None, "failed", error="empty_draft"),
        revision(9, "a red ring is"),
    )
    common = {
        "d2": ("failed", "expert_failed", "timeout"),
        "d3": ("rejected", "expert_unusable", "not_found, ambiguous"),
        "d4": ("rejected", "wrong_length", ""),
        "d6": ("rejected", "no_revision", ""),
        "d7": ("rejected", "empty_draft", ""),
        "d9": ("rejected", "no_draft", ""),
    }
    right = {"d1": ("rejected", "no_mistake", "")}
    partly = {"d5": ("rejected", "partly_aligned", "not_found")}
    expected = {"mistakes": common | right, "full": common | right | partly, "response": common | partly}
    for scope, rejects in expected.items():
        result = refine(drafts, revisions, scope)
        assert {row[0]: row[1:] for row in result.rejects.iter_rows()} == rejects
        assert result.rows_in == 9 == result.rows_ok + result.rejects.height
        assert result.examples.height == result.rows_ok
    assert refine(drafts, revisions, "response", keep_partial=True).rows_ok == 3


@pytest.mark.parametrize("scope", ["mistakes", "response"])
def test_trajectory_rows_are_states_of_the_decoding(scope):
    drafts, revisions = many()
    result = refine(drafts, revisions, scope, input="trajectory", draws=5)
    TrainingExamples.validate(result.examples)
    states = {}
    for row in drafts.iter_rows(named=True):
        steps = range(1, 1 + max(write["step"] for write in row["writes"]))
        inner = [replay(row["writes"], response_length=LENGTH, mask_id=MASK, steps=step).tolist() for step in steps]
        states[row["draft_id"]] = (inner, row["token_ids"])
    partial = []
    for parents, seen in zip(result.examples["parents"].to_list(), response(result.examples, "input_ids"), strict=True):
        inner, whole = states[parents[0]]
        assert seen.tolist() in [*inner, whole]
        partial.append(seen.tolist() in inner)
    share = 0.7 if scope == "response" else 0.6  # states without a mistake give way to the draft
    assert np.mean(partial) == pytest.approx(share, abs=0.12)
    masked = (response(result.examples, "input_ids") == MASK).sum(axis=1)
    assert len(set(masked)) >= 4


@pytest.mark.parametrize("scope", ["mistakes", "full", "response"])
@pytest.mark.parametrize("shown", ["published", "trajectory"])
def test_kinds_say_what_stands_there(scope, shown):
    frame = refine(*many(), scope, input=shown, draws=3).examples
    inputs, targets, kinds = (response(frame, name) for name in ("input_ids", "target_ids", "kinds"))
    np.testing.assert_array_equal(kinds == K.MASK, inputs == MASK)
    np.testing.assert_array_equal(kinds == K.MISTAKE, (inputs != targets) & (inputs != MASK))
    np.testing.assert_array_equal(kinds == K.CLEAN, inputs == targets)
    np.testing.assert_allclose(frame["t"], (inputs == MASK).mean(axis=1), rtol=1e-6)
    if scope == "mistakes":
        assert (kinds == K.MISTAKE).any(axis=1).all()
    assert frame.height == 3 * (200 if scope == "response" else 150)


def test_trajectory_share_is_the_share_of_partial_states():
    whole = response(refine(*many(), "response").examples, "input_ids")
    for share in (0.0, 0.5, 1.0):
        seen = response(refine(*many(), "response", input="trajectory", trajectory_share=share).examples, "input_ids")
        assert (seen != whole).any(axis=1).mean() == pytest.approx(share, abs=0.1)


def test_neither_order_nor_company_of_drafts_changes_a_row():
    drafts, revisions = many()
    settings = {"scope": "response", "input": "trajectory", "draws": 3}
    all_rows = refine(drafts, revisions, **settings).examples
    some = drafts.sample(30, shuffle=True, seed=2)
    again = refine(some, revisions.join(some, on="draft_id", how="semi"), **settings).examples
    kept = all_rows.filter(pl.col("example_id").is_in(again["example_id"].to_list()))
    assert again.sort("example_id").equals(kept.sort("example_id"))
    other = refine(drafts, revisions, seed=1, **settings).examples
    assert (response(other, "input_ids") != response(all_rows, "input_ids")).any()


def test_a_draft_of_one_step_has_no_partial_state():
    one_step = [{"step": 0, "position": i, "token": t} for i, t in enumerate(ids("a blue ring", LENGTH))]
    drafts = drafts_of(draft(0, "a blue ring", writes=one_step))
    result = refine(drafts, revisions_of(revision(0, "a red ring")), input="trajectory", trajectory_share=1.0)
    assert response(result.examples, "input_ids").tolist() == [ids("a blue ring", LENGTH)]


def test_writes_that_do_not_lead_to_the_draft_are_an_error():
    drafts = drafts_of(draft(0, "a blue ring", writes=[]))
    with pytest.raises(InputError, match="writes"):
        refine(drafts, revisions_of(revision(0, "a red ring")), input="trajectory")


def test_the_expert_s_text_can_be_grounded():
    drafts = drafts_of(draft(0, "a blue ring is"), draft(1, "a blue ring is"))
    revisions = revisions_of(revision(0, "a red ring is"), revision(1, "a red ring is", refined_text="a red square is"))
    asked = []

    def ground(reference, text):
        asked.append((reference, text))
        return spans(text, {"red": 4, text.split()[2]: 7})

    frame = refine(drafts, revisions, ground=ground).examples
    assert asked[0] == ("a red ring is at left", "a red ring is")
    regions = response(frame, "regions").tolist()
    assert regions[0] == [-1, -1, 7, -1, -1, -1, -1, -1]  # the wrong colour is shown, so it speaks of nothing
    assert regions[1] == [-1] * LENGTH  # the text does not encode to the target
    assert refine(drafts, revisions).examples["regions"].is_null().all()


def test_a_text_that_speaks_of_no_region_changes_nothing_beside_it():
    drafts, revisions = many(12)
    frame = refine(drafts, revisions, ground=lambda _reference, text: spans(text, {text.split()[2]: 7})).examples
    some = refine(drafts, revisions, ground=lambda _, text: spans(text, {"ring": 7}) if "ring" in text else []).examples
    none = refine(drafts, revisions, ground=lambda _reference, _text: []).examples
    of_ring = np.array(["ring" in text for text in revisions["refined_text"].filter(revisions["verdict"] == "revised")])
    regions, expected = response(some, "regions"), response(frame, "regions")
    np.testing.assert_array_equal(regions, np.where(of_ring[:, None], expected, -1))
    assert ((regions == 7).any(axis=1) == of_ring).all()
    assert (response(none, "regions") == -1).all()


@pytest.mark.parametrize("shown", ["published", "trajectory"])
def test_the_columns_that_are_said_to_be_read_are_enough(shown):
    drafts, revisions = many(8)
    narrow = drafts.select(draft_columns(RefineSettings(input=shown)))
    assert_frame_equal(refine(narrow, revisions, input=shown).examples, refine(drafts, revisions, input=shown).examples)


def test_no_usable_draft_gives_an_empty_frame_of_the_contract():
    for shown in ("published", "trajectory"):
        result = refine(drafts_of(draft(0, "a red ring")), revisions_of(revision(0, None, "failed")), input=shown)
        TrainingExamples.validate(result.examples)
        assert (result.examples.height, result.rows_ok, result.rows_in) == (0, 0, 1)


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.25, 50), (0.5, 150), (0.9, 1350)])
def test_replay_has_its_share_exactly(share, replayed):
    refined = refine(*many()).examples
    old = refine(*many(100), "response").examples.with_columns(example_id="old/" + pl.col("example_id"))
    mixed = mix_replay(refined, old, share=share, seed=0)
    TrainingExamples.validate(mixed)
    assert mixed.height == refined.height + replayed
    assert mixed.head(refined.height).equals(refined)
    counts = mixed.tail(replayed)["example_id"].str.replace(r"~\d+$", "").value_counts()["count"]
    assert replayed == 0 or counts.max() - counts.min() <= 1
    assert mix_replay(refined, old, share=share, seed=0).equals(mixed)


def test_replay_refuses_what_it_cannot_do():
    refined = refine(*many(8)).examples
    with pytest.raises(InputError, match="share"):
        mix_replay(refined, refined, share=1.0, seed=0)
    with pytest.raises(InputError, match="no rows to replay"):
        mix_replay(refined, refined.clear(), share=0.5, seed=0)
    assert mix_replay(refined, refined.clear(), share=0.0, seed=0).equals(refined)


def test_an_end_of_text_in_the_draft_is_kept_unless_the_expert_says_otherwise():
    result = refine(drafts_of(draft(0, "a ring . .")), revisions_of(revision(0, "a ring is .")))
    assert response(result.examples, "target_ids").tolist() == [ids("a ring is", LENGTH)]
    assert (response(result.examples, "input_ids") == EOS).sum() == 6
