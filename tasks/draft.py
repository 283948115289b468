"""The model drafts: one shard of samples at every decoder setting."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import SerializerFunctionWrapHandler, model_serializer

from core.decoding.settings import DecodeSettings
from core.drafting import draft as decode_drafts
from core.manifest import Ref, read_slice
from core.models.settings import Dtype
from core.settings import Settings
from core.stage import Output
from data_contracts import Drafts, Samples, Traces
from tasks.compute import draft_on
from tasks.running import aloud, run, stage_of
from tasks.workplace import Workplace


class DraftConfig(Settings):
    """One shard: samples [offset, offset + length) at every setting. Batches are part of the shard."""

    settings: tuple[str, ...]
    offset: int
    length: int
    batch_size: int
    response_length: int
    round: int
    traces: int = 0
    dtype: Dtype = "auto"

    @model_serializer(mode="wrap")
    def _without_the_dtype_of_the_checkpoint(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Work in the checkpoint's own precision keeps the key that it had before there was a choice."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("dtype", "auto")}


@task(cache_policy=NO_CACHE, task_run_name="draft {config.offset}")
def draft(place: Workplace, config: DraftConfig, model: Ref, samples: Ref, *, threads: int, parent: str) -> State:
    """Samples -> drafts, with the log of every write."""

    def compute(output: Output) -> None:
        rows = read_slice(place.store, samples, Samples, start=config.offset, count=config.length)
        done = draft_on(
            place,
            model,
            decode_drafts,
            rows,
            threads=threads,
            dtype=config.dtype,
            tell=aloud(output),
            on_progress=lambda done, total: output.progress(done, total, {}),
            settings=[DecodeSettings.parse(name) for name in config.settings],
            response_length=config.response_length,
            batch_size=config.batch_size,
            round_index=config.round,
            model_digest=model.digest,
            trace_samples=config.traces,
        )
        drafted = done.result
        output.write(Drafts, drafted.drafts)
        output.write(Traces, drafted.traces, counted=False)
        output.reject_frame(drafted.rejects)
        facts = {"batches_halved": done.halvings}
        output.commit(rows_in=rows.height * len(config.settings), facts=facts, is_shard=True)

    stage = stage_of("draft", config, {"model": [model], "samples": [samples]})
    return run(place, stage, compute, parent=parent)
