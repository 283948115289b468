"""A made-up run with the shape and size of a real one."""

import hashlib
import io
import math
from datetime import UTC, datetime

from PIL import Image, ImageDraw

from flows.summary import (
    ArmResult,
    Control,
    Curve,
    ExpertRecord,
    GalleryItem,
    GallerySegment,
    Machine,
    RunSummary,
    StageRecord,
)

ARMS = {
    "base": (30.0, 6.0, 1500),
    "stage 1": (62.0, 9.0, 2300),
    "round 1": (88.0, 3.0, 2900),
    "round 2": (89.0, 2.5, 3500),
    "mask-predict": (70.0, 11.0, 3500),
}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def result(arm, refining, tokens, extra):
    top, fall, steps = ARMS[arm]
    score = top - fall * math.log2(tokens) - (0 if refining else 4 * math.log2(tokens)) + extra * 0.8
    return ArmResult(
        arm=arm,
        refining=refining,
        tokens_per_step=tokens,
        extra_steps=extra,
        nfe=48 / tokens + extra,
        train_steps=steps,
        score=score,
        low=score - 1.8,
        high=score + 1.6,
        samples=400,
        seconds=12.5 / tokens,
        strict_precision=score / 100,
        fact_recall=score / 101,
        fact_f1=score / 99,
        place_accuracy=0.91,
        place_chance=0.17,
        validity=0.97,
        repeat_rate=0.02,
        overlap_f1=0.8,
    )


def stage(name, label="", kind="", parents=(), rows_in=None, seconds=20.0, rejected=None, failed=None, cached=False):
    rejected, failed = rejected or {}, failed or {}
    lost = sum(rejected.values()) + sum(failed.values())
    return StageRecord(
        stage=name,
        label=label,
        kind=kind,
        key=digest("key" + name + label),
        digest=digest(name + label),
        parents=[digest(parent) for parent in parents],
        seconds=seconds,
        cached=cached,
        rows_in=rows_in,
        ok=None if rows_in is None else rows_in - lost,
        rejected=rejected,
        failed=failed,
    )


def stages():
    records = [
        stage("synth", "train", "samples", rows_in=4000, seconds=14.2),
        stage("synth", "test", "samples", rows_in=400, seconds=1.6, cached=True),
        stage("pair", "", "hallucination_pairs", ["synthtrain"], 16000, 9.8, {"no_candidate": 213}),
        stage(
            "corrupt",
            "stage 1",
            "training_examples",
            ["synthtrain", "pair"],
            24000,
            11.1,
            {"contract:equal_lengths": 2},
        ),
        stage("finetune", "base", "checkpoint", ["synthtrain"], seconds=131.0),
        stage("finetune", "stage 1", "checkpoint", ["finetunebase", "corruptstage 1"], seconds=122.5),
    ]
    parent = "finetunestage 1"
    for label in ("round 1", "round 2"):
        records += [
            stage("draft", label, "drafts", [parent, "synthtrain"], 4000, 48.0),
            stage("revise", label, "revisions", [f"draft{label}"], 4000, 21.0, {}, {"timeout": 3}),
            stage(
                "assemble", label, "training_examples", [f"revise{label}"], 3997, 3.0, {"unusable": 131, "no_op": 12}
            ),
            stage("finetune", label, "checkpoint", [parent, f"assemble{label}"], seconds=94.0),
        ]
        parent = f"finetune{label}"
    return [*records, stage("evaluate", "", "evaluations", [parent, "synthtest"], 4800, 41.0)]


def summary(**changes):
    settings = [(1, 0), (2, 0), (4, 0), (8, 0), (4, 4), (8, 4)]
    results = [
        result(arm, refining, tokens, extra)
        for arm in ARMS
        for refining in (True, False)
        for tokens, extra in settings
        if refining or not extra
    ]
    steps = list(range(0, 1500, 10))
    experts = [
        ExpertRecord(
            label=label,
            model="redraft-rules",
            prompt_version="v1",
            drafts=4000,
            verdicts={"right": 912, "revised": 2954, "unusable": 131, "failed": 3},
            segments=9120,
            accepted={"equal": 8104, "re-diff": 611},
            segment_reasons={"not_found": 12, "ambiguous": 201, "length_mismatch": 180, "overlap": 12},
            requests=4000,
            from_ledger=37,
            prompt_tokens=1_402_113,
            completion_tokens=210_448,
            cost_usd=0.0,
            seconds=21.0,
        )
        for label in ("round 1", "round 2")
    ]
    values = {
        "run": "thoughtful-otter",
        "started": datetime(2026, 3, 4, 14, 5, tzinfo=UTC),
        "seconds": 741.0,
        "command": "redraft run --config scenes --seed 0",
        "config_name": "scenes",
        "config": {"seed": 0, "rounds": {"n": 2, "drafts": 4000}, "train": {"lr": 0.001, "betas": [0.9, 0.95]}},
        "config_hash": digest("config"),
        "seed": 0,
        "machine": Machine(host="workstation", platform="Linux 6.1 x86_64", cpus=2, memory_gb=7.8),
        "versions": {"redraft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "metric": "score",
        "metric_note": "100 × F1 of strict precision and fact recall; a fact counts with its object and its place.",
        "results": results,
        "controls": [
            Control(name="empty caption", score=0.0),
            Control(name="another scene's caption", score=6.3),
            Control(name="the true caption", score=100.0),
        ],
        "stages": stages(),
        "experts": experts,
        "curves": [
            Curve(
                label=label,
                steps=steps,
                loss=[4 * math.exp(-step / 300) + 0.4 + 0.1 * math.sin(step) for step in steps],
            )
            for label in ("base", "stage 1", "round 1", "round 2", "mask-predict")
        ],
        "notes": ["Round 2 gained 0.9 points over round 1."],
    }
    return RunSummary(**(values | changes))


def picture(width=48, height=48):
    image = Image.new("RGB", (width, height), (240, 240, 236))
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 4, 14, 14), fill=(200, 40, 40))
    draw.rectangle((20, 20, 29, 29), fill=(40, 80, 200))
    draw.polygon([(36, 45), (45, 45), (40, 36)], fill=(240, 190, 20))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def item(number=0, **changes):
    draft = "there is a red ring at the top left . a green square is in the the middle . below it stands a yellow cone"
    at = draft.index("green")
    the = draft.index("the the")
    segments = [
        GallerySegment(org="green", target="blue", start=at, end=at + 5),
        GallerySegment(org="the the", target="the", start=the, end=the + 7, reason="length_mismatch"),
        GallerySegment(org="a purple star", target="a yellow cone", reason="not_found"),
    ]
    values = {
        "sample_id": f"scene-{number}",
        "image": picture(*((400, 100) if number % 5 == 3 else (48, 48))),
        "prompt": "describe the image",
        "reference": "there is a red ring at the top left . a blue square is in the middle . bottom right is a cone",
        "draft": draft,
        "draft_label": "Draft of stage 1, 8 tokens a step",
        "verdict": ("revised", "right", "unusable")[number % 3],
        "segments": segments if number % 3 != 1 else [],
        "final": "there is a red ring at the top left . a blue square is in the middle . bottom right is a cone",
        "final_label": "After round 2, 8+4",
        "score_draft": 55.6,
        "score_revised": 83.3,
        "score_final": 100.0,
    }
    return GalleryItem(**(values | changes))


def gallery(count=16):
    return [item(number) for number in range(count)]
