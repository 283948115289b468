"""What `redraft draft` does: a checkpoint and data that may lie outside the store come in, and the model drafts."""

from core.config import RunConfig
from core.errors import InputError
from core.manifest import Ref, has_table
from data_contracts import Samples
from flows.foundation import ingest_file
from flows.gathering import only
from flows.self_correction import draft_shards
from tasks.finetune import ModelConfig, create_model
from tasks.workplace import Workplace


def drafted(config: RunConfig, place: Workplace, sources: list[Ref], limit: int | None, parent: str) -> list[Ref]:
    """Shards of drafts, as a round would have them, with the number 0.

    Args:
        sources: the checkpoint and the samples, as far as they are in the store; else `model.checkpoint` and
            `data.path` are taken in.
        limit: samples that are drafted at most, the first ones; None: all.

    Raises:
        InputError: the dataset holds no samples.
    """
    of_kind = {source.kind: source for source in sources}
    samples = of_kind.get("dataset") or ingest_file(config, place, parent)
    if not has_table(place.store, samples, Samples):
        raise InputError(f"{samples.uri} holds no samples: give a file of image-text rows, or a dataset made of one")
    model = of_kind.get("checkpoint") or only(
        create_model.submit(place, ModelConfig.of(config), samples, parent=parent), "checkpoint"
    )
    return draft_shards(config, place, 0, model, samples, parent, limit=limit)
