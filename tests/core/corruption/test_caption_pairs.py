import hashlib
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.corruption.caption_pairs import make_caption_pairs
from core.corruption.caption_text import article_of, read_caption
from core.corruption.hallucination import KINDS
from core.corruption.lexicon import load, names_of, same_meaning
from core.corruption.pair_check import check_pair, classify
from core.errors import ConfigError
from data_contracts import HallucinationPairs, split_rows

CAPTIONS = [json.loads(line) for line in (Path(__file__).parents[2] / "data/captions/coco.jsonl").open()]


def samples_of(*images):
    """Samples of images, each a list of captions; the captions of one image share its sha."""
    rows = [
        (f"s{i}-{k}", hashlib.sha256(str(i).encode()).hexdigest(), text)
        for i, captions in enumerate(images)
        for k, text in enumerate(captions)
    ]
    return pl.DataFrame(rows, schema=["sample_id", "image_sha", "reference"], orient="row")


def pairs_of(*captions, kinds=KINDS, count=12, seeds=range(6)):
    """All (kind, original span, target) that several seeds give for the first of an image's captions."""
    found = set()
    for seed in seeds:
        made = make_caption_pairs(samples_of(captions), per_sample=count, seed=seed, kinds=kinds)
        rows = made.pairs.filter(pl.col("sample_id") == "s0-0")
        found |= set(rows.select("kind", "solution_original", "solution_target").iter_rows())
    return found


def changed_words(*captions, **options):
    return {original for _, original, _ in pairs_of(*captions, **options)}


def targets_for(word, *captions, **options):
    return {target for _, original, target in pairs_of(*captions, **options) if original == word}


@pytest.fixture(scope="module")
def real():
    return samples_of(*(image["captions"] for image in CAPTIONS))


@pytest.fixture(scope="module")
def made(real):
    return make_caption_pairs(real, per_sample=4, seed=0)


def test_pairs_keep_their_contract_and_every_sample_is_accounted_for(real, made):
    good, failures = split_rows(HallucinationPairs, made.pairs)
    assert failures == []
    assert len(good) == len(made.pairs) > 2 * len(real)
    assert set(made.pairs["sample_id"]) | set(made.rejects["row_id"]) == set(real["sample_id"])
    assert not set(made.pairs["sample_id"]) & set(made.rejects["row_id"])


def test_only_the_span_differs(made):
    for row in made.pairs.iter_rows(named=True):
        original, start, end = row["original_caption"], row["start"], row["end"]
        assert original[start:end] == row["solution_original"] != row["solution_target"]
        assert original[:start] + row["solution_target"] + original[end:] == row["changed_caption"]


def test_rules_pass_the_checker_and_its_kinds(real, made):
    captions = dict(real.group_by("image_sha").agg("reference").iter_rows())
    image = dict(real.select("sample_id", "image_sha").iter_rows())
    for row in made.pairs.iter_rows(named=True):
        others = [text for text in captions[image[row["sample_id"]]] if text != row["original_caption"]]
        reason = check_pair(
            row["original_caption"],
            row["changed_caption"],
            start=row["start"],
            end=row["end"],
            target=row["solution_target"],
            others=others,
        )
        assert reason is None, row
        assert classify(row["solution_original"], row["solution_target"], row["original_caption"]) == row["kind"], row


_WORDS = (
    "a an the two three red orange brown dog cat puppy hot man woman his her table tennis court on under left side of "
    "in front behind , . large small elephant apple umbrella kitchen sitting holding wooden and black white is"
)
TEXTS = st.lists(st.sampled_from(_WORDS.split()), min_size=1, max_size=14).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(0, 5))
@example(["a an orange"], 0)
def test_any_words_give_exact_spans_and_nothing_that_is_mentioned_or_means_the_same(captions, seed):
    made = make_caption_pairs(samples_of(captions), per_sample=3, seed=seed)
    for row in made.pairs.iter_rows(named=True):
        original, start, end, target = (row[name] for name in ("original_caption", "start", "end", "solution_target"))
        assert original[:start] + target + original[end:] == row["changed_caption"]
        others = list(captions)
        others.remove(original)
        assert check_pair(original, row["changed_caption"], start=start, end=end, target=target, others=others) is None
        new = target.lower().removeprefix("an ").removeprefix("a ")
        assert not same_meaning(row["solution_original"].lower().removeprefix("an ").removeprefix("a "), new)
        if row["kind"] in ("object", "attribute", "count"):
            assert not any(names_of(new) & read_caption(text).words for text in captions)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(20)), st.integers(1, 20), st.integers(0, 3))
def test_pairs_depend_on_neither_row_order_nor_other_images(order, keep, seed):
    samples = samples_of(*(image["captions"] for image in CAPTIONS[:4]))
    whole = make_caption_pairs(samples, per_sample=2, seed=seed).pairs.sort("pair_id")
    assert make_caption_pairs(samples[order], per_sample=2, seed=seed).pairs.sort("pair_id").equals(whole)
    shas = samples["image_sha"][order[:keep]].to_list()
    some = samples.filter(pl.col("image_sha").is_in(shas))
    alone = make_caption_pairs(some, per_sample=2, seed=seed).pairs.sort("pair_id")
    assert alone.equals(whole.filter(pl.col("sample_id").is_in(some["sample_id"].to_list())))


def test_seeds_differ(real):
    one, other = (make_caption_pairs(real, per_sample=1, seed=seed).pairs for seed in (0, 1))
    assert not one.equals(other)


def test_balanced_kinds_are_more_even_and_do_not_depend_on_row_order(real):
    counts = [
        Counter(make_caption_pairs(real, per_sample=1, seed=0, balance=balance).pairs["kind"])
        for balance in (False, True)
    ]
    spread = [max(count.values()) - min(count[kind] for kind in KINDS) for count in counts]
    assert spread[1] < spread[0]
    forward = make_caption_pairs(real, per_sample=2, seed=0, balance=True).pairs.sort("pair_id")
    assert make_caption_pairs(real.reverse(), per_sample=2, seed=0, balance=True).pairs.sort("pair_id").equals(forward)


def test_a_null_image_has_no_other_captions():
    samples = samples_of(["A dog on a bench.", "A cat on a bench."])
    together = make_caption_pairs(samples, per_sample=20, seed=0).pairs
    apart = make_caption_pairs(samples.with_columns(image_sha=pl.lit(None)), per_sample=20, seed=0).pairs
    targets = [
        set(pairs.filter(pl.col("solution_original") == "dog")["solution_target"]) for pairs in (together, apart)
    ]
    assert "cat" not in targets[0]
    assert "cat" in targets[1]


def test_requested_kinds_alone_are_made():
    text = "Two brown dogs sitting on a bench in a park."
    assert {kind for kind, *_ in pairs_of(text)} == {"object", "attribute", "count", "place", "relation"}
    for kind in KINDS:
        assert {found for found, *_ in pairs_of(text, kinds=(kind,))} == {kind}


@pytest.mark.parametrize("kinds", [(), ("colour",)])
def test_an_unknown_kind_is_a_config_error(real, kinds):
    with pytest.raises(ConfigError):
        make_caption_pairs(real, per_sample=1, seed=0, kinds=kinds)


def test_samples_without_pairs_say_why():
    samples = samples_of(
        ["Yes."], ["A red stop sign.", "Blue, green, yellow, white, black, gray, brown, pink and so on"]
    )
    made = make_caption_pairs(samples, per_sample=1, seed=0, kinds=("attribute",))
    reasons = dict(made.rejects.select("row_id", "reason").iter_rows())
    assert (reasons["s0-0"], reasons["s1-0"]) == ("no_such_fact", "no_plausible_change")


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("A hot dog on the grill.", {"dog", "hot"}),
        ("Players on a tennis court.", {"tennis", "court"}),
        ("A black and white photo of a street.", {"black", "white"}),
        ("A glass of orange juice.", {"orange", "juice"}),
        ("A red stop sign.", {"stop"}),
        ("A dog food bowl.", {"dog", "dog food"}),
        ("A train station clock.", {"train", "station"}),
        ("A teddy bear sits.", {"bear", "teddy"}),
        ("He left the house.", {"left"}),
        ("There is one slice left.", {"left", "one"}),
        ("She is right next to him.", {"right"}),
        ("One of the dogs is asleep.", {"one", "One"}),
        ("A snow-covered two-story house.", {"snow", "two", "covered"}),
        ("Fish can be seen in the water.", {"can"}),
        ("The bear, which can stand, watches.", {"can", "stand", "watches"}),
        ("Two bears open their mouths.", {"open"}),
        ('A shirt that reads "dog on a table".', {"dog", "table", "on"}),
        ("A boat called Lake Rose Dog sails.", {"Lake", "Rose", "Dog"}),
        ("A man's hat.", {"man"}),
        ("A black man in a red hat.", {"black"}),
        ("A wood carved bear.", {"wood"}),
        ("Green grass under a blue sky.", {"green", "Green", "blue"}),
        ("A horse with two legs in the air.", {"two"}),
        ("A vase sitting on a table.", {"sitting"}),
        ("A person cuts a piece of cake.", {"piece"}),
        ("A dog. The dog is brown.", {"dog"}),
        ("A person taking a picture in the street.", {"picture"}),
    ],
)
def test_traps_are_left_alone(text, never):
    assert not changed_words(text) & never


def test_an_article_changes_with_its_noun_or_adjective():
    found = pairs_of("There is an elephant in the grass.") | pairs_of("A zebra and an orange truck.")
    for _, original, target in found:
        if original.startswith(("a ", "an ", "A ", "An ")) or target.startswith(("a ", "an ", "A ", "An ")):
            article, word = target.split(" ", 1)
            assert article.lower() == article_of(word)
            assert original.split(" ")[0].lower() != article.lower()
    assert any(original == "an elephant" and target.startswith("a ") for _, original, target in found)
    assert any(original == "an orange" and target.startswith("a ") for _, original, target in found)


@pytest.mark.parametrize(
    ("word", "article"),
    [("umbrella", "an"), ("unicycle", "a"), ("uniform", "a"), ("hour", "an"), ("house", "a"), ("ewe", "a"),
     ("utensil", "a"), ("8", "an"), ("11", "an"), ("18", "an"), ("80", "an"), ("1", "a"), ("110", "a")],
)  # fmt: skip
def test_articles_go_by_sound(word, article):
    assert article_of(word) == article


def test_plurals_stay_plural_and_one_stays_one():
    lexicon = load()
    for text in ("Two dogs and three chairs near some benches.", "A dog and a chair near a bench."):
        for kind, original, target in pairs_of(text, kinds=("object",)):
            numbers = [
                {sense.number for sense in lexicon.phrases[word.removeprefix("an ").removeprefix("a ")].nouns}
                for word in (original.lower(), target.lower())
            ]
            assert numbers[0] & numbers[1], (kind, original, target)


def test_men_and_women_change_places_only_without_their_pronouns():
    assert "woman" in targets_for("man", "A man with a dog.")
    assert not targets_for("man", "A man with his dog.")
    assert not targets_for("woman", "A woman washes her hair.")
    assert not targets_for("boy", "A boy hurt himself.")
    assert not targets_for("man", "A bearded man with a dog.")
    assert not targets_for("man", "A man with a dog.", "A woman and a dog.")


def test_orange_is_a_fruit_or_a_colour():
    fruit = pairs_of("There is an orange on the plate.", kinds=("object", "attribute"))
    assert {kind for kind, original, _ in fruit if "orange" in original} == {"object"}
    colour = pairs_of("There is an orange hat on the plate.", kinds=("object", "attribute"))
    assert {kind for kind, original, _ in colour if "orange" in original} == {"attribute"}


def test_left_and_right_are_places_only():
    assert targets_for("left", "A dog on the left side of a car.") == {"right"}
    assert targets_for("right", "A cup to the right of the plate.") == {"left"}


def test_near_synonyms_never_replace_each_other():
    texts = [
        f"There is {article_of(word)} {word} {rest}"
        for word, rest in [
            ("sofa", "here."), ("couch", "here."), ("mug", "of tea."), ("bike", "here."), ("grey", "car."),
            ("beige", "car."), ("navy", "car."), ("large", "car."), ("puppy", "here."), ("taxi", "here."),
        ]
    ]  # fmt: skip
    for text in texts:
        for _, original, target in pairs_of(text):
            words = [phrase.lower().removeprefix("an ").removeprefix("a ") for phrase in (original, target)]
            assert not same_meaning(*words)
    assert not {"gray", "silver", "white", "blue", "black"} & targets_for("grey", texts[4])
    assert not {"blue", "gray", "purple", "black"} & targets_for("navy", texts[6])


def test_what_another_caption_calls_it_by_another_name_is_mentioned():
    assert "dog" not in targets_for("cat", "A cat on a mat.", "An animal and a poodle.")
    assert "dog" not in targets_for("cat", "A cat on a mat.", "The puppies sleep.")
    assert "dog" in targets_for("cat", "A cat on a mat.", "An animal.")


def test_numbers_keep_their_spelling_and_stay_near():
    assert targets_for("three", "There are three dogs.") == {"two", "four", "five", "six"}
    assert targets_for("3", "There are 3 dogs.") == {"2", "4", "5", "6"}
    assert targets_for("three", "There are three dogs.", "4 dogs") == {"two", "five", "six"}
    assert not changed_words("A dog looks at the other of the two dogs.", kinds=("count",))


GOOD = {
    ("A dog on a bench.", "dog", "cat"): "object",
    ("A red car.", "red", "blue"): "attribute",
    ("Three men.", "Three", "Four"): "count",
    ("A man in a kitchen.", "kitchen", "bathroom"): "place",
    ("A cat on the left side.", "left", "right"): "place",
    ("A cat in front of a door.", "front", "back"): "relation",
    ("A cat under a table.", "under", "on top of"): "relation",
    ("A living room.", "living room", "dining room"): "place",
    ("A man on a red velocipede.", "red velocipede", "blue velocipede"): "attribute",
}


@pytest.mark.parametrize(("case", "kind"), GOOD.items())
def test_kinds_of_changes_by_others(case, kind):
    text, span, target = case
    assert classify(span, target, text) == kind


def test_an_unknown_word_has_no_kind():
    assert classify("zorb", "quux", "A zorb.") is None


@pytest.mark.parametrize(
    ("text", "span", "target", "others", "reason"),
    [
        ("A dog on a bench.", "dog", "cat", [], None),
        ("A dog on a bench.", "a bench", "an ottoman", [], None),
        ("A quokka on a bench.", "quokka", "wombat", [], None),
        ("A dog on a bench.", "dog", "Dog!", [], "no_change"),
        ("A dog on a bench.", "dog", "", [], "nothing_replaced"),
        ("A dog on a bench.", "dog", "black dog", [], "nothing_replaced"),
        ("A dog on a bench.", "dog", "puppy", [], "same_meaning"),
        ("A dog on a bench.", "dog", "poodle", [], "same_meaning"),
        ("A dog on a bench.", "dog", "animal", [], "same_meaning"),
        ("A sofa.", "sofa", "couch", [], "same_meaning"),
        ("A tennis racket.", "tennis racket", "racket", [], "same_meaning"),
        ("A dog on a bench.", "dog", "cat", ["a kitten"], "mentioned"),
        ("A dog on a bench.", "dog", "bench", [], "mentioned"),
        ("A quokka on a bench.", "quokka", "wombat", ["a wombat"], "mentioned"),
        ("A dog on a bench.", "dog", "elephant", [], "article"),
        ("A dog on a bench.", "dog", "cats", [], "number"),
        ("A man and his dog.", "man", "woman", [], "pronoun"),
        ("A man on the bench.", "man on", "cow on on", [], "repeated_word"),
        ("A dog on a bench.", "dog", "cat<|endoftext|>", [], "control_text"),
        ("A dog on a bench.", "dog", "cat\nignore", [], "control_text"),
        ("A dog on a bench.", "do", "ca", [], "splits_word"),
    ],
)
def test_the_checker_says_why(text, span, target, others, reason):
    start = text.index(span)
    end = start + len(span)
    changed = text[:start] + target + text[end:]
    assert check_pair(text, changed, start=start, end=end, target=target, others=others) == reason


def test_the_checker_wants_one_change():
    arguments = {"start": 2, "end": 5, "target": "cat", "others": []}
    assert check_pair("A dog on a bench.", "A cat on a couch.", **arguments) == "not_one_change"
    assert check_pair("A dog.", "A dog.", start=4, end=99, target="cat", others=[]) == "not_one_change"


def test_tables_are_small_and_licensed():
    folder = Path(load.__wrapped__.__code__.co_filename).parent
    assert sum(path.stat().st_size for path in folder.glob("*.tsv")) < 1_000_000
    assert "Princeton University" in (folder / "LICENSE.wordnet").read_text()


def test_every_name_in_the_tables_exists():
    lexicon = load()
    known = {
        *lexicon.phrases, *lexicon.clusters, *lexicon.groups, *(f"@{group.sort}" for group in lexicon.groups.values()),
    }  # fmt: skip
    unknown = {
        name for entry in lexicon.phrases.values() for swap in entry.swaps for name in (*swap.head, *swap.not_head)
    } - known
    assert unknown == set()
    assert {name for names in lexicon.far.values() for name in names} <= set(lexicon.colours)
    assert {name for names in lexicon.palettes.values() for name in names} <= set(lexicon.colours)


@pytest.mark.parametrize(
    ("caption", "org", "target"),
    [
        ("A bus on a road.", "bus", "vehicle"),
        ("A pizza on a table.", "pizza", "food"),
        ("Two boys play ball.", "boys", "children"),
        ("A girl holds a ball.", "girl", "kid"),
        ("Some women near a car.", "women", "people"),
        ("A rose in a vase.", "rose", "flower"),
        ("A kid holds a ball.", "kid", "boy"),
        ("A happy man on a bench.", "happy", "joyful"),
        ("A man walks along a road.", "walks", "strolls"),
        ("A cat on a bench.", "on", "upon"),
        ("Two dogs on a bench.", "Two", "A pair of"),
    ],
)
def test_a_wider_a_narrower_or_another_word_for_the_same_is_no_hallucination(caption, org, target):
    start = caption.index(org)
    changed = caption[:start] + target + caption[start + len(org) :]
    reason = check_pair(caption, changed, start=start, end=start + len(org), target=target, others=[])
    assert reason == "same_meaning"
