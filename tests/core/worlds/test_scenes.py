import hashlib
import io
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.seeds import rng
from core.worlds.scenes import (
    MAX_WORDS,
    VOCABULARY,
    Scene,
    SceneObject,
    caption,
    draw,
    render,
    scene_of,
    split_of,
    synthesize,
)
from core.worlds.scenes_grammar import MEANING_OF
from core.worlds.scenes_graph import BACKGROUNDS, COLOURS, SHAPES, SIZES, canonical, relations
from data_contracts import Samples, split_rows

splits = st.sampled_from(["train", "dev", "test"])


@st.composite
def scenes(drawn):
    cells = drawn(st.lists(st.integers(0, 8), min_size=2, max_size=3, unique=True))
    identities = drawn(
        st.lists(
            st.tuples(st.sampled_from(COLOURS), st.sampled_from(SHAPES)),
            min_size=len(cells),
            max_size=len(cells),
            unique=True,
        )
    )
    things = [
        SceneObject(colour=colour, shape=shape, size=drawn(st.sampled_from(SIZES)), row=cell // 3, column=cell % 3)
        for cell, (colour, shape) in zip(sorted(cells), identities, strict=True)
    ]
    return Scene(background=drawn(st.sampled_from(BACKGROUNDS)), objects=tuple(things))


@given(scenes(), st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_a_caption_alone_determines_its_scene(scene, seed):
    written = caption(scene, np.random.default_rng(seed))
    assert scene_of(written.text) == scene
    assert len(written.text.split(" ")) <= MAX_WORDS
    assert set(written.text.split(" ")) <= set(VOCABULARY)


@given(scenes(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_grounding_marks_every_colour_shape_and_size_word_with_its_cell(scene, seed):
    written = caption(scene, np.random.default_rng(seed))
    spoken = [(written.text[span["start"] : span["end"]], span["region"]) for span in written.grounding]
    meanings = {word: name for slot in ("COLOUR", "SHAPE", "SIZE") for word, name in MEANING_OF[slot].items()}
    assert sorted(word for word, _ in spoken) == sorted(word for word in written.text.split() if word in meanings)
    at = {thing.cell: thing for thing in scene.objects}
    for word, region in spoken:
        thing = at[region]
        assert meanings[word] in (*thing.identity, thing.size)


@given(scenes())
@settings(max_examples=60, deadline=None)
def test_every_relation_comes_with_its_inverse(scene):
    wordings = Counter(canonical(relation) for relation in relations(scene))
    assert set(wordings.values()) <= {2}


def spoil(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


def test_scene_of_reads_only_true_and_complete_captions():
    two = "two items can be seen against a dark canvas ."
    first = "the top left corner holds a small red ring ."
    second = "the lower right area holds a huge azure plus ."
    relation = "the red ring is smaller than the blue cross ."
    whole = f"{two} {first} {second} {relation}"
    assert scene_of(whole) == Scene(
        background="black",
        objects=(
            SceneObject(colour="red", shape="ring", size="small", row=0, column=0),
            SceneObject(colour="blue", shape="cross", size="large", row=2, column=2),
        ),
    )
    for text in (
        "",
        f"{two} {first}",
        f"{two} {first} {first}",
        f"{two} {two} {first} {second}",
        f"{first} {second}",
        f"{whole} {relation}",
        f"{whole} the blue cross is larger than the red ring .",
        f"{whole} the",
        spoil(whole, "two", "three"),
        spoil(whole, "smaller", "bigger"),
        spoil(whole, "lower right", "top left"),
        spoil(whole, "azure plus", "red ring"),
        spoil(whole, " .", "."),
        spoil(whole, " can", "  can"),
        whole.capitalize(),
    ):
        assert scene_of(text) is None, text


@given(splits, st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_scene_belongs_to_the_split_it_is_drawn_for(split, index, seed):
    scene = draw(split, index, seed)
    assert split_of(scene) == split
    assert draw(split, index, seed) == scene


def test_splits_have_their_shares_and_never_meet():
    drawn = {split: {draw(split, i, seed) for i in range(150) for seed in (0, 1)} for split in ("train", "dev", "test")}
    assert not drawn["train"] & drawn["dev"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["dev"] & drawn["test"]
    everything = [split_of(scene) for split in drawn for scene in drawn[split]]
    assert min(Counter(everything).values()) > 290


def test_the_split_of_a_scene_never_changes():
    cross = SceneObject(colour="blue", shape="cross", size="large", row=2, column=2)
    rings = [
        SceneObject(colour="red", shape="ring", size=size, row=k // 3, column=k % 3) for size in SIZES for k in range(8)
    ]
    initials = "".join(split_of(Scene(background="teal", objects=(ring, cross)))[:2] for ring in rings)
    assert initials == "trtrdetrdetrtrtrtrtrtrtrtrdetrte"


def test_slices_of_a_stream_do_not_depend_on_how_much_is_made():
    frame, images = synthesize(split="dev", start=0, count=6, captions=2, seed=3)
    later, later_images = synthesize(split="dev", start=4, count=2, captions=1, seed=3)
    both = frame.filter(pl.col("sample_id").is_in(["dev-000004-0", "dev-000005-0"]))
    assert later.equals(both)
    assert later_images.items() <= images.items()
    assert not frame.equals(synthesize(split="dev", start=0, count=6, captions=2, seed=4)[0])


def test_synthesized_samples_keep_their_contract_and_name_their_images():
    frame, images = synthesize(split="test", start=0, count=20, captions=2, seed=0)
    good, failures = split_rows(Samples, frame)
    assert (len(good), failures) == (40, [])
    assert set(frame["image_sha"]) == set(images)
    for sha, png in images.items():
        assert hashlib.sha256(png).hexdigest() == sha
        assert np.asarray(Image.open(io.BytesIO(png))).shape == (48, 48, 3)
    assert frame["sample_id"].to_list()[:3] == ["test-000000-0", "test-000000-1", "test-000001-0"]
    assert frame.group_by("image_sha").agg(pl.col("reference").n_unique())["reference"].to_list() == [2] * 20


def test_pictures_show_each_object_in_its_cell_and_nothing_elsewhere():
    backgrounds = {"black": (10, 10, 10), "gray": (120, 120, 120), "brown": (100, 65, 30), "teal": (10, 110, 110)}
    for index in range(40):
        scene = draw("train", index, 0)
        image = render(scene, rng(0, "render", index)).astype(float)
        off = np.abs(image - backgrounds[scene.background]).max(-1) > 60
        covered = off.reshape(3, 16, 3, 16).sum((1, 3)).reshape(9)
        assert {cell for cell in range(9) if covered[cell] > 10} == {thing.cell for thing in scene.objects}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_sizes_differ_in_pixels(shape):
    def area(size, other):
        things = (
            SceneObject(colour="white", shape=shape, size=size, row=0, column=0),
            SceneObject(colour="red", shape=other, size="small", row=2, column=2),
        )
        image = render(Scene(background="black", objects=things), np.random.default_rng(0))
        return int((image[:16, :16].min(-1) > 128).sum())

    assert area("large", "ring") > 2 * area("small", "ring") > 20


def test_captions_use_every_word_of_the_language():
    frame, _ = synthesize(split="train", start=0, count=400, captions=2, seed=0)
    spoken = {word for text in frame["reference"] for word in text.split()}
    assert set(VOCABULARY) - spoken == {"describe", "four"}
