"""The MLflow runs above the stages: the pipeline run and, below it, one run a round."""

from collections.abc import Mapping

from tasks.workplace import Workplace

_OPEN = "redraft.open"
"""Tag of a round's run: "yes" until it has ended."""


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
        place.tracker.set_tags(known, {_OPEN: "yes"})
        return known
    return place.tracker.start_run(name, parent=parent, tags=tags | {_OPEN: "yes"}, params={})


def close_round(place: Workplace, run: str, gained: bool | None = None) -> None:
    """End a round's run."""
    told = {} if gained is None else {"redraft.gained": str(gained)}
    place.tracker.set_tags(run, told | {_OPEN: "no"})
    place.tracker.finish(run, "FINISHED")


def fail_pipeline(place: Workplace, name: str) -> None:
    """End the run of a pipeline that came to nothing, and those of its rounds that are still open."""
    tracker, ended = place.tracker, set[str]()
    parent = tracker.find_run({"redraft.run": name})
    if not parent:
        return
    while (one := tracker.find_run({"redraft.pipeline": parent, _OPEN: "yes"})) and one not in ended:
        ended.add(one)
        tracker.set_tags(one, {_OPEN: "no"})
        tracker.finish(one, "FAILED")
    tracker.finish(parent, "FAILED")
