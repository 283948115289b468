from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.metrics.bootstrap import ratio_interval, resample
from core.metrics.facts import PLACE_CHANCE, controls, measure, repeat_rate, scene_id, summarize
from core.worlds.scenes import VOCABULARY, scene_of, synthesize

OVERVIEW = "two items can be seen against a dark canvas ."
RING = "the top left corner holds a small red ring ."
PLUS = "the lower right area holds a huge azure plus ."
SMALLER = "the red ring is smaller than the blue cross ."
BIGGER = "the blue cross is bigger than the red ring ."
REFERENCE = f"{OVERVIEW} {RING} {PLUS}"


@pytest.fixture(scope="module")
def references():
    return synthesize(split="test", start=0, count=512, captions=1, seed=0)[0]["reference"].to_list()


def test_controls_are_zero_low_and_hundred(references):
    measured = controls(references, seed=0)
    assert measured["empty"] == 0.0
    assert measured["other_scene"] <= 10.0
    assert measured["truth"] == 100.0


def test_controls_never_take_a_caption_of_the_same_scene():
    same = [REFERENCE, f"{PLUS} {RING} {OVERVIEW}"]
    other = REFERENCE.replace("dark", "teal").replace("small red ring", "large pink disc")
    assert scene_of(same[0]) == scene_of(same[1])
    assert controls([*same, other], seed=0)["other_scene"] < 100.0
    with pytest.raises(InputError):
        controls([*same, "no scene"], seed=0)


@given(st.lists(st.sampled_from([OVERVIEW, RING, PLUS, SMALLER, BIGGER, "two items .", "the"]), max_size=6))
@settings(max_examples=200, deadline=None)
def test_the_score_is_100_exactly_for_true_and_complete_captions(clauses):
    text = " ".join(clauses)
    assert (measure(REFERENCE, text)["score"] == 100.0) == (scene_of(text) == scene_of(REFERENCE))


@pytest.mark.parametrize(
    ("text", "true", "recalled", "stated", "invalid"),
    [
        (REFERENCE, 6, 6, 6, 0),
        (f"{OVERVIEW} {RING}", 4, 4, 4, 0),
        (f"{REFERENCE} {SMALLER}", 7, 6, 7, 0),
        (f"{REFERENCE} {SMALLER} {BIGGER}", 7, 6, 8, 0),
        (f"{REFERENCE} {RING}", 6, 6, 8, 0),
        (f"{REFERENCE} {RING.replace('holds', 'contains')}", 6, 6, 8, 0),
        (f"{REFERENCE} red red . the", 6, 6, 6, 2),
        (f"{OVERVIEW} {RING.replace('small', 'big')} {PLUS}", 5, 5, 6, 0),
        (f"{OVERVIEW} {RING.replace('left', 'right')} {PLUS}", 4, 4, 6, 0),
        (f"{OVERVIEW} {RING.replace('red', 'pink')} {PLUS}", 4, 4, 6, 0),
        (f"{OVERVIEW.replace('two', 'three')} {RING} {PLUS}", 5, 5, 6, 0),
        (OVERVIEW, 0, 0, 2, 0),
        (f"{OVERVIEW} {RING.replace('left', 'right')}", 0, 0, 4, 0),
        (BIGGER, 1, 0, 1, 0),
        (SMALLER.replace("smaller", "bigger"), 0, 0, 1, 0),
        (SMALLER.replace("blue cross", "pink disc"), 0, 0, 1, 0),
    ],
)
def test_facts_are_counted_by_hand(text, true, recalled, stated, invalid):
    measured = measure(REFERENCE, text)
    precision, recall = true / (stated + invalid), recalled / 6
    assert measured["strict_precision"] == pytest.approx(precision)
    assert measured["fact_precision"] == pytest.approx(true / stated)
    assert measured["fact_recall"] == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if recall else 0.0
    assert measured["score"] == pytest.approx(100 * f1)


def test_saying_something_again_never_pays(references):
    for reference in references[:50]:
        clauses = [f"{clause.strip()} ." for clause in reference.split(".")[:-1]]
        for clause in clauses:
            assert measure(reference, f"{reference} {clause}")["score"] < 100.0


def test_naming_an_object_in_every_cell_does_not_pay():
    everywhere = " ".join(
        RING.replace("top left", f"{row} {column}")
        for row in ("top", "middle", "bottom")
        for column in ("left", "center", "right")
    )
    assert measure(REFERENCE, everywhere)["score"] < 20.0


def test_empty_and_unparsable_answers_score_nothing():
    for text in ("", "  ", "red", ". . .", " ".join(VOCABULARY)):
        assert measure(REFERENCE, text)["score"] == 0.0
    assert measure(REFERENCE, "")["validity"] == 0.0


@given(st.lists(st.sampled_from(VOCABULARY), max_size=60))
@settings(max_examples=100, deadline=None)
def test_metrics_stay_in_range_on_any_words(words):
    measured = measure(REFERENCE, " ".join(words))
    for name in ("strict_precision", "fact_precision", "fact_recall", "fact_f1", "validity", "repeat_rate"):
        assert 0.0 <= measured[name] <= 1.0
    assert measured["placed_objects"] <= measured["stated_objects"] <= measured["bound_objects"]
    assert measured["bound_objects"] <= measured["all_objects"]


def test_place_and_binding_are_counted_by_object():
    swapped = RING.replace("ring", "cross")
    absent = RING.replace("red", "pink").replace("ring", "disc")
    measured = measure(REFERENCE, f"{RING} {PLUS.replace('right', 'left')} {swapped} {absent}")
    assert measured["all_objects"] == 4
    assert measured["stated_objects"] == 2
    assert measured["placed_objects"] == 1
    assert measured["bound_objects"] == 3


def test_a_reference_without_a_scene_leaves_scene_metrics_null():
    measured = measure("A dog runs on the beach.", "A dog dog runs.")
    assert measured.pop("repeat_rate") == pytest.approx(1 / 4)
    assert set(measured.values()) == {None}
    assert measured.keys() | {"repeat_rate"} == measure(REFERENCE, REFERENCE).keys()


@pytest.mark.parametrize(
    ("text", "rate"), [("", 0.0), ("a b a b", 0.0), ("a a a b", 0.5), ("a b . a b .", 0.5), ("a. a. a.", 2 / 3)]
)
def test_repeated_words_and_clauses_are_counted_once(text, rate):
    assert repeat_rate(text) == pytest.approx(rate)


def evaluations(pairs):
    rows = [
        {"sample_id": name, "nfe": 6, "overlap_f1": None, **measure(reference, text)} for name, reference, text in pairs
    ]
    return pl.DataFrame(rows, schema_overrides={"overlap_f1": pl.Float64})


def test_a_summary_holds_the_means_and_pooled_ratios(references):
    rng = np.random.default_rng(0)
    texts = [a if rng.random() < 0.5 else b for a, b in zip(references, references[1:] + references[:1], strict=True)]
    frame = evaluations([(f"test-{i:06d}-0", a, b) for i, (a, b) in enumerate(zip(references, texts, strict=True))])
    summary = summarize(frame)
    for name in ("score", "strict_precision", "fact_recall", "validity"):
        assert summary[name] == pytest.approx(frame[name].mean())
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert summary["place_accuracy"] == pytest.approx(frame["placed_objects"].sum() / frame["stated_objects"].sum())
    assert summary["binding_error"] == pytest.approx(1 - frame["bound_objects"].sum() / frame["all_objects"].sum())
    assert summary["place_chance"] == PLACE_CHANCE
    assert (summary["samples"], summary["scenes"], summary["overlap_f1"]) == (512, 512, None)
    normal = 1.96 * frame["score"].std() / 512**0.5
    assert summary["score_high"] - summary["score_low"] == pytest.approx(2 * normal, rel=0.15)
    assert summarize(frame) == summary != summarize(frame, seed=1)


def test_captions_of_one_scene_are_resampled_together():
    once = [(f"test-{i:06d}-0", REFERENCE, REFERENCE if i % 2 else "") for i in range(40)]
    twice = once + [(f"{name[:-1]}1", reference, text) for name, reference, text in once]
    one, two = summarize(evaluations(once)), summarize(evaluations(twice))
    assert two["scenes"] == one["scenes"] == 40
    assert two["score_low"] == pytest.approx(one["score_low"])
    assert (scene_id("test-000017-1"), scene_id("coco-12-3")) == ("test-000017", "coco-12-3")


def test_a_summary_of_nothing_is_an_error():
    with pytest.raises(InputError):
        summarize(evaluations([("a", REFERENCE, "")]).clear())


def test_resamples_draw_every_scene_equally_often():
    times = resample(20, seed=0, resamples=4000)
    assert Counter(times.sum(1).tolist()) == {20.0: 4000}
    assert np.allclose(times.mean(0), 1.0, atol=0.1)
    low, high = ratio_interval(np.ones(20), np.ones(20), times)
    assert low == high == 1.0
