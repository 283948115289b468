"""What each experiment compares. An arm is a model of the lab, decoded in some settings.

Responses have 48 tokens, so that forwards are 48, 24, 12, 6 at 1, 2, 4, 8 tokens a step, and 16 and 10 with four extra
refining steps; "3 freeze" and "5 freeze" are mask-predict with as many forwards as those.
"""

from typing import Any, Literal

from pydantic import Field

from core.settings import Settings
from flows.experiments.claims import CLAIMS
from tasks.versions import VERSIONS

FROZEN = ("1 freeze", "2 freeze", "4 freeze", "8 freeze")
REFINING = ("1 refine", "2 refine", "4 refine", "8 refine", "4+4 refine", "8+4 refine")
EQUAL_FORWARDS = ("3 freeze", "5 freeze")
ON_AND_OFF = (*REFINING, "8 freeze")
BOTH = (*REFINING, *FROZEN)


def _in_blocks(*paces: str, options: str = "") -> tuple[str, ...]:
    """With and without refining, in blocks of a third of the response."""
    return tuple(f"{pace} {policy} block_length=16{options}" for policy in ("refine", "freeze") for pace in paces)


def _cache(kind: str, refresh: int) -> str:
    return f" cache={kind}" + (f" refresh={refresh}" if refresh > 1 else "")


class Arm(Settings):
    """A model of the lab (a recipe of `flows.experiments.lab`) and the decoder settings that it is measured in."""

    model: str
    settings: tuple[str, ...]


class Experiment(Settings):
    """A question, and the arms that answer it."""

    title: str
    arms: dict[str, Arm]
    split: Literal["test", "dev"] = "test"
    sets: tuple[str, ...] = ()
    """Keys of the configuration that the arms set themselves: what they are in the configuration does not matter."""
    contrasts: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """What is told of pairs of arms: the first one's score above the second one's."""
    about: Literal["training", "decoding"] = "training"
    """What its arms differ in, and so what its table tells of: quality by pace, or quality by cost."""


RATES = ("5e-4", "1e-3", "2e-3", "4e-3")
"""Learning rates tried on the dev scenes: as many trials for mask-predict as for ReDiff."""

CATALOGUE = {
    "trials": Experiment(
        title="Tuning: the learning rate of mask-predict, and of ReDiff's stages, on the dev scenes",
        split="dev",
        sets=("stage1.lr", "stage2.lr", "control.lr"),
        arms={
            **{f"mask-predict, lr {rate}": Arm(model=f"mask-predict, lr {rate}", settings=FROZEN) for rate in RATES},
            **{f"ReDiff, lr {rate}": Arm(model=f"round 1, lr {rate}", settings=REFINING) for rate in RATES},
        },
    ),
    "RD-2": Experiment(
        title="Quality against speed: base, mask-predict on the same data for the same steps, ReDiff",
        arms={
            "base": Arm(model="base", settings=FROZEN),
            "mask_predict": Arm(model="mask-predict", settings=FROZEN + EQUAL_FORWARDS),
            "mask_predict_refine": Arm(model="mask-predict", settings=REFINING),
            "rediff": Arm(model="round 2", settings=REFINING),
            "rediff_freeze": Arm(model="round 2", settings=FROZEN + EQUAL_FORWARDS),
        },
    ),
    "RD-3": Experiment(
        title="Stages: none, I alone, II alone (for the steps of both), I and II",
        arms={
            "none": Arm(model="base", settings=FROZEN),
            "I": Arm(model="stage 1", settings=REFINING),
            "II": Arm(model="stage 2 alone", settings=REFINING),
            "I+II": Arm(model="round 1", settings=REFINING),
        },
    ),
    "RD-5": Experiment(
        title="Rounds 0, 1, 2, and a control: round 1 trained on for the steps of round 2 without new drafts",
        arms={
            "round 0": Arm(model="stage 1", settings=REFINING),
            "round 1": Arm(model="round 1", settings=REFINING),
            "round 2": Arm(model="round 2", settings=REFINING),
            "round 1, more steps": Arm(model="round 1, more steps", settings=REFINING),
        },
    ),
    "RD-7": Experiment(
        title="The trained model with refining on and off",
        arms={
            "refining on": Arm(model="round 2", settings=REFINING),
            "refining off": Arm(model="round 2", settings=FROZEN),
        },
    ),
    "RD-15": Experiment(
        title="Stage II from stage 1 on the same drafts: equation 5 as published, and what each change adds",
        arms={
            "published": Arm(model="eq. 5", settings=ON_AND_OFF),
            "trajectory input": Arm(model="eq. 5, trajectory input", settings=ON_AND_OFF),
            "full loss": Arm(model="full loss", settings=ON_AND_OFF),
            "full loss, error-free drafts kept": Arm(model="full loss, error-free kept", settings=ON_AND_OFF),
            "all three": Arm(model="round 1", settings=ON_AND_OFF),
            "all three, expert omits .3": Arm(model="round 1, omitting expert", settings=ON_AND_OFF),
        },
        contrasts={
            "partial states as input, loss on mistakes": ("trajectory input", "published"),
            "loss over the whole response": ("full loss", "published"),
            "error-free drafts kept, too": ("full loss, error-free drafts kept", "full loss"),
            "partial states as input, on top of both": ("all three", "full loss, error-free drafts kept"),
            "an expert that omits nothing": ("all three", "all three, expert omits .3"),
            "all of it": ("all three", "published"),
        },
    ),
    "prompt-attention": Experiment(
        title="Prompt attention: stage 1 from the same base on the same rows, with the prompt blind to the response",
        arms={
            "full": Arm(model="stage 1", settings=BOTH),
            "prefix": Arm(model="stage 1, prefix attention", settings=BOTH),
            "full, decoded with prefix": Arm(model="stage 1, switched to prefix attention", settings=BOTH),
        },
        contrasts={
            "prefix attention, trained and decoded": ("prefix", "full"),
            "prefix attention without the training": ("full, decoded with prefix", "full"),
        },
    ),
    "approximate-decoding": Experiment(
        title="Approximate decoding of the trained model: stale keys and values, and revealing by confidence",
        about="decoding",
        arms={
            "exact": Arm(model="round 2", settings=_in_blocks("1", "2", "4")),
            **{
                f"{cache} cache, refresh {refresh}": Arm(
                    model="round 2",
                    settings=_in_blocks("2", "4", options=_cache(cache, refresh)),
                )
                for cache in ("prefix", "dual")
                for refresh in (1, 2, 4, 8)
            },
            **{
                f"threshold {threshold}": Arm(
                    model="round 2", settings=_in_blocks("1", options=f" threshold={threshold}")
                )
                for threshold in (0.5, 0.7, 0.9, 0.95)
            },
            "threshold 0.9, dual cache, refresh 4": Arm(
                model="round 2", settings=_in_blocks("1", options=" threshold=0.9 cache=dual refresh=4")
            ),
        },
    ),
}


_FOR_FILES = ("adopt", "ingest", "keep_tokenizer", "switch_attention", "take")
"""Stages that the experiments' loop, which is about the scene world, has no use for."""


def declaration_of(name: str) -> dict[str, Any]:
    """All that an experiment promises before it is measured: its arms, its claims, the versions of the stages."""
    claims = [
        {"text": claim.text, "kind": claim.kind, "bound": claim.bound, "at_most": claim.at_most}
        for claim in CLAIMS
        if claim.experiment == name
    ]
    versions = {stage: version for stage, version in VERSIONS.items() if stage not in _FOR_FILES}
    return {
        **CATALOGUE[name].model_dump(mode="json", exclude={"sets", "contrasts", "about"}),
        "claims": claims,
        "versions": versions,
    }


def settings_by_model(experiments: list[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """(model, split) that the experiments need -> all the settings that it is measured in, each once."""
    wanted: dict[tuple[str, str], dict[str, None]] = {}
    for name in experiments:
        for arm in CATALOGUE[name].arms.values():
            wanted.setdefault((arm.model, CATALOGUE[name].split), {}).update(dict.fromkeys(arm.settings))
    return {key: tuple(settings) for key, settings in wanted.items()}
