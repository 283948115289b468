"""Pairs know what is said of an image in other parts of the dataset."""

import polars as pl

from core.corruption.caption_pairs import make_caption_pairs
from core.corruption.pair_check import check_pair
from core.corruption.shared_images import elsewhere, shared_captions

CAPTIONS = [
    ("a", "A brown dog is sitting on a bench."),
    ("b", "Two red buses are parked next to a tree."),
    ("a", "A dog is standing near a cat."),
    (None, "A man holds a fork."),
    ("b", "Five red buses and a truck."),
    ("a", "A horse is lying on the bench."),
]


def samples() -> pl.DataFrame:
    rows = [(f"s{i}", sha, text) for i, (sha, text) in enumerate(CAPTIONS)]
    return pl.DataFrame(rows, schema=["sample_id", "image_sha", "reference"], orient="row")


def pairs_by_parts(size: int, seed: int) -> list[tuple]:
    parts = lambda: samples().iter_slices(size)  # noqa: E731 - begins anew with each call
    shared = shared_captions(parts)
    made = [
        make_caption_pairs(part, per_sample=4, seed=seed, elsewhere=elsewhere(shared, index, part)).pairs
        for index, part in enumerate(parts())
    ]
    return sorted(pl.concat(made).rows())


def test_where_a_dataset_is_cut_changes_no_pair():
    for seed in range(20):
        whole = pairs_by_parts(100, seed)
        assert whole
        assert all(pairs_by_parts(size, seed) == whole for size in (1, 2, 4))


def test_no_pair_says_what_another_part_says():
    said = dict(enumerate(CAPTIONS))
    for seed in range(20):
        for _, sample, _, original, changed, _, target, start, end in pairs_by_parts(1, seed):
            sha = said[int(sample[1:])][0]
            others = [text for one, text in CAPTIONS if sha is not None and one == sha and text != original]
            assert check_pair(original, changed, start=start, end=end, target=target, others=others) is None


def test_captions_that_stand_together_are_not_gathered():
    together = samples().filter(pl.col("image_sha").is_not_null()).sort("image_sha")
    parts = lambda: iter([together.filter(image_sha="a"), together.filter(image_sha="b")])  # noqa: E731
    assert shared_captions(parts).is_empty()
    assert shared_captions(lambda: iter([])).is_empty()
