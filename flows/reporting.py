"""From the refs of a finished run to summary.json, report.html and the tables in MLflow."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.fingerprint import inputs_digest
from core.manifest import Ref, read_manifest, read_table
from core.metrics.facts import controls, measure
from core.metrics.traces import repair_of, stability_of
from core.models.tokenizer import load_tokenizer
from core.store import Store
from core.training.settings import CURVES_FILE
from data_contracts import Drafts, Evaluations, Revisions, Samples
from flows.figures import quality_figures
from flows.lineage import ancestors, stage_records
from flows.report import arms_of, write_report
from flows.summary import (
    ArmResult,
    Control,
    Curve,
    DecodingRecord,
    ExpertRecord,
    GalleryItem,
    GallerySegment,
    RunSummary,
    config_hash,
    machine,
    versions,
)
from tasks.workplace import Workplace

if TYPE_CHECKING:
    from flows.pipeline import RunResult
    from flows.self_correction import Round

GALLERY = 18
"""Drafts that the report shows."""


def publish(place: Workplace, result: "RunResult", parent: str, command: str) -> Path:
    """Write summary and report, hand them to MLflow; returns the path of summary.json."""
    summary = summarize_run(place, result, command)
    folder = place.home / "reports" / result.run
    report = write_report(summary, gallery(place, result), folder)
    tracker = place.tracker
    for path in (report, folder / "summary.json"):
        tracker.log_file(parent, path)
    table = pl.DataFrame([arm.model_dump() for arm in summary.results])
    tracker.log_table(parent, table, "results.json")
    for title, svg in quality_figures(summary.results, arms_of(summary), summary.metric):
        tracker.log_text(parent, str(svg), f"figures/{title.lower().replace(' ', '-')}.svg")
    tracker.log_metrics(parent, {_metric_name(arm): arm.score for arm in summary.results}, step=0)
    tracker.finish(parent, "FINISHED")
    return folder / "summary.json"


def summarize_run(place: Workplace, result: "RunResult", command: str) -> RunSummary:
    """Everything that the report says in numbers, read from the manifests behind the run's refs."""
    store, ground = place.store, result.ground
    labels = _labels(result)
    roots = [*result.evaluations.values(), *(ref for one in result.rounds for ref in (one.dev, one.shown))]
    exact = ground_truth_known(store, ground.test)
    return RunSummary(
        run=result.run,
        kind=result.kind,
        started=result.started,
        seconds=result.seconds,
        command=command,
        config_name=result.config.name,
        config=result.config.model_dump(mode="json", exclude={"place"}),
        config_hash=config_hash(result.config),
        inputs_digest=inputs_digest(result.config),
        seed=result.config.seed,
        machine=machine(),
        versions=versions(),
        metric="score" if exact else "overlap_f1",
        metric_note=_METRIC_NOTES["score" if exact else "overlap_f1"],
        main_arm=f"round {result.rounds[-1].number}" if result.rounds else None,
        baseline_arm="mask-predict" if result.baseline else None,
        results=[
            one for arm, ref in result.evaluations.items() for one in arm_results(store, arm, result.arms[arm], ref)
        ],
        controls=_controls(store, ground.test, result.config.seed) if exact else [],
        stages=stage_records(ancestors(store, roots), labels, since=result.started),
        experts=[_expert_record(store, one, result.config.expert.model) for one in result.rounds],
        decodings=[record for one in result.rounds for record in _decoding_records(place, result.ground.blank, one)],
        curves=_curves(store, result),
        notes=list(result.notes),
    )


_METRIC_NOTES = {
    "score": "100 × F1 of strict precision and fact recall, mean over test scenes; chaotic text earns nothing.",
    "overlap_f1": "Bag-of-words F1 with the reference caption × 100: no exact facts are known for these images.",
}


def arm_results(store: Store, arm: str, model: Ref, evaluation: Ref) -> list[ArmResult]:
    """One result a decoder setting of an arm."""
    manifest = read_manifest(store, evaluation.uri)
    rows = read_table(store, evaluation, Evaluations)
    steps = int(read_manifest(store, model.uri).facts.get("train_steps", 0))
    shape = {name: part.row(0, named=True) for (name,), part in rows.partition_by("setting", as_dict=True).items()}
    return [_arm_result(arm, steps, shape[name], facts) for name, facts in manifest.facts["settings"].items()]


def _arm_result(arm: str, steps: int, row: dict[str, Any], facts: dict[str, Any]) -> ArmResult:
    exact = facts["score"] is not None
    metric, scale = ("score", 1.0) if exact else ("overlap_f1", 100.0)
    same = ("strict_precision", "fact_recall", "fact_f1", "binding_error", "validity", "repeat_rate", "overlap_f1")
    return ArmResult(
        arm=arm,
        refining=row["policy"] != "freeze",
        tokens_per_step=row["tokens_per_step"],
        extra_steps=row["extra_steps"],
        nfe=facts["nfe"],
        train_steps=steps,
        score=facts[metric] * scale,
        low=facts[f"{metric}_low"] * scale,
        high=facts[f"{metric}_high"] * scale,
        samples=facts["samples"],
        seconds=facts.get("seconds"),
        place_accuracy=facts["place_accuracy"],
        place_chance=facts["place_chance"] if exact else None,
        **{name: facts[name] for name in same},
    )


def ground_truth_known(store: Store, samples: Ref) -> bool:
    """Do the references describe scenes whose every fact can be checked?"""
    reference = read_table(store, samples, Samples)["reference"][0]
    return measure(reference, reference)["score"] is not None


def _controls(store: Store, test: Ref, seed: int) -> list[Control]:
    found = controls(read_table(store, test, Samples)["reference"].to_list(), seed)
    return [Control(name=name, score=score) for name, score in found.items()]


def _labels(result: "RunResult") -> dict[Ref, str]:
    ground = result.ground
    labels = {
        ground.samples: "train", ground.dev: "dev", ground.test: "test", ground.blank: "untrained",
        ground.base: "base", result.replay: "stage 1",
    }  # fmt: skip
    labels |= {model: arm for arm, model in result.arms.items()}
    for one in result.rounds:
        outputs = [one.samples, *one.drafts, *one.revisions, one.examples, one.model, one.dev, one.shown]
        labels |= dict.fromkeys(outputs, f"round {one.number}")
    return labels | {ref: arm for arm, ref in result.evaluations.items()}


def _expert_record(store: Store, one: "Round", model: str) -> ExpertRecord:
    rows = read_table(store, one.revisions, Revisions)
    segments = rows.select(pl.col("segments").explode()).drop_nulls().unnest("segments")
    replies = rows.unique("request_key")  # drafts that are alike share a request
    facts = [read_manifest(store, ref.uri).facts for ref in one.revisions]
    costs = [fact["cost_usd"] for fact in facts]
    return ExpertRecord(
        label=f"round {one.number}",
        model=model,
        prompt_version=rows["prompt_version"][0],
        drafts=rows.height,
        verdicts=dict(Counter(rows["verdict"].to_list())),
        segments=segments.height,
        accepted=dict(Counter(segments.filter(pl.col("reason").is_null())["tier"].to_list())),
        segment_reasons=dict(Counter(segments["reason"].drop_nulls().to_list())),
        requests=sum(int(fact["requests"]) for fact in facts),
        from_ledger=sum(int(fact["from_ledger"]) for fact in facts),
        prompt_tokens=replies["prompt_tokens"].sum(),
        completion_tokens=replies["completion_tokens"].sum(),
        cost_usd=None if all(cost is None for cost in costs) else sum(cost or 0.0 for cost in costs),
        seconds=sum(read_manifest(store, ref.uri).seconds for ref in one.revisions),
    )


def _decoding_records(place: Workplace, tokenizer: Ref, one: "Round") -> list[DecodingRecord]:
    drafts = read_table(place.store, one.drafts, Drafts)
    targets = read_table(place.store, one.revisions, Revisions).filter(pl.col("target_ids").is_not_null())
    mask_id = int(load_tokenizer(place.local_folder(tokenizer)).mask_token_id)
    stable = (
        stability_of(drafts, mask_id=mask_id)
        .join(drafts.select("draft_id", "nfe"), on="draft_id")
        .group_by("setting", maintain_order=True)
        .agg(
            pl.len().alias("drafts"),
            pl.col("nfe", "overwritten", "oscillations", "last_change").mean(),
            pl.col("fixed_point").mean().alias("settled"),
        )
    )
    rows = stable.join(repair_of(drafts, targets, mask_id=mask_id), on="setting", how="left", maintain_order="left")
    return [DecodingRecord(label=f"round {one.number}", **row) for row in rows.iter_rows(named=True)]


def _curves(store: Store, result: "RunResult") -> list[Curve]:
    """Of the arms that were trained: with base.steps = 0 the base was not."""
    trained = {label: model for label, model in result.arms.items() if store.exists(f"{model.uri}/{CURVES_FILE}")}
    return [_curve(store, label, model) for label, model in trained.items()]


def _curve(store: Store, label: str, model: Ref) -> Curve:
    points = json.loads(store.read(f"{model.uri}/{CURVES_FILE}"))
    return Curve(label=label, steps=[step for step, _ in points], loss=[metrics["loss"] for _, metrics in points])


def gallery(place: Workplace, result: "RunResult") -> list[GalleryItem]:
    """Drafts of the last round with the expert's segments, and what its model writes for the same images."""
    if not result.rounds:
        return []
    one, store = result.rounds[-1], place.store
    final = read_table(store, one.shown, Evaluations).select("sample_id", final="text", final_setting="setting")
    drafts = read_table(store, one.drafts, Drafts).join(
        read_table(store, one.revisions, Revisions).drop("sample_id"), on="draft_id", maintain_order="left"
    )
    corrected = drafts.filter(pl.col("verdict") == "revised").join(final, on="sample_id", maintain_order="left")
    shown = corrected.gather_every(max(1, corrected.height // GALLERY)).head(GALLERY)
    return [_item(place, row) for row in shown.iter_rows(named=True)]


def _item(place: Workplace, row: dict[str, Any]) -> GalleryItem:
    def score(text: str) -> float | None:
        return measure(row["reference"], text)["score"]

    segments = [
        GallerySegment(org=s["org"], target=s["target"], start=s["char_start"], end=s["char_end"], reason=s["reason"])
        for s in row["segments"]
    ]
    return GalleryItem(
        sample_id=row["sample_id"],
        image=place.image_bytes(row["image_sha"]) if row["image_sha"] else None,
        prompt=row["prompt"],
        reference=row["reference"],
        draft=row["text"],
        draft_label=f"Draft of round {row['round']}, {row['setting']}",
        verdict=row["verdict"],
        segments=segments,
        revised=row["refined_text"],
        final=row["final"],
        final_label=f"The model after round {row['round']}, {row['final_setting']}",
        score_final=score(row["final"]),
        score_draft=score(row["text"]),
        score_revised=score(row["refined_text"]) if row["refined_text"] else None,
    )


def _metric_name(arm: ArmResult) -> str:
    decoding = "refine" if arm.refining else "freeze"
    return f"test/{arm.arm}/{decoding}/{arm.setting.replace('+', '_plus_')}"
