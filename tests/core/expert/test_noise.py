"""A worse expert on purpose: how much worse is what was asked for, and the same question has the same answer."""

import pytest

from core.alignment import Segment
from core.claims import open_database
from core.errors import ConfigError, ExpertUnavailable
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from core.expert.noise import Noise, noise_of
from core.expert.reply import parse_reply
from core.expert.request import Task
from core.expert.rules import revise_by_rule
from core.expert.settings import ReferenceSettings
from core.seeds import rng
from core.worlds.scenes import PROMPT, VOCABULARY, scene_of, synthesize
from tests.core.expert.asking import IMAGES, requests, settings

REFERENCES = synthesize(split="train", start=0, count=150, captions=1, seed=0)[0]["reference"].to_list()
TEXTS = [
    "a man rides a brown horse on a sunny beach while two dogs watch from the boat",
    "a black cat sleeps on a wooden table next to a red bicycle and a small couch",
]


def drafts() -> list[Task]:
    """Captions with three words changed."""
    tasks = []
    for reference in REFERENCES:
        words, stream = reference.split(), rng("noise test", reference)
        for at in stream.choice(len(words), 3, replace=False):
            words[at] = VOCABULARY[int(stream.integers(len(VOCABULARY)))]
        tasks.append(Task(question=PROMPT, ground_truth=reference, prediction=" ".join(words)))
    return tasks


def flawless(task: Task) -> list[Segment]:
    return revise_by_rule(task.question, task.ground_truth, task.prediction)


DRAFTS = drafts()
RIGHT = [Task(question=PROMPT, ground_truth=text, prediction=text) for text in REFERENCES]


@pytest.mark.parametrize(
    "noise",
    [Noise(), Noise(omits=0.4, errs=0.3, rewrites=0.5, resizes=0.5), Noise(omits=1.0), Noise(errs=0.9, rewrites=1.0)],
)
@pytest.mark.parametrize("texts", ["scenes", "other"])
def test_segments_occur_once_do_not_overlap_and_are_the_same_every_time(noise, texts):
    other = [Task(question="?", ground_truth=TEXTS[i], prediction=TEXTS[1 - i]) for i in (0, 1)]
    other += [Task(question="?", ground_truth=text, prediction=text.replace("red", "blue")) for text in TEXTS]
    for task in DRAFTS[:40] + RIGHT[:5] if texts == "scenes" else other:
        segments = noise.apply(task, flawless(task))
        assert segments == noise.apply(task, flawless(task))
        end = 0
        for org, target in segments:
            assert task.prediction.count(org) == 1
            assert org != target
            assert task.prediction.index(org) >= end
            end = task.prediction.index(org) + len(org)


def test_without_noise_nothing_changes():
    for task in DRAFTS:
        assert Noise().apply(task, flawless(task)) == flawless(task)


def test_omissions_are_drawn_as_they_always_were():
    for task in DRAFTS:
        known = [s for s in flawless(task) if rng("omitted", task.prediction, s.org).random() >= 0.3]
        assert Noise(omits=0.3).apply(task, flawless(task)) == known


@pytest.mark.parametrize("omits", [0.3, 0.7])
def test_recall_is_what_was_asked_for(omits):
    named = [len(Noise(omits=omits).apply(task, flawless(task))) / len(flawless(task) or [0]) for task in DRAFTS]
    assert sum(named) / len(named) == pytest.approx(1 - omits, abs=0.08)


@pytest.mark.parametrize("errs", [0.2, 0.5])
def test_precision_is_what_was_asked_for_and_wrong_is_wrong(errs):
    right = wrong = 0
    for task in DRAFTS:
        segments = Noise(errs=errs).apply(task, flawless(task))
        right += len(flawless(task))
        wrong += len(segments) - len(flawless(task))
        assert set(flawless(task)) <= set(segments)
    assert wrong / (right + wrong) == pytest.approx(errs, abs=0.06)
    assert not any(Noise(errs=errs).apply(task, []) for task in RIGHT)


def test_a_wrong_change_makes_a_true_caption_false():
    words = [s for task in DRAFTS for s in Noise(errs=0.5).apply(task, flawless(task)) if s not in flawless(task)]
    assert len(words) > 100
    for task in RIGHT[:50]:
        for org, target in words:
            changed = task.prediction.replace(f" {org} ", f" {target} ", 1)
            if changed != task.prediction:
                assert scene_of(changed) != scene_of(task.prediction)


def test_rewritten_words_mean_the_same():
    rewritten = 0
    for task in RIGHT:
        segments = Noise(rewrites=0.5).apply(task, [])
        rewritten += len(segments)
        text = f" {task.prediction} "
        for org, target in segments:
            text = text.replace(f" {org} ", f" {target} ")
        assert scene_of(text.strip()) == scene_of(task.prediction)
    assert rewritten > len(RIGHT)


def test_segments_of_another_length_are_as_many_as_asked_for():
    segments = [s for task in DRAFTS for s in Noise(resizes=0.5).apply(task, flawless(task))]
    unequal = [len(org.split()) != len(target.split()) for org, target in segments]
    plain = [len(org.split()) != len(target.split()) for task in DRAFTS for org, target in flawless(task)]
    assert sum(unequal) / len(unequal) == pytest.approx(0.5, abs=0.1)
    assert sum(plain) / len(plain) < 0.2


@pytest.mark.parametrize(
    ("asked", "noise"),
    [
        ("reference", Noise()),
        ("reference-omits-0.3", Noise(omits=0.3)),
        ("reference-errs-0.1-omits-1", Noise(omits=1.0, errs=0.1)),
        ("reference-rewrites-0.2-resizes-0.5", Noise(rewrites=0.2, resizes=0.5)),
        ("reference-omits-2", None),
        ("reference-errs-1", None),
        ("reference-omits-0.1-omits-0.2", None),
        ("reference-omits-", None),
        ("reference-omits-0.3x", None),
        ("reference2", None),
        ("other", None),
    ],
)
def test_the_models_name_says_how_noisy_it_is(asked, noise):
    assert noise_of(asked, ReferenceSettings()) == noise


def test_a_noisy_expert_has_a_name_of_its_own(start_expert, tmp_path):
    with pytest.raises(ConfigError, match="model"):
        ReferenceSettings(recall=0.5)
    expert = start_expert(model="deaf", recall=0.0)
    ledger = Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))
    deaf, reference = settings(expert.url, model="deaf"), settings(expert.url)
    (reply,) = ExpertClient(deaf, ledger=ledger).ask(requests(deaf, 1), IMAGES.__getitem__)
    assert parse_reply(reply.raw).verdict == "right"
    with pytest.raises(ExpertUnavailable, match=r"expert\.model"):
        ExpertClient(reference, ledger=ledger).ask(requests(reference, 1), IMAGES.__getitem__)
