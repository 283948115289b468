"""Which model is the champion: the alias moves only when the difference's interval is above zero."""

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from core.manifest import Ref, read_manifest, read_table
from core.metrics.bootstrap import clusters, ratio_interval, resample
from core.metrics.facts import scene_id
from data_contracts import Evaluations
from tasks.workplace import Workplace


def beats(place: Workplace, challenger: Ref, champion: Ref, setting: str, seed: int) -> bool:
    """Is the challenger better on the same samples, the whole 95 % interval of the difference being above zero?

    Both refs are evaluations of one split. The metric is `score`, or `overlap_f1` where there are no exact facts.
    """
    frames = [read_table(place.store, ref, Evaluations).filter(setting=setting) for ref in (challenger, champion)]
    metric = "overlap_f1" if frames[0]["score"].null_count() else "score"
    joined = frames[0].join(frames[1], on="sample_id", validate="1:1")
    difference_N = (joined[metric] - joined[f"{metric}_right"]).to_numpy().astype(np.float64)
    scene_N = clusters([scene_id(sample) for sample in joined["sample_id"]])
    sums_S, counts_S = np.bincount(scene_N, difference_N), np.bincount(scene_N).astype(np.float64)
    low, _ = ratio_interval(sums_S, counts_S, resample(len(sums_S), seed))
    return low > 0


@task(cache_policy=NO_CACHE)
def register(
    place: Workplace, name: str, model: Ref, dev: Ref, setting: str, tags: dict[str, str], *, parent: str
) -> str:
    """Register a checkpoint as a version of the model `name`, with its dev result; returns the version."""
    summary = read_manifest(place.store, dev.uri).facts["settings"][setting]
    facts = {f"redraft.dev.{key}": str(summary[key]) for key in ("score", "score_low", "score_high", "overlap_f1")}
    uri = f"{place.store.uri}/{model.uri}"
    known = tags | facts | {"redraft.ref": model.model_dump_json(), "redraft.dev": dev.model_dump_json()}
    return place.tracker.register_model(name, checkpoint_uri=uri, run_id=parent, digest=model.digest, tags=known)


@task(cache_policy=NO_CACHE)
def promote(place: Workplace, name: str, version: str) -> None:
    """Move the alias `champion` to a version."""
    place.tracker.set_alias(name, "champion", version)
