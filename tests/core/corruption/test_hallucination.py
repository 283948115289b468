from collections import Counter

import polars as pl
import pytest

from core.corruption.hallucination import KINDS, make_pairs
from core.errors import ConfigError
from core.metrics.facts import measure
from core.worlds.scenes import synthesize
from core.worlds.scenes_grammar import MEANINGS, Invalid, RelationClause, parse
from data_contracts import HallucinationPairs, split_rows
from data_contracts.hallucination_pairs import PAIR_KINDS

SYNONYMS = [set(words) for table in MEANINGS.values() for words in table.values()]


@pytest.fixture(scope="module")
def samples():
    return synthesize(split="train", start=0, count=150, captions=2, seed=0)[0]


@pytest.fixture(scope="module")
def pairs(samples):
    return make_pairs(samples, per_sample=4, seed=0).pairs


def test_pairs_keep_their_contract(samples, pairs):
    good, failures = split_rows(HallucinationPairs, pairs)
    assert failures == []
    assert len(good) == 4 * len(samples)
    assert KINDS == PAIR_KINDS


def test_the_changed_caption_is_false_in_one_word(pairs):
    for row in pairs.iter_rows(named=True):
        original, changed = row["original_caption"], row["changed_caption"]
        different = [(a, b) for a, b in zip(original.split(" "), changed.split(" "), strict=True) if a != b]
        assert different == [(row["solution_original"], row["solution_target"])]
        assert not any({*different[0]} <= words for words in SYNONYMS)
        before, after = measure(original, original), measure(original, changed)
        assert after["validity"] == 1.0
        assert after["score"] < before["score"] == 100.0


def test_spans_mark_the_changed_word(pairs):
    for row in pairs.iter_rows(named=True):
        original, start, end = row["original_caption"], row["start"], row["end"]
        assert original[start:end] == row["solution_original"]
        assert original[:start] + row["solution_target"] + original[end:] == row["changed_caption"]


def test_exactly_one_clause_changes_and_still_parses(pairs):
    for original, changed in pairs.select("original_caption", "changed_caption").iter_rows():
        read = parse(changed)
        assert not any(isinstance(clause, Invalid) for clause in read)
        assert sum(a != b for a, b in zip(parse(original), read, strict=True)) == 1


def test_pairs_of_a_sample_differ(pairs):
    assert pairs.select("sample_id", "changed_caption").is_unique().all()


def test_kinds_are_even_where_one_pair_is_made():
    more = synthesize(split="train", start=0, count=1000, captions=1, seed=5)[0]
    shares = Counter(make_pairs(more, per_sample=1, seed=0).pairs["kind"])
    assert set(shares) == set(KINDS)
    assert min(shares.values()) > 0.7 * max(shares.values())


def test_relations_are_changed_wherever_they_are_stated(samples, pairs):
    stating = {
        sample_id
        for sample_id, text in samples.select("sample_id", "reference").iter_rows()
        if any(isinstance(clause, RelationClause) for clause in parse(text))
    }
    changed = set(pairs.filter(pl.col("kind") == "relation")["sample_id"])
    assert changed <= stating
    assert len(changed) > 0.8 * len(stating)


def test_requested_kinds_alone_are_made_and_samples_without_them_are_rejected(samples):
    made = make_pairs(samples, per_sample=3, seed=0, kinds=("relation",))
    assert set(made.pairs["kind"]) == {"relation"}
    assert set(made.rejects["reason"]) == {"no_such_fact"}
    assert set(made.pairs["sample_id"]) | set(made.rejects["row_id"]) == set(samples["sample_id"])
    assert not set(made.pairs["sample_id"]) & set(made.rejects["row_id"])


def test_text_without_a_grammar_is_rejected(samples):
    other = samples.head(2).with_columns(reference=pl.lit("A dog runs on the beach."))
    made = make_pairs(other, per_sample=2, seed=0)
    assert made.pairs.is_empty()
    assert made.rejects["reason"].to_list() == ["no_grammar"] * 2


def test_pairs_do_not_depend_on_the_other_rows(samples, pairs):
    alone = make_pairs(samples[7:9], per_sample=4, seed=0).pairs
    assert alone.equals(pairs.filter(pl.col("sample_id").is_in(samples["sample_id"][7:9].to_list())))
    assert not alone.equals(make_pairs(samples[7:9], per_sample=4, seed=1).pairs)


@pytest.mark.parametrize("kinds", [(), ("colour",)])
def test_an_unknown_kind_is_a_config_error(samples, kinds):
    with pytest.raises(ConfigError):
        make_pairs(samples, per_sample=1, seed=0, kinds=kinds)
