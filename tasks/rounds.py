"""The MLflow runs above the stages: the pipeline run and, below it, one run a round."""

from collections.abc import Mapping

from tasks.workplace import Workplace


def open_pipeline(place: Workplace, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
    """The pipeline's run: a new one, or, when a failed run is taken up again, the one that it began."""
    tracker = place.tracker
    known = tracker.find_run({"redraft.run": tags["redraft.run"]})
    if known:
        tracker.resume_run(known)
        return known
    return tracker.start_run(name, parent=None, tags=tags, params=params)


def open_round(place: Workplace, name: str, parent: str) -> str:
    """A run below the pipeline's, e.g. 'foundation' or 'round 1'; taken up again if it is there already."""
    tags = {"redraft.round": name, "redraft.pipeline": parent}
    known = place.tracker.find_run(tags) if parent else None
    if known:
        place.tracker.resume_run(known)
        return known
    return place.tracker.start_run(name, parent=parent, tags=tags, params={})


def close_round(place: Workplace, run: str, gained: bool | None = None) -> None:
    """End a round's run."""
    if gained is not None:
        place.tracker.set_tags(run, {"redraft.gained": str(gained)})
    place.tracker.finish(run, "FINISHED")
