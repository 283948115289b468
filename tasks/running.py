"""How every task runs its stage: compute it once, record it in MLflow, and say whether it was there already."""

from collections.abc import Callable, Mapping, Sequence

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import task_run
from prefect.states import Completed

from core.manifest import Kind, Manifest, Ref
from core.settings import Settings
from core.stage import Output, Stage, StageResult, run_stage
from tasks.narration import Bar, tell
from tasks.tracking import DatasetInfo
from tasks.versions import VERSIONS
from tasks.workplace import Workplace


def stage_of(
    name: str, config: Settings, inputs: Mapping[str, Sequence[Ref]] | None = None, kind: Kind = "dataset"
) -> Stage:
    """A stage in its present version."""
    return Stage(name=name, version=VERSIONS[name], config=config, inputs=inputs or {}, kind=kind)


def run(
    place: Workplace,
    stage: Stage,
    compute: Callable[[Output], None],
    *,
    parent: str,
    retry_failed: bool = False,
    afterwards: Callable[[str], None] | None = None,
) -> State:
    """Run a stage and return a completed state with its Ref: named "Cached" if the output was there already.

    Args:
        place: where the store, the claims and the tracker are.
        stage: the work, named by its key.
        compute: writes the output and commits it.
        parent: MLflow run of the round (or "" without a tracker).
        retry_failed: compute an output again that has failed rows; for work whose failures may pass.
        afterwards: called with the stage's run in MLflow when its output was computed, for more to record.
    """
    tracker, label = place.tracker, task_run.name or stage.name
    run_id = tracker.start_run(label, parent=parent, tags=_tags(stage), params=stage.config_dict)
    refs = [(name, ref) for name, group in stage.inputs.items() for ref in group]
    tracker.log_inputs(
        run_id, [DatasetInfo(name=ref.uri, digest=ref.digest, uri=ref.uri, context=name) for name, ref in refs]
    )
    bar = Bar(label)

    def watch(done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        bar.advance(done, total)
        if metrics:
            tracker.log_metrics(run_id, metrics, step=done)

    try:
        result = run_stage(
            place.store,
            place.claims,
            stage,
            compute,
            work_root=place.work_root,
            on_progress=watch,
            on_note=bar.note,
            retry_failed=retry_failed,
        )
    except BaseException:
        tracker.finish(run_id, "FAILED")
        raise
    finally:
        bar.close()
    tell(label, result)
    _record(place, run_id, result)
    if afterwards is not None and not result.cached:
        afterwards(run_id)
    tracker.finish(run_id, "FINISHED")
    get_run_logger().info("%s %s %s", stage.name, "cached" if result.cached else "done", result.manifest.counts)
    return Completed(name="Cached" if result.cached else "Completed", message=result.ref.uri, data=result.ref)


def aloud(output: Output) -> Callable[[str], None]:
    """Say something about how the work stands to whoever watches, and to the log."""
    log = get_run_logger()

    def tell(words: str) -> None:
        output.note(words)
        log.warning(words)

    return tell


def _tags(stage: Stage) -> dict[str, str]:
    parents = {f"redraft.parent.{name}": ",".join(ref.digest for ref in refs) for name, refs in stage.inputs.items()}
    return {"redraft.stage": stage.name, "redraft.version": str(stage.version), "redraft.key": stage.key, **parents}


def _record(place: Workplace, run_id: str, result: StageResult) -> None:
    tracker, manifest = place.tracker, result.manifest
    tags = {"redraft.output": result.ref.uri, "redraft.digest": result.ref.digest, "redraft.cached": str(result.cached)}
    tracker.set_tags(run_id, tags)
    tracker.log_metrics(run_id, _metrics(manifest), step=0)


def _metrics(manifest: Manifest) -> dict[str, float]:
    """The account and the numeric facts of a manifest, flat."""
    counts = manifest.counts
    rejected = {f"rejected/{reason}": float(n) for reason, n in counts.rejected.items()}
    failed = {f"failed/{reason}": float(n) for reason, n in counts.failed.items()}
    facts = {name: float(value) for name, value in manifest.facts.items() if isinstance(value, int | float)}
    return {
        "seconds": manifest.seconds,
        "rows_in": float(counts.rows_in),
        "rows_ok": float(counts.ok),
        **rejected,
        **failed,
        **facts,
    }
